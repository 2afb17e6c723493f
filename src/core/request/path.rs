//! Which path does Ray see? The normal form in which paths are classified.
//!
//! Only the class depends on it: what is forwarded is the path as sent, byte for byte. A
//! request must not reach an expensive endpoint under a cheap class, so the normal form
//! follows what Ray's routers do. No path is refused: whatever Ray answers, it answers through
//! the proxy too, and what no route knows has a class with limits.
//!
//! **The dashboard** ([`normalise`]) has two routers, one after the other (aiohttp 3.14, yarl
//! 1.25):
//!
//! - The dashboard matches `URL.path_safe`: every `%XX` decoded except `%2F` and `%25`,
//!   nothing merged, dot segments left alone, case kept, `;` and `\` ordinary characters. A `%`
//!   that begins no escape and escapes that are not UTF-8 stay as they are.
//! - It then asks the module for the same path through aiohttp's client, which requotes it
//!   and *does* resolve dot segments. `GET /api/jobs/.` is one job to the dashboard and the
//!   list of all jobs to the module behind it. So a path with dot segments has two readings.
//!
//! So: escapes are decoded once; `%2F`, `%25` (and `%3F`, `%23`, which can be part of no
//! route) stay escapes, in upper case. Runs of slashes are merged: Ray answers 404 to them,
//! and whatever stands between us and Ray and merges them too gains nothing by it.
//!
//! **Serve** ([`decode`]) knows one reading (uvicorn 0.54): every escape decoded once, `%2F` and
//! `%25` too. Runs of slashes are merged here as well, since an application may merge them.
//!
//! A clean path comes back borrowed. `normalise` is idempotent, which the tests hold it to.

use percent_encoding::percent_decode_str;
use std::borrow::Cow;

/// A path as the dashboard reads it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Normal<'a> {
    /// As the dashboard's own router reads it, dot segments as they stand.
    pub path: Cow<'a, str>,
    /// As the module behind it reads it, if it has dot segments.
    pub resolved: Option<String>,
}

/// What the dashboard makes of a path.
pub fn normalise(path: &str) -> Normal<'_> {
    if is_clean(path.as_bytes()) {
        return Normal { path: Cow::Borrowed(path), resolved: None };
    }
    let decoded = unescape(path, |character| matches!(character, '/' | '%' | '?' | '#'));
    let resolved = resolve_dots(&decoded).map(merge_slashes);
    let normal = merge_slashes(decoded);
    let path = if normal == path { Cow::Borrowed(path) } else { Cow::Owned(normal) };
    Normal { path, resolved }
}

/// What Serve makes of a path.
pub fn decode(path: &str) -> Cow<'_, str> {
    if is_clean(path.as_bytes()) {
        return Cow::Borrowed(path);
    }
    let decoded = percent_decode_str(path).decode_utf8_lossy().into_owned();
    let decoded = merge_slashes(decoded);
    if decoded == path { Cow::Borrowed(path) } else { Cow::Owned(decoded) }
}

/// Whether a path is its own normal form at first sight. `/.` may still be harmless
/// (`/.well-known`), but that is for the slow look to say. No early exit: nearly all paths
/// are clean, and so the comparisons are made many bytes at a time.
#[expect(clippy::needless_bitwise_bool, reason = "a lazy operator is a branch per byte")]
fn is_clean(path: &[u8]) -> bool {
    let pairs = path.iter().zip(path.get(1..).unwrap_or_default());
    !path.iter().fold(false, |found, &byte| found | (byte == b'%'))
        && !pairs.fold(false, |found, (&a, &b)| found | ((a == b'/') & ((b == b'/') | (b == b'.'))))
}

/// A part of a path.
enum Piece<'a> {
    Text(&'a str),
    /// A `%` that begins no escape.
    Percent,
    /// The bytes of escapes that follow each other.
    Escapes(Vec<u8>),
}

