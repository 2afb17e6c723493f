//! Two requests: whether they are equal enough to share an answer.
//!
//! The first line is the target, each other one `name: value`; a line of a dash parts them.
#![no_main]

use http::Uri;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use rayguard::proxy::coalesce::{
    Key, PER_CLIENT, PER_CLIENT_PREFIXES, PER_HANDSHAKE, PER_REQUEST, PER_REQUEST_PREFIXES, PER_SOFTWARE,
};
use std::collections::BTreeMap;

struct Asked {
    uri: Uri,
    headers: HeaderMap,
}

fn read(text: &str) -> Option<Asked> {
    let mut lines = text.lines();
    let uri = lines.next()?.parse().ok()?;
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(": ")?;
        headers.append(name.parse::<HeaderName>().ok()?, HeaderValue::from_str(value).ok()?);
    }
    Some(Asked { uri, headers })
}

/// Headers that are documented not to tell two followers of a log apart.
fn is_left_out(name: &str) -> bool {
    let mut starts = PER_REQUEST_PREFIXES.iter().chain(PER_CLIENT_PREFIXES);
    [PER_REQUEST, PER_CLIENT, PER_HANDSHAKE, PER_SOFTWARE].iter().any(|names| names.contains(&name))
        || starts.any(|start| name.starts_with(start))
}

impl Asked {
    fn key(&self) -> Key {
        Key::of_tail(&self.uri, &self.headers)
    }

    /// All values, in their order, of every header that may matter.
    fn who(&self) -> BTreeMap<&str, Vec<&[u8]>> {
        let names = self.headers.keys().map(HeaderName::as_str).filter(|name| !is_left_out(name));
        let values = |name: &str| self.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
        names.map(|name| (name, values(name))).collect()
    }
}

fuzz_target!(|text: &str| {
    let Some((one, other)) = text.split_once("\n-\n") else { return };
    let (Some(one), Some(other)) = (read(one), read(other)) else { return };
    assert_eq!(one.key(), one.key());
    if one.key() == other.key() {
        let target = |asked: &Asked| asked.uri.path_and_query().map(ToString::to_string);
        assert_eq!(target(&one).unwrap_or("/".into()), target(&other).unwrap_or("/".into()));
        assert_eq!(one.who(), other.who());
    }
});
