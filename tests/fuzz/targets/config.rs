//! A configuration: it is read, or what is wrong with it is drawn.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rayguard_config::{self as config, Overrides};

fuzz_target!(|text: &str| {
    match config::parse(text, "fuzz.toml", &Overrides::default()) {
        Ok(settings) => assert!(!settings.policy.classes.is_empty()),
        Err(problems) => assert!(!problems.to_string().is_empty()),
    }
});