/// The parts of a path, in order.
fn pieces(path: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = path;
    std::iter::from_fn(move || {
        let mut bytes = Vec::new();
        while let Some(byte) = escape(rest.as_bytes()) {
            bytes.push(byte);
            rest = &rest[3..];
        }
        if !bytes.is_empty() {
            return Some(Piece::Escapes(bytes));
        }
        if let Some(after) = rest.strip_prefix('%') {
            rest = after;
            return Some(Piece::Percent);
        }
        let (text, after) = rest.split_at(rest.find('%').unwrap_or(rest.len()));
        rest = after;
        (!text.is_empty()).then_some(Piece::Text(text))
    })
}

/// The byte that an escape at the start stands for.
fn escape(text: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = text else { return None };
    Some(hex(*high)? << 4 | hex(*low)?)
}

/// Decodes escapes once, but those of characters that `stay` and those that are not UTF-8.
fn unescape(path: &str, stay: impl Fn(char) -> bool) -> String {
    let mut normal = String::with_capacity(path.len());
    for piece in pieces(path) {
        match piece {
            Piece::Text(text) => normal.push_str(text),
            Piece::Percent => push_escape(&mut normal, b'%'),
            Piece::Escapes(bytes) => {
                for chunk in bytes.utf8_chunks() {
                    for character in chunk.valid().chars() {
                        match u8::try_from(character) {
                            Ok(byte) if stay(character) => push_escape(&mut normal, byte),
                            _ => normal.push(character),
                        }
                    }
                    chunk.invalid().iter().for_each(|byte| push_escape(&mut normal, *byte));
                }
            }
        }
    }
    normal
}

fn push_escape(text: &mut String, byte: u8) {
    const DIGITS: [u8; 16] = *b"0123456789ABCDEF";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    text.extend(['%', digit(byte >> 4), digit(byte & 0xF)]);
}

/// The path without `.` and `..` as segments, if it has any (RFC 3986, 5.2.4, as yarl has it).
fn resolve_dots(path: &str) -> Option<String> {
    let is_dot = |segment: &str| matches!(segment, "." | "..");
    if !path.split('/').any(is_dot) {
        return None;
    }
    let mut resolved = Vec::new();
    let mut last = "";
    for segment in path.split('/').skip(1) {
        last = segment;
        match segment {
            ".." => drop(resolved.pop()),
            "." => {}
            name => resolved.push(name),
        }
    }
    if is_dot(last) {
        resolved.push("");
    }
    Some(format!("/{}", resolved.join("/")))
}

