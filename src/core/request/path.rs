//! Which path does Ray see? The normal form in which paths are classified.
//!
//! Only the class depends on it: what is forwarded is the path as sent, byte for byte. A
//! request must not reach an expensive endpoint under a cheap class, so the normal form
//! follows what Ray's two routers do one after the other (aiohttp 3.14, yarl 1.25):
//!
//! - The dashboard matches `URL.path_safe`: every `%XX` decoded except `%2F` and `%25`,
//!   nothing merged, dot segments left alone, case kept, `;` an ordinary character.
//! - It then asks the module for the same path through aiohttp's client, which requotes it
//!   and *does* resolve dot segments. `GET /api/jobs/.` is one job to the dashboard and the
//!   list of all jobs to the module behind it.
//!
//! So: escapes are decoded once; `%2F`, `%25` (and `%3F`, `%23`, which can be part of no
//! route) stay escapes, in upper case. Runs of slashes are merged: Ray answers 404 to them,
//! and whatever stands between us and Ray and merges them too gains nothing by it. Where the
//! routers disagree, or where no honest client would write such a path, there is no guess
//! but [`Suspicious`], which the door answers with 400: dot segments in any disguise, a `%`
//! that begins no escape, control characters, backslashes, bytes that are not UTF-8, and
//! paths longer than the line aiohttp reads.
//!
//! A clean path comes back borrowed. `normalise` is idempotent, which the tests hold it to.

use std::borrow::Cow;

/// The longest path that is looked at, in bytes: aiohttp refuses request lines above 8190.
pub const PATH_LEN_MAX: usize = 8190;

/// Why a path is refused instead of classified. Never shown to the peer with its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Suspicious {
    /// Longer than [`PATH_LEN_MAX`].
    #[error("the path has {len} bytes; Ray reads at most {PATH_LEN_MAX}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// Empty, `*` or an authority.
    #[error("the path does not begin with `/`; send the origin form")]
    NotAbsolute,
    /// `.` or `..` as a segment, plain or escaped.
    #[error("the path has a `.` or `..` segment; send it resolved")]
    DotSegment,
    /// `%` without two hexadecimal digits.
    #[error("the path has a `%` that begins no escape; write `%25`")]
    BarePercent,
    /// NUL, tab, line feed, DEL and their like, plain or escaped.
    #[error("the path has a control character; remove it")]
    Control,
    /// `\`, which some software reads as `/`.
    #[error("the path has a backslash; write `/`")]
    Backslash,
    /// `?` or `#` inside a path: the request line was cut wrongly.
    #[error("the path has an unescaped `?` or `#`; escape it")]
    Delimiter,
    /// Bytes or escapes that are not UTF-8.
    #[error("the path is not UTF-8; escape it as UTF-8")]
    NotUtf8,
}

/// The normal form of a path given as text.
///
/// # Errors
/// [`Suspicious`] when Ray's routers could disagree about the path.
pub fn normalise(path: &str) -> Result<Cow<'_, str>, Suspicious> {
    if path.len() > PATH_LEN_MAX {
        return Err(Suspicious::TooLong { len: path.len() });
    }
    if !path.starts_with('/') {
        return Err(Suspicious::NotAbsolute);
    }
    if is_clean(path.as_bytes()) {
        return Ok(Cow::Borrowed(path));
    }
    let normal = decode(path.as_bytes())?;
    refuse_dot_segments(&normal)?;
    Ok(if normal == path { Cow::Borrowed(path) } else { Cow::Owned(normal) })
}

/// The normal form of a path given as bytes.
///
/// # Errors
/// [`Suspicious`] as for [`normalise`], and for bytes that are not UTF-8.
pub fn normalise_bytes(path: &[u8]) -> Result<Cow<'_, str>, Suspicious> {
    normalise(std::str::from_utf8(path).map_err(|_| Suspicious::NotUtf8)?)
}

/// Whether a path is its own normal form at first sight. `/.` may still be harmless
/// (`/.well-known`), but that is for the slow look to say. No early exit: nearly all paths
/// are clean, and so the comparisons are made many bytes at a time.
#[expect(clippy::needless_bitwise_bool, reason = "a lazy operator is a branch per byte")]
fn is_clean(path: &[u8]) -> bool {
    let dirty = |byte: u8| is_control(byte) | matches!(byte, b'%' | b'\\' | b'?' | b'#');
    let pairs = path.iter().zip(path.get(1..).unwrap_or_default());
    !path.iter().fold(false, |found, &byte| found | dirty(byte))
        && !pairs.fold(false, |found, (&a, &b)| found | ((a == b'/') & ((b == b'/') | (b == b'.'))))
}

