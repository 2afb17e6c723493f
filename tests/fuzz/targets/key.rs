//! Two requests: whether they are equal enough to share an answer.
//!
//! The first line is the target, each other one `name: value`; a line of a dash parts them. A target counts as
//! the handler of the tasks' list reads it.
#![no_main]

use http::Uri;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use rayguard_core::request::path::normalise;
use rayguard_core::request::query::{FIELDS_MAX, read_keys};
use rayguard_proxy::coalesce::{
    Key, PER_CLIENT, PER_CLIENT_PREFIXES, PER_HANDSHAKE, PER_REQUEST, PER_REQUEST_PREFIXES, PER_SOFTWARE,
    Question,
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
        Key::of_tail(&Question::by(&self.uri, read_keys("/api/v0/tasks")), &self.headers)
    }

    /// What a handler that is written in Ray's way takes: the first value of one key, all values of another, and whether
    /// there are more pairs than newer ones take.
    fn takes(&self) -> (Option<Vec<u8>>, Vec<Vec<u8>>, bool) {
        let query = self.uri.query().unwrap_or("");
        let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let pairs: Vec<_> = pairs.map(|(name, value)| (decode(name), decode(value))).collect();
        let values =
            |name: &[u8]| pairs.iter().filter(|pair| pair.0 == name).map(|pair| pair.1.clone()).collect();
        let (limits, filters): (Vec<_>, Vec<_>) = (values(b"limit"), values(b"filter_keys"));
        (limits.into_iter().next(), filters, query.split('&').count() > FIELDS_MAX)
    }

    /// All values, in their order, of every header that may matter.
    fn who(&self) -> BTreeMap<&str, Vec<&[u8]>> {
        let names = self.headers.keys().map(HeaderName::as_str).filter(|name| !is_left_out(name));
        let values = |name: &str| self.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
        names.map(|name| (name, values(name))).collect()
    }
}

fn decode(text: &str) -> Vec<u8> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as u8);
    let (mut bytes, mut decoded) = (text.as_bytes(), Vec::new());
    while let [first, rest @ ..] = bytes {
        let escape = match rest {
            [high, low, ..] if *first == b'%' => digit(high).zip(digit(low)),
            _ => None,
        };
        decoded.push(match (escape, first) {
            (Some((high, low)), _) => high << 4 | low,
            (None, b'+') => b' ',
            (None, other) => *other,
        });
        bytes = if escape.is_some() { &rest[2..] } else { rest };
    }
    decoded
}

fuzz_target!(|text: &str| {
    let Some((one, other)) = text.split_once("\n-\n") else { return };
    let (Some(one), Some(other)) = (read(one), read(other)) else { return };
    assert_eq!(one.key(), one.key());
    if one.key() == other.key() {
        assert_eq!(one.takes(), other.takes());
        let tasks = |asked: &Asked| normalise(asked.uri.path()).path == "/api/v0/tasks";
        assert!(one.uri.path() == other.uri.path() || tasks(&one) && tasks(&other));
        assert_eq!(one.who(), other.who());
    }
});
