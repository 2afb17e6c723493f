//! The name of a class on the command line: completions list the built-in ones, and any other may be configured.

use crate::core::request::catalogue::CLASSES;
use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Arg, Command, Error};
use std::ffi::OsStr;

/// Takes any name, and knows the built-in ones.
#[derive(Clone, Copy, Debug)]
pub struct ClassName;

impl TypedValueParser for ClassName {
    type Value = String;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<String, Error> {
        StringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(CLASSES.iter().map(|class| PossibleValue::new(class.name))))
    }
}
