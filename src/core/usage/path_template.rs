//! From a path to its pattern: `/jobs/raysubmit_8Fk2q/logs` to `/jobs/{id}/logs`.
//!
//! What no route knows is counted by pattern, or every job would be a route of its own. A
//! segment is an id when it looks like one (digits alone; a digit and eight characters or more;
//! forty characters or more) or could not stand in a configuration as it is. What comes out is
//! a path that `[[route]]` takes as it stands. A guess, by design: it errs towards folding.

use std::fmt::Write as _;
use std::sync::Arc;

/// Segments kept; the rest is one.
const SEGMENTS_MAX: usize = 6;

/// The pattern of a path.
pub fn template(path: &str) -> Arc<str> {
    let mut pattern = String::with_capacity(path.len());
    let mut ids = 0;
    let segments = path.split('/').filter(|segment| !segment.is_empty());
    for (at, segment) in segments.enumerate() {
        if at == SEGMENTS_MAX {
            pattern.push_str("/{*rest}");
            return pattern.into();
        }
        if is_id(segment) {
            ids += 1;
            let number = if ids > 1 { ids.to_string() } else { String::new() };
            let _ = write!(pattern, "/{{id{number}}}");
        } else {
            pattern.push('/');
            pattern.push_str(segment);
        }
    }
    if path.ends_with('/') || pattern.is_empty() {
        pattern.push('/');
    }
    pattern.into()
}

fn is_id(segment: &str) -> bool {
    let plain = segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let dots = segment.bytes().all(|byte| byte == b'.');
    let digit = segment.bytes().any(|byte| byte.is_ascii_digit());
    let number = segment.bytes().all(|byte| byte.is_ascii_digit());
    !plain || dots || number || segment.len() >= 40 || (digit && segment.len() >= 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_an_id_is_folded_and_what_names_something_is_not() {
        for (path, pattern) in [
            ("/", "/"),
            ("/api/v1/things", "/api/v1/things"),
            ("/api/v1/things/", "/api/v1/things/"),
            ("/api/jobs/raysubmit_8Fk2qXyz/extra", "/api/jobs/{id}/extra"),
            ("/users/42/files/7f3a9c01", "/users/{id}/files/{id2}"),
            ("/a/b/c/d/e/f/g/h", "/a/b/c/d/e/f/{*rest}"),
            ("/x/%41{a}/..", "/x/{id}/{id2}"),
            ("//a//b", "/a/b"),
        ] {
            assert_eq!(&*template(path), pattern, "{path}");
        }
    }
}
