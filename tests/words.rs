//! One thing has one word, in code, configuration and documents. Words that had another meaning here once are
//! retired, and this fails where one stands.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What is not said any more, and what is said.
const RETIRED: &[(&str, &str)] = &[
    ("asker", "client"),
    ("askers", "clients"),
    ("besides", "also, but, beside"),
    ("board", "signal store"),
    ("census", "usage"),
    ("crew", "leadership"),
    ("desk", "writer"),
    ("door", "proxy"),
    ("doors", "proxies"),
    ("entrance", "routing"),
    ("entrances", "routing"),
    ("fleet", "replicas"),
    ("fleets", "replicas"),
    ("gate", "admission controller"),
    ("gates", "admission controllers"),
    ("journal", "adjustment log"),
    ("ledger", "adjustment log"),
    ("likeness", "model fit"),
    ("misread", "...Error"),
    ("nobody", "no client, no caller, nothing"),
    ("outlook", "preflight"),
    ("party", "client"),
    ("parties", "clients"),
    ("passage", "request context"),
    ("preamble", "PROXY protocol"),
    ("railed", "clamped"),
    ("rails", "guardrails"),
    ("rival", "baseline"),
    ("rivals", "baselines"),
    ("scribe", "writer"),
    ("sieve", "framing guard"),
    ("steer", "override"),
    ("steering", "override"),
    ("suspicious", "...Error"),
    ("ticket", "permit"),
    ("tickets", "permits"),
    ("tongue", "error format"),
    ("untaken", "...Error"),
    ("voyage", "response state"),
    ("whoever", "the client, the caller, the replica"),
];

/// A line may keep one for a reason that it gives: an earlier name that is still read, or refused by its new name.
const KEPT: [&str; 2] = ["kept:", "serde(alias"];

/// Phrases in which the word means what it means to everybody.
const PHRASES: [&str; 2] = ["third-party", "third party"];

/// Files that say what things were called before, and logs that were written then.
const APART: [&str; 5] = [
    "CHANGELOG.md",
    "src/config/renamed.rs",
    "tests/words.rs",
    "tests/fuzz/found",
    "tests/fuzz/adjustments.jsonl",
];

const ENDS: [&str; 12] =
    ["rs", "md", "toml", "py", "html", "yml", "yaml", "sh", "lua", "service", "json", "jsonl"];

fn files(root: &Path, under: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(root.join(under)).unwrap() {
        let entry = entry.unwrap();
        let path = under.join(entry.file_name());
        let name = entry.file_name().to_string_lossy().into_owned();
        if APART.iter().any(|apart| path == Path::new(apart)) || name == "target" || name == ".git" {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            files(root, &path, found);
        } else if path
            .extension()
            .map_or(path.starts_with(".ci"), |end| ENDS.iter().any(|known| end == *known))
        {
            found.push(path);
        }
    }
}

/// The words of a line, identifiers taken apart: `PartyId`, `party_id` and `PARTY` all say "party". The letter of an
/// escape belongs to no word: `\nparty` says "party" too.
fn words(line: &str) -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    let mut word = String::new();
    let mut before = ' ';
    for c in line.chars().chain([' ']) {
        let c = if before == '\\' && matches!(c, 'n' | 'r' | 't') { ' ' } else { c };
        let ends = !c.is_ascii_alphabetic() || (c.is_ascii_uppercase() && before.is_ascii_lowercase());
        if ends && !word.is_empty() {
            words.insert(std::mem::take(&mut word));
        }
        if c.is_ascii_alphabetic() {
            word.push(c.to_ascii_lowercase());
        }
        before = c;
    }
    words
}

fn retired(line: &str) -> Option<&'static (&'static str, &'static str)> {
    if KEPT.iter().any(|mark| line.contains(mark)) {
        return None;
    }
    let mut line = line.to_owned();
    for phrase in PHRASES {
        while let Some(at) = line.to_ascii_lowercase().find(phrase) {
            line.replace_range(at..at + phrase.len(), " ");
        }
    }
    let words = words(&line);
    RETIRED.iter().find(|(word, _)| words.contains(*word))
}

#[test]
fn no_retired_word_stands_anywhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    files(root, Path::new(""), &mut found);
    assert!(found.len() > 300, "the files are where they should be: {}", found.len());
    let mut wrong = Vec::new();
    for file in &found {
        let Ok(text) = fs::read_to_string(root.join(file)) else { continue };
        for (at, line) in text.lines().enumerate() {
            if let Some((word, instead)) = retired(line) {
                wrong.push(format!(
                    "{}:{}: `{word}` is {instead} here: {}",
                    file.display(),
                    at + 1,
                    line.trim()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_search_sees_identifiers_and_spares_phrases() {
    for line in [
        "let gate = 1;",
        "struct TicketBook;",
        "FLEET_MAX",
        "the ledger's end",
        "open_the_door()",
        "\\nfleet.url",
    ] {
        assert!(retired(line).is_some(), "{line}");
    }
    for line in
        ["gateway", "propagate", "THIRD-PARTY-LICENSES", "indoors", "\"party\" // kept: an earlier name"]
    {
        assert!(retired(line).is_none(), "{line}");
    }
}