/// The path with one slash for each run of them.
fn merge_slashes(path: String) -> String {
    if !path.contains("//") {
        return path;
    }
    let mut before = ' ';
    path.chars()
        .filter(|&character| std::mem::replace(&mut before, character) != '/' || character != '/')
        .collect()
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(sent: &str) -> String {
        normalise(sent).path.into_owned()
    }

    #[test]
    fn a_clean_path_comes_back_borrowed() {
        for path in [
            "/",
            "*",
            "/api/jobs/",
            "/api/v0/tasks/summarize",
            "/nodes/é",
            "/.well-known/x",
            "/a..b/c.",
            "/a\\b",
        ] {
            let borrowed = Normal { path: Cow::Borrowed(path), resolved: None };
            assert_eq!(normalise(path), borrowed, "{path}");
            assert!(
                matches!(normalise(path).path, Cow::Borrowed(_)) && matches!(decode(path), Cow::Borrowed(_))
            );
        }
    }

    #[test]
    fn escapes_are_decoded_once_and_only_where_ray_decodes_them() {
        for (sent, normal) in [
            ("/%61pi/v0/%74asks", "/api/v0/tasks"),
            ("/api/jobs/a%2fb", "/api/jobs/a%2Fb"),
            ("/api/jobs/a%252Fb", "/api/jobs/a%252Fb"),
            ("/api/jobs/%e4%bd%a0", "/api/jobs/你"),
            ("/api/jobs/a%3Fb%23", "/api/jobs/a%3Fb%23"),
            ("//api///v0//tasks", "/api/v0/tasks"),
            ("/api/v0/tasks;x=1", "/api/v0/tasks;x=1"),
            ("/api%5cjobs%00%7f", "/api\\jobs\0\u{7f}"),
        ] {
            assert_eq!(path(sent), normal, "{sent}");
        }
    }

    #[test]
    fn what_is_no_escape_or_not_utf8_stays_as_it_is() {
        // Beside each, what `yarl.URL(sent).path_safe` says; a bare `%` is `%25` to the module.
        for (sent, normal) in [
            ("/a%ff%61pi", "/a%FFapi"),
            ("/a%c3%61", "/a%C3a"),
            ("/%e4%bd%61", "/%E4%BDa"),
            ("/%ed%a0%80x", "/%ED%A0%80x"),
            ("/%c0%ae", "/%C0%AE"),
            ("/%", "/%25"),
            ("/%2", "/%252"),
            ("/%zz", "/%25zz"),
            ("/%%32F", "/%252F"),
            ("/%2%35", "/%2525"),
        ] {
            assert_eq!(path(sent), normal, "{sent}");
        }
    }

    #[test]
    fn dot_segments_have_a_second_reading() {
        // As `yarl.URL("http://ray" + sent).path_safe` has them.
        for (sent, resolved) in [
            ("/api/jobs/.", Some("/api/jobs/")),
            ("/api/jobs/%2e", Some("/api/jobs/")),
            ("/api/jobs/..", Some("/api/")),
            ("/a/.%2E/b", Some("/b")),
            ("/../../x", Some("/x")),
            ("/a//../b", Some("/a/b")),
            ("/a/./b//c", Some("/a/b/c")),
            ("/..%2fx", None),
            ("/a/..;/x", None),
            ("/a..b/c.", None),
        ] {
            assert_eq!(normalise(sent).resolved.as_deref(), resolved, "{sent}");
        }
    }

    #[test]
    fn serve_decodes_everything_once_and_slashes_are_merged() {
        for (sent, decoded) in [
            ("/llm%2Fv1%2fchat", "/llm/v1/chat"),
            ("/a%252Fb%25", "/a%2Fb%"),
            ("//a/../b/%2e", "/a/../b/."),
            ("/llm%2F/v1", "/llm/v1"),
            ("/%/%zz/%e4%bd%a0/%ff", "/%/%zz/你/\u{FFFD}"),
        ] {
            assert_eq!(decode(sent), decoded, "{sent}");
        }
    }

    /// Paths made of the pieces that matter.
    fn tricky_path() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "/", "//", ".", "..", "%2e", "%2E", "%2f", "%2F", "%25", "%", "%%", "2e", "2f", ";", "a", "api",
            "v0", "tasks", "jobs", "%61", "%00", "%5c", "\\", "%c3%a9", "%c3", "%a9", "é", "%3f", "%7B",
            "{x}", " ", "c3",
        ]);
        prop::collection::vec(piece, 0..12).prop_map(|pieces| format!("/{}", pieces.concat()))
    }

    proptest! {
        #[test]
        fn a_normal_form_is_its_own_normal_form(sent in tricky_path()) {
            let normal = path(&sent);
            prop_assert_eq!(&path(&normal), &normal);
            if let Some(resolved) = normalise(&sent).resolved {
                prop_assert_eq!(normalise(&resolved), Normal { path: Cow::Borrowed(&resolved), resolved: None });
            }
        }

        #[test]
        fn no_text_makes_it_panic(sent in "\\PC{0,64}") {
            prop_assert_eq!(path(&path(&sent)), path(&sent));
            let _ = decode(&sent);
        }

        #[test]
        fn escaping_any_letter_changes_nothing(sent in "(/[a-z0-9_]{1,8}){1,5}/?", seed in any::<u64>()) {
            let escaped: String = sent.bytes().enumerate().map(|(i, byte)| {
                if byte != b'/' && seed >> (i % 64) & 1 == 1 { format!("%{byte:02x}") } else { char::from(byte).to_string() }
            }).collect();
            prop_assert_eq!(path(&escaped), sent.clone());
            prop_assert_eq!(decode(&escaped), sent);
        }
    }
}
