//! `core/` decides and does nothing else. Its Cargo.toml lets in no runtime, network or logger; what the
//! standard library would let in, this reads the sources for.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};

/// What `core` must not name, and why.
const FORBIDDEN: [(&str, &str); 11] = [
    ("std::time::Instant", "the OS clock: take `now: Time`"),
    ("SystemTime", "the OS clock: take `wall: WallMs`"),
    ("std::thread", "threads belong to runtime/"),
    ("std::fs", "files belong to observe/ and config/"),
    ("std::env", "the environment belongs to cli/"),
    ("std::process", "processes belong to cli/"),
    ("std::io", "I/O belongs to the rooms around core"),
    ("std::net::Tcp", "sockets belong to proxy/"),
    ("HashMap", "iteration order must not depend on the run: BTreeMap or Vec"),
    ("HashSet", "iteration order must not depend on the run: BTreeSet or Vec"),
    ("println!", "core prints nothing"),
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            // Examples embed core in a server.
            if !path.ends_with("examples") {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The code of a file: without comments, and without its test module.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]").next().unwrap_or("");
    code.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

/// Whether `word` stands in `code` as a word of its own.
fn names(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        let continues = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let whole_after =
            word.ends_with("::") || word.ends_with('!') || word.ends_with("Tcp") || !continues(after);
        !continues(before) && whole_after
    })
}

#[test]
fn core_is_pure() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/core"), &mut files);
    assert!(files.len() > 20, "the sources are where they should be");
    let mut found = Vec::new();
    for file in &files {
        let code = code(&fs::read_to_string(file).unwrap());
        for (word, why) in FORBIDDEN {
            if names(&code, word) {
                found.push(format!("{}: `{word}`: {why}", file.display()));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_reader_of_this_test_sees_what_is_there() {
    assert!(names("use std::thread;", "std::thread"));
    assert!(!names("println!", "print"));
    assert!(!names(&code("// HashMap in a comment\nlet x = 1;"), "HashMap"));
    assert!(names("let at = std::time::Instant::now();", "std::time::Instant"));
}

#[test]
fn clocks_and_tasks_have_one_room_each() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    for file in files {
        let relative = file.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_string_lossy().into_owned();
        let code = code(&fs::read_to_string(&file).unwrap());
        if !relative.ends_with("proxy/clock.rs") {
            assert!(
                !code.contains("std::time::SystemTime") && !code.contains("std::time::{Instant"),
                "{relative} reads the OS clock"
            );
        }
        if !relative.ends_with("proxy/tasks.rs") {
            assert!(!names(&code, "tokio::spawn"), "{relative} starts tasks; only proxy/tasks.rs may");
        }
    }
}