/// Decodes escapes once and merges slashes.
fn decode(path: &[u8]) -> Result<String, Suspicious> {
    let mut normal = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [byte, after @ ..] = rest {
        rest = after;
        match *byte {
            b'%' => {
                let [high, low, after @ ..] = rest else { return Err(Suspicious::BarePercent) };
                let (Some(high), Some(low)) = (hex(*high), hex(*low)) else {
                    return Err(Suspicious::BarePercent);
                };
                rest = after;
                match high << 4 | low {
                    b'/' => normal.extend(b"%2F"),
                    b'%' => normal.extend(b"%25"),
                    b'?' => normal.extend(b"%3F"),
                    b'#' => normal.extend(b"%23"),
                    b'\\' => return Err(Suspicious::Backslash),
                    decoded if is_control(decoded) => return Err(Suspicious::Control),
                    decoded => normal.push(decoded),
                }
            }
            b'/' if normal.last() == Some(&b'/') => {}
            b'\\' => return Err(Suspicious::Backslash),
            b'?' | b'#' => return Err(Suspicious::Delimiter),
            plain if is_control(plain) => return Err(Suspicious::Control),
            plain => normal.push(plain),
        }
    }
    String::from_utf8(normal).map_err(|_| Suspicious::NotUtf8)
}

/// Finds `.` and `..` between slashes of either kind, and before `;`, where servers that
/// know path parameters would cut.
fn refuse_dot_segments(normal: &str) -> Result<(), Suspicious> {
    let is_dot = |segment: &str| matches!(segment.split(';').next(), Some("." | ".."));
    if normal.split('/').flat_map(|segment| segment.split("%2F")).any(is_dot) {
        return Err(Suspicious::DotSegment);
    }
    Ok(())
}

fn is_control(byte: u8) -> bool {
    byte < 0x20 || byte == 0x7F
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

    #[test]
    fn a_clean_path_comes_back_borrowed() {
        for path in ["/", "/api/jobs/", "/api/v0/tasks/summarize", "/nodes/é", "/.well-known/x", "/a..b/c."]
        {
            assert!(matches!(normalise(path), Ok(Cow::Borrowed(same)) if same == path), "{path}");
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
        ] {
            assert_eq!(normalise(sent).as_deref(), Ok(normal), "{sent}");
        }
    }

    #[test]
    fn what_the_routers_could_disagree_about_is_refused() {
        use Suspicious::*;
        for (sent, why) in [
            ("/api/jobs/.", DotSegment),
            ("/api/jobs/%2e", DotSegment),
            ("/api/v0/x/%2E%2e/tasks", DotSegment),
            ("/api/v0/x/..;/tasks", DotSegment),
            ("/api/jobs/..%2fx", DotSegment),
            ("/api/jobs/%", BarePercent),
            ("/api/jobs/%2", BarePercent),
            ("/api/jobs/%%32f", BarePercent),
            ("/api/jobs/%zz", BarePercent),
            ("/api/jobs/%00", Control),
            ("/api/jobs/\t", Control),
            ("/api/jobs/%7f", Control),
            ("/api\\jobs", Backslash),
            ("/api%5cjobs", Backslash),
            ("/api/jobs/%c0%ae", NotUtf8),
            ("/api/jobs/%ff", NotUtf8),
            ("/api/jobs/#x", Delimiter),
            ("*", NotAbsolute),
            ("", NotAbsolute),
            ("head:8265", NotAbsolute),
        ] {
            assert_eq!(normalise(sent), Err(why), "{sent}");
        }
        let long = format!("/{}", "a".repeat(PATH_LEN_MAX));
        assert_eq!(normalise(&long), Err(TooLong { len: PATH_LEN_MAX + 1 }));
        assert_eq!(normalise_bytes(b"/\xff"), Err(NotUtf8));
    }

    /// Paths made of the pieces that matter.
    fn tricky_path() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "/", "//", ".", "..", "%2e", "%2E", "%2f", "%2F", "%25", "%", "%%", "2e", "2f", ";", "a", "api",
            "v0", "tasks", "jobs", "%61", "%00", "%5c", "\\", "%c3%a9", "%c3", "é", "?", "#", "%3f", "%7B",
            "{x}", " ",
        ]);
        prop::collection::vec(piece, 0..12).prop_map(|pieces| format!("/{}", pieces.concat()))
    }

    proptest! {
        #[test]
        fn a_normal_form_is_its_own_normal_form(path in tricky_path()) {
            if let Ok(normal) = normalise(&path) {
                prop_assert!(matches!(normalise(&normal), Ok(Cow::Borrowed(same)) if same == normal));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(normal) = normalise_bytes(&bytes) {
                prop_assert!(matches!(normalise(&normal), Ok(Cow::Borrowed(same)) if same == normal));
            }
        }

        #[test]
        fn escaping_any_letter_changes_nothing(path in "(/[a-z0-9_]{1,8}){1,5}/?", seed in any::<u64>()) {
            let escaped: String = path.bytes().enumerate().map(|(i, byte)| {
                if byte != b'/' && seed >> (i % 64) & 1 == 1 { format!("%{byte:02x}") } else { char::from(byte).to_string() }
            }).collect();
            let normal = normalise(&escaped);
            prop_assert_eq!(normal.as_deref(), Ok(path.as_str()));
        }
    }
}
