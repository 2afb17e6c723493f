//! A request's path and headers: which class is it of, and who asks?
//!
//! Method, path, query and each header, a line each.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rayguard_config::Overrides;
use rayguard_core::request::catalogue::Surface;
use rayguard_core::request::classify::Classifier;
use rayguard_core::request::facts::{Facts, Headers};
use rayguard_core::request::identify::Identifier;
use rayguard_core::request::path::{decode, normalise};
use std::borrow::Cow;
use std::sync::LazyLock;

static READERS: LazyLock<([Classifier; 2], Identifier)> = LazyLock::new(|| {
    let policy = rayguard_config::parse("", "fuzz.toml", &Overrides::default()).unwrap().policy;
    let classifier = |surface| Classifier::new(&policy, surface, &[]).unwrap();
    let trusted = vec!["127.0.0.0/8".parse().unwrap()];
    let identifier = Identifier::new([1, 2], trusted, vec!["x-forwarded-user".into()])
        .with_keys("x-rayguard-key".into(), vec![[7; 32]]);
    ([classifier(Surface::Dashboard), classifier(Surface::Serve)], identifier)
});

/// Header lines, `name: value`.
struct Lines<'a>(Vec<(&'a str, &'a [u8])>);

impl<'a> Lines<'a> {
    fn read(lines: impl Iterator<Item = &'a [u8]>) -> Lines<'a> {
        let line = |line: &'a [u8]| {
            let colon = line.iter().position(|&byte| byte == b':')?;
            Some((str::from_utf8(&line[..colon]).ok()?, line[colon + 1..].trim_ascii()))
        };
        Lines(lines.filter_map(line).collect())
    }

    fn values(&self, name: &str) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        self.0.iter().filter(move |line| line.0 == name).map(|line| line.1)
    }
}

impl Headers for Lines<'_> {
    fn get(&self, name: &str) -> Option<&[u8]> {
        self.values(name).next()
    }
    fn nth_back(&self, name: &str, n: usize) -> Option<&[u8]> {
        self.values(name).rev().nth(n)
    }
}

/// Normal forms are their own normal forms, whatever was sent, and so is the second reading.
fn check_forms(path: &str) {
    let normal = normalise(path);
    assert_eq!(normalise(&normal.path).path, normal.path);
    if let Some(resolved) = &normal.resolved {
        let again = normalise(resolved);
        assert!(again.path == *resolved && again.resolved.is_none(), "{resolved}");
    }
    if !path.contains('%') && !path.contains("//") {
        assert!(matches!(decode(path), Cow::Borrowed(_)));
    }
}

fuzz_target!(|bytes: &[u8]| {
    let (classifiers, identifier) = &*READERS;
    let mut lines = bytes.split(|&byte| byte == b'\n');
    let mut next = || String::from_utf8_lossy(lines.next().unwrap_or_default());
    let (method, path, query) = (next(), next(), next());
    let headers = Lines::read(lines);
    if path.starts_with('/') {
        check_forms(&path);
    }
    let mut facts = Facts {
        method: &method,
        path: &path,
        query: &query,
        address: [127, 0, 0, 1].into(),
        headers: &headers,
        upgrade: false,
        grpc: false,
    };
    for (upgrade, grpc) in [(false, false), (true, false), (false, true)] {
        (facts.upgrade, facts.grpc) = (upgrade, grpc);
        for classifier in classifiers {
            let found = classifier.classify(&facts);
            assert!(found.route.index() < classifier.route_count());
        }
    }
    assert_eq!(identifier.identify(&facts), identifier.identify(&facts));
    let _ = (identifier.client_address(&facts), identifier.session(&facts), identifier.holds_key(&facts));
});
