//! From the operator's file to settings that cannot be wrong.
//!
//! text -> `document` -> `keys::Raw` -> `checked` (and `classes`) -> [`Settings`]. What one value
//! says is judged where it is read, by the table of `keys`; what several say together, last. Whatever
//! is wrong comes back at once as [`Problems`], each with its line, and nothing that is wrong is ever
//! run by.

mod api_keys;
mod check;
mod checked;
mod classes;
pub mod defaults;
mod document;
pub mod keys;
pub mod margins;
pub mod problem;
mod prometheus;
pub mod quantity;
pub mod renamed;
mod scalars;
pub mod settings;
mod table;
pub mod value;
pub mod write;

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

pub use document::Overrides;
pub use problem::{Problem, Problems};
pub use settings::Settings;

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("{}: {error}; name the file with --config, or leave it out to run with the defaults", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// It could be read, and something is wrong with it.
    #[error(transparent)]
    Wrong(#[from] Problems),
    /// The API keys cannot be had.
    #[error(transparent)]
    Keys(#[from] api_keys::KeysError),
}

/// Reads and checks a file, and the API keys it points to.
pub fn load(path: &Path, overrides: &Overrides) -> Result<Settings, Error> {
    let text = std::fs::read(path).map_err(|error| Error::Unreadable { path: path.to_owned(), error })?;
    // Lossy, so that a stray byte is shown in its line instead of refusing the whole file.
    let mut settings = parse(&String::from_utf8_lossy(&text), &path.display().to_string(), overrides)?;
    let identity = &mut settings.identity;
    if let Some(file) = &identity.api_keys_file {
        api_keys::read(file, &mut identity.api_keys)?;
    }
    Ok(settings)
}

/// Checks the text of a file; `name` is what problems call it.
pub fn parse(text: &str, name: &str, overrides: &Overrides) -> Result<Settings, Problems> {
    let (document, mut problems) = document::read(text, overrides);
    match checked::check(&document, &version(text)) {
        Ok(settings) if problems.is_empty() => return Ok(settings),
        Ok(_) => {}
        Err(more) => {
            // What was not read is missing, and that is no second problem.
            let follows = |problem: &Problem| {
                problems.iter().any(|unread| {
                    let below = unread.key.strip_prefix(problem.key.as_str());
                    below.is_some_and(|below| below.is_empty() || below.starts_with('.'))
                })
            };
            let own: Vec<Problem> = more.into_iter().filter(|problem| !follows(problem)).collect();
            problems.extend(own);
        }
    }
    Err(Problems::new(name, text, problems))
}

impl Settings {
    /// What the program runs by without a file.
    pub fn defaults(overrides: &Overrides) -> Result<Settings, Problems> {
        parse("", "the command line", overrides)
    }
}

/// The first 12 hexadecimal digits of the text's SHA-256; `defaults` for none.
fn version(text: &str) -> String {
    if text.is_empty() {
        return "defaults".to_owned();
    }
    let digest = Sha256::digest(text.as_bytes());
    let head = digest.iter().take(6).fold(0_u64, |head, byte| head << 8 | u64::from(*byte));
    format!("{head:012x}")
}

#[cfg(test)]
mod tests;
