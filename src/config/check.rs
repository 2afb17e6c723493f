//! What is found wrong while values are judged.

use super::document::Document;
use super::problem::{Problem, suggest};

/// Collects problems while values are judged.
pub(super) struct Check<'a> {
    pub(super) document: &'a Document<'a>,
    pub(super) problems: Vec<Problem>,
}

impl Check<'_> {
    /// Notes a problem with a key.
    pub(super) fn refuse(
        &mut self,
        key: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let key = key.into();
        self.problems.push(Problem {
            span: self.document.span(&key),
            key,
            message: message.into(),
            remedy: Some(remedy.into()).filter(|remedy: &String| !remedy.is_empty()),
        });
    }

    /// Whether a key is given.
    pub(super) fn has(&self, key: &str) -> bool {
        self.document.has(key)
    }

    /// The place of `name` among `known`, or a problem that guesses what was meant.
    pub(super) fn find<'a>(
        &mut self,
        key: impl Into<String>,
        what: &str,
        name: &str,
        known: impl Iterator<Item = &'a str> + Clone,
    ) -> Option<usize> {
        let found = known.clone().position(|candidate| candidate == name);
        if found.is_none() {
            let remedy = suggest(name, known).unwrap_or_default();
            self.refuse(key, format!("there is no {what} `{name}`"), remedy);
        }
        found
    }
}
