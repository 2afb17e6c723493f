//! `core/` decides and does nothing else. Its Cargo.toml lets in no runtime, network or logger; what the
//! standard library would let in, this reads the sources for.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
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
    // A line such as `mod some_tests;` is followed by code.
    let is_test = |at: usize| {
        let item = text[at..].lines().find(|line| !line.starts_with("#[")).unwrap_or("");
        item.contains("mod ") && item.ends_with('{')
    };
    let end = text.match_indices("#[cfg(test)]").map(|(at, _)| at).find(|at| is_test(*at));
    let code = &text[..end.unwrap_or(text.len())];
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

/// The files of one crate by their modules' paths.
fn modules(dir: &Path) -> BTreeMap<Vec<String>, String> {
    let mut files = Vec::new();
    sources(dir, &mut files);
    let named = files.iter().filter_map(|file| {
        let inside = file.strip_prefix(dir).unwrap();
        // A crate in a folder of this one, and what is compiled for tests alone.
        let is_other = inside
            .ancestors()
            .skip(1)
            .any(|at| at != Path::new("") && dir.join(at).join("Cargo.toml").exists());
        let mut path: Vec<String> =
            inside.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
        let is_test = path.last().is_some_and(|name| name.ends_with("tests"));
        if matches!(path.last().map(String::as_str), Some("mod" | "lib" | "main")) {
            path.pop();
        }
        (!is_other && !is_test).then(|| (path, code(&fs::read_to_string(file).unwrap())))
    });
    named.collect()
}

/// Every path in the code, as its names; of a `use` with braces each by itself.
fn paths(code: &str) -> Vec<Vec<&str>> {
    let (mut found, mut path, mut trees) = (Vec::new(), Vec::new(), Vec::<Vec<&str>>::new());
    let mut before = "";
    let mut rest = code;
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let length = match first {
            _ if is_word(first) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            ':' if rest.starts_with("::") => 2,
            _ => first.len_utf8(),
        };
        let token = &rest[..length];
        rest = &rest[length..];
        match token {
            " " | "\n" => continue,
            "::" => {}
            "{" if before == "::" => trees.push(std::mem::take(&mut path)),
            _ if is_word(first) && before == "::" => path.push(token),
            _ => {
                found.push(std::mem::take(&mut path));
                if token == "}" {
                    trees.pop();
                } else if is_word(first) && token != "as" && before != "as" {
                    path = trees.last().cloned().unwrap_or_default();
                    path.push(token);
                }
            }
        }
        before = token;
    }
    found.push(path);
    found
}

/// The file that a path leads to, seen from `here`.
fn target(files: &BTreeMap<Vec<String>, String>, here: &[String], path: &[&str]) -> Option<Vec<String>> {
    if path.len() < 2 {
        return None; // as in `pub(super)`
    }
    let ups = path.iter().take_while(|name| **name == "super").count();
    let (base, rest) = match path.first()? {
        &"crate" => (&here[..0], &path[1..]),
        &"super" => (&here[..here.len().checked_sub(ups)?], &path[ups..]),
        &"self" => (here, &path[1..]),
        name if files.contains_key(&[here, &[(*name).to_owned()]].concat()) => (here, path),
        _ => return None,
    };
    let mut whole = [base, &rest.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()].concat();
    while !files.contains_key(&whole) {
        whole.pop()?;
    }
    Some(whole)
}

/// Files that need each other can be read, tested and moved only together. A law and its siblings are what `law` says.
#[test]
fn no_two_files_need_each_other() {
    let law = ["control".to_owned(), "law".to_owned()];
    for dir in ["src", "src/core", "src/config", "src/proxy", "src/sim", "src/lab"] {
        let files = modules(&Path::new(env!("CARGO_MANIFEST_DIR")).join(dir));
        let mut left: BTreeMap<_, BTreeSet<_>> = files
            .iter()
            .map(|(here, code)| {
                let targets = paths(code).into_iter().filter_map(|path| target(&files, here, &path));
                (
                    here,
                    targets.filter(|to| to != here && (*to != law || here.first() != law.first())).collect(),
                )
            })
            .collect();
        // What needs nothing that is left, or is needed by nothing that is left, is in no circle.
        loop {
            let needed: BTreeSet<_> = left.values().flatten().cloned().collect();
            let before = left.len();
            let names: BTreeSet<_> = left.keys().copied().cloned().collect();
            left.retain(|here, needs| needed.contains(*here) && needs.iter().any(|to| names.contains(to)));
            if left.len() == before {
                break;
            }
        }
        let circle = left.iter().map(|(here, needs)| {
            let inside: Vec<_> =
                needs.iter().filter(|to| left.contains_key(to)).map(|to| to.join("::")).collect();
            format!("{} needs {}", here.join("::"), inside.join(", "))
        });
        let circle: Vec<_> = circle.collect();
        assert!(circle.is_empty(), "{dir}: these need each other:\n{}", circle.join("\n"));
    }
}
