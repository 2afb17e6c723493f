//! The file of API keys: whom the operator knows, one a line.
//!
//! ```text
//! # name         SHA-256 of the key: printf %s "$KEY" | sha256sum
//! nightly-batch  5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8
//! ```
//!
//! It stands beside the configuration so that keys come and go without touching that, and so
//! that Kubernetes can mount it from a Secret. Digests only: a reader of the file cannot get in with them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::scalars::ApiKey;

/// The most keys: each is compared with every key that is shown.
pub(crate) const KEYS_MAX: usize = 1000;

/// Why the keys cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file cannot be read.
    #[error("the API keys cannot be read from {}: {source}; correct `identity.api_keys_file`, or remove it", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A line is not a key.
    #[error(
        "line {line} of {} is not an API key; write a name and 64 hexadecimal digits, as `printf %s \"$KEY\" | sha256sum` prints them",
        path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
    },
    /// Two clients have one key.
    #[error("line {line} of {}: `{twin}` has the same key; give each client a key of its own", path.display())]
    Twin {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// The client that has it already.
        twin: Arc<str>,
    },
    /// There are too many.
    #[error("there are more than {KEYS_MAX} API keys; hand out fewer")]
    TooMany,
}

/// Adds the keys of a file to those that are there.
///
/// # Errors
/// [`KeysError`]; then `keys` is not to be used.
pub(crate) fn read(path: &Path, keys: &mut Vec<ApiKey>) -> Result<(), KeysError> {
    let unreadable = |source| KeysError::Unreadable { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    for (at, line) in text.lines().enumerate() {
        let (path, line_number) = (|| path.to_owned(), at + 1);
        let line = line.split('#').next().unwrap_or("").trim();
        if line.is_empty() {
            continue;
        }
        let read =
            line.split_once(char::is_whitespace).and_then(|(name, rest)| Some((name, digest(rest.trim())?)));
        let Some((name, sha256)) = read else {
            return Err(KeysError::Line { path: path(), line: line_number });
        };
        if let Some(twin) = keys.iter().find(|key| key.sha256 == sha256) {
            return Err(KeysError::Twin { path: path(), line: line_number, twin: Arc::clone(&twin.name) });
        }
        if keys.len() == KEYS_MAX {
            return Err(KeysError::TooMany);
        }
        keys.push(ApiKey { name: name.into(), sha256 });
    }
    Ok(())
}

/// A SHA-256 in hexadecimal.
pub(super) fn digest(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(test: &str, text: &str) -> Result<Vec<ApiKey>, KeysError> {
        let path = std::env::temp_dir().join(format!("rayguard-keys-{test}-{}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        let mut keys = Vec::new();
        let outcome = read(&path, &mut keys).map(|()| keys);
        std::fs::remove_file(&path).unwrap();
        outcome
    }

    #[test]
    fn a_line_is_a_name_and_a_digest() {
        let (a, b) = ("aa".repeat(32), "bb".repeat(32));
        let keys = read_text("sound", &format!("# who\n\nnightly {a}\n ci\t{b} # the runners\n")).unwrap();
        let names: Vec<&str> = keys.iter().map(|key| &*key.name).collect();
        assert_eq!(names, ["nightly", "ci"]);
        assert_eq!((keys[0].sha256, keys[1].sha256), ([0xaa; 32], [0xbb; 32]));
    }

    #[test]
    fn what_is_no_key_is_named_by_its_line() {
        let digest = "aa".repeat(32);
        for text in ["nightly", &digest, &format!("nightly {digest}a"), "nightly secret"] {
            let problem = read_text("bad", &format!("# first\n{text}\n")).unwrap_err();
            assert!(problem.to_string().starts_with("line 2 of "), "{text}: {problem}");
        }
        let twice = read_text("twice", &format!("a {digest}\nb {digest}")).unwrap_err();
        assert!(twice.to_string().contains("`a` has the same key"), "{twice}");
    }

    #[test]
    fn a_file_that_is_not_there_is_said_with_what_to_do() {
        let problem = read(Path::new("/nonexistent/keys"), &mut Vec::new()).unwrap_err();
        assert!(problem.to_string().contains("identity.api_keys_file"), "{problem}");
    }
}
