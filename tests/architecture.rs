//! The shape of the source, asserted: who imports whom, what the pure part may name, how long
//! things may be. ARCHITECTURE.md says why; this file says when it stops being true.

#[path = "architecture/scan.rs"]
mod scan;

use std::collections::BTreeSet;
use std::path::Path;

use scan::{Source, sources};

/// A unit imports only from units of lower rows; units of one row never import each other.
const LAYERS: &[&[&str]] = &[
    &["pb", "logger", "vfs", "zoo"],
    &["types"],
    &["error"],
    &["config", "status", "reply"],
    &["store", "log", "snapshot"],
    &["transport"],
    &["log::memory", "log::wal", "snapshot::dir", "transport::memory"],
    &["node", "offline"],
    &["driver", "transport::grpc"],
    &["mailbox"],
    &["raft"],
    &["testing"],
];

/// `(unit, what it never knows although the table would let it)`.
const NEVER_KNOWS: &[(&str, &[&str])] = &[
    ("node", &["store", "vfs", "snapshot", "snapshot::dir", "log::memory", "log::wal"]),
    ("node", &["transport", "transport::memory"]),
    ("offline", &["store", "transport", "transport::memory", "log::memory"]),
    ("driver", &["log::memory", "log::wal", "transport::memory"]),
    ("mailbox", &["log::memory", "log::wal", "transport::memory", "transport::grpc"]),
    ("transport::grpc", &["store", "log", "log::memory", "log::wal", "node"]),
    ("transport::memory", &["store", "log", "vfs"]),
];

/// Where the engine may be named: an upgrade of it touches these places.
const ENGINE: &[&str] = &["node", "log", "logger", "types"];
/// Where its messages may be named beside those.
const ENGINE_MESSAGES: &[&str] = &["transport::convert", "transport::grpc::codec"];

/// What `node` must not name: clocks, tasks, files, sockets, and orders that differ between runs.
const IMPURE: &[&str] = &[
    "tokio",
    "Instant",
    "SystemTime",
    "std::fs",
    "std::net",
    "std::thread",
    "std::env",
    "std::process",
    "RandomState",
    "HashMap",
    "HashSet",
    "rand",
    "getrandom",
    "thread_rng",
];

/// What no code outside of tests may say.
const FORBIDDEN: &[&str] = &["todo!", "unimplemented!", "dbg!", "panic!", "println!", "eprintln!"];
/// Words that no type is named after: they say nothing.
const EMPTY_NAMES: &[&str] = &["Manager", "Helper", "Util", "Inner"];

const MAX_FILE_LINES: usize = 500;
const MAX_FUNCTION_LINES: usize = 70;

fn row_of(unit: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&unit))
}

/// The unit that a module path falls into: the longest row entry that is a prefix of it.
fn unit_of(path: &[String]) -> Option<String> {
    (1..=path.len()).rev().map(|n| path[..n].join("::")).find(|unit| row_of(unit).is_some())
}

/// What is wrong with the imports of one file.
fn layer_faults(source: &Source, modules: &BTreeSet<Vec<String>>) -> Vec<String> {
    if source.module.is_empty() {
        return Vec::new();
    }
    let Some(unit) = unit_of(&source.module) else {
        return vec![format!("{}: not in the layer table", source.name)];
    };
    let row = row_of(&unit).unwrap_or(0);
    let mut faults = Vec::new();
    for path in source.imports(modules) {
        let text = path.join("::");
        let Some(target) = unit_of(&path) else {
            faults.push(format!("{}: imports crate::{text}, which no row has", source.name));
            continue;
        };
        if target == unit {
            continue;
        }
        if row_of(&target).is_none_or(|other| other >= row) {
            faults.push(format!("{}: {unit} must not import {target} ({text})", source.name));
        }
        let known = NEVER_KNOWS.iter().filter(|(who, _)| *who == unit);
        if known.clone().any(|(_, what)| what.contains(&target.as_str())) {
            faults.push(format!("{}: {unit} never knows {target} ({text})", source.name));
        }
    }
    faults
}

fn naming_faults(source: &Source, word: &str, homes: &[&str]) -> Vec<String> {
    let module = source.module.join("::");
    let home = homes.iter().any(|h| module == *h || module.starts_with(&format!("{h}::")));
    if home || !source.names(word) {
        return Vec::new();
    }
    vec![format!("{}: names {word}; only {homes:?} may", source.name)]
}

fn purity_faults(source: &Source) -> Vec<String> {
    if source.module.first().is_none_or(|m| m != "node") {
        return Vec::new();
    }
    let impure = IMPURE.iter().filter(|word| source.names(word));
    impure.map(|word| format!("{}: node is pure and must not name {word}", source.name)).collect()
}

fn word_faults(source: &Source) -> Vec<String> {
    let mut faults = Vec::new();
    // Suites for tests fail the way tests do.
    let suite = source.module.first().is_some_and(|m| m == "testing");
    for word in FORBIDDEN.iter().filter(|word| !suite && source.names(word)) {
        faults.push(format!("{}: says {word}", source.name));
    }
    for name in source.declared_types() {
        if EMPTY_NAMES.iter().any(|empty| name.contains(empty)) {
            faults.push(format!("{}: the name {name} says nothing", source.name));
        }
    }
    for name in source.functions().into_iter().map(|f| f.name) {
        if name.starts_with("get_") {
            faults.push(format!("{}: {name}: a getter is named after what it gives", source.name));
        }
    }
    faults
}

fn length_faults(source: &Source) -> Vec<String> {
    let mut faults = Vec::new();
    if source.lines() > MAX_FILE_LINES {
        faults.push(format!("{}: {} lines", source.name, source.lines()));
    }
    for f in source.all_functions().into_iter().filter(|f| f.lines > MAX_FUNCTION_LINES) {
        faults.push(format!("{}:{}: fn {} has {} lines", source.name, f.line, f.name, f.lines));
    }
    faults
}

fn assert_clean(faults: Vec<String>) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

fn library() -> Vec<Source> {
    let found = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert!(found.len() > 20, "the sources were not found");
    found
}

#[test]
fn every_file_imports_from_lower_rows_only() {
    let sources = library();
    let modules = sources.iter().map(|s| s.module.clone()).collect();
    assert_clean(sources.iter().flat_map(|s| layer_faults(s, &modules)).collect());
}

#[test]
fn the_table_is_the_one_that_people_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let text = std::fs::read_to_string(path).expect("ARCHITECTURE.md");
    let written: Vec<_> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    for (n, row) in LAYERS.iter().enumerate() {
        let number = n.to_string();
        let wanted: Vec<_> = [number.as_str()].into_iter().chain(row.iter().copied()).collect();
        assert!(written.contains(&wanted), "ARCHITECTURE.md lacks the row {wanted:?}");
    }
}

#[test]
fn every_unit_of_the_table_exists() {
    let sources = library();
    for unit in LAYERS.iter().copied().flatten() {
        let exists = sources.iter().any(|s| s.module.join("::") == *unit);
        assert!(exists, "the table names {unit}, which is not there");
    }
}

#[test]
fn node_is_pure() {
    assert_clean(library().iter().flat_map(purity_faults).collect());
}

#[test]
fn the_engine_is_named_in_few_places() {
    let sources = library();
    let messages = [ENGINE, ENGINE_MESSAGES].concat();
    let engine = sources.iter().flat_map(|s| naming_faults(s, "raft_rs", ENGINE));
    let eraftpb = sources.iter().flat_map(|s| naming_faults(s, "eraftpb", &messages));
    assert_clean(engine.chain(eraftpb).collect());
}

#[test]
fn no_forbidden_word_is_said() {
    assert_clean(library().iter().flat_map(word_faults).collect());
}

#[test]
fn files_and_functions_are_short() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let all = ["src", "tests", "examples", "benches"].map(|dir| sources(&root.join(dir)));
    assert_clean(all.iter().flatten().flat_map(length_faults).collect());
}

#[test]
fn no_test_waits_by_the_clock_or_is_skipped() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut faults = Vec::new();
    for source in sources(&root.join("tests")).into_iter().chain(library()) {
        for word in ["thread::sleep", "#[ignore"] {
            if source.all_code().contains(word) {
                faults.push(format!("{}: {word}", source.name));
            }
        }
    }
    assert_clean(faults);
}

/// Every rule fails on a text that breaks it: a rule that cannot fail is no rule.
mod rules_can_fail {
    use super::*;

    fn file(module: &str, text: &str) -> Source {
        let module = module.split("::").map(str::to_owned).collect();
        Source::new("a.rs".to_owned(), module, text)
    }

    fn layers(module: &str, text: &str) -> Vec<String> {
        let modules = ["log", "log::wal", "log::memory", "node", "node::gate"]
            .map(|m| m.split("::").map(str::to_owned).collect());
        layer_faults(&file(module, text), &BTreeSet::from(modules))
    }

    #[test]
    fn upward_imports_are_found_in_every_spelling() {
        assert!(layers("node", "use crate::log::LogBatch; use crate::{error::Error};").is_empty());
        for text in [
            "use crate::driver::inbox::Inbox;",
            "use crate::{types::Index, driver};",
            "use crate::{types::{Index, Term}, raft::{Raft}};",
            "fn f() { crate::mailbox::open() }",
            "use super::raft::Raft;",
            "use crate::store::Store;",
            "use crate::Error;",
        ] {
            assert_eq!(layers("node", text).len().min(1), 1, "{text}");
        }
    }

    #[test]
    fn siblings_and_children_seen_from_above_are_found() {
        assert_eq!(layers("log::wal", "use super::memory::MemoryLog;").len(), 1);
        assert_eq!(layers("log", "pub use wal::Wal;").len(), 1);
        assert_eq!(layers("log", "pub use self::wal::Wal;").len(), 1);
        assert!(layers("log::wal::record", "use super::super::LogBatch;").is_empty());
        assert!(layers("node::gate", "use super::event::Event;").is_empty());
        assert_eq!(layers("surprise", "").len(), 1);
    }

    #[test]
    fn tests_and_comments_do_not_count() {
        let text = "// use crate::raft::Raft;\n#[cfg(test)]\nmod tests { use crate::raft::Raft; }";
        assert!(layers("node", text).is_empty());
        assert!(layers("node", "const A: &str = \"crate::raft\";").is_empty());
    }

    #[test]
    fn impurity_words_and_lengths_are_found() {
        assert_eq!(
            purity_faults(&file("node::reads", "let t = std::time::Instant::now();")).len(),
            1
        );
        assert_eq!(purity_faults(&file("node", "use std::fs;")).len(), 1);
        assert!(purity_faults(&file("node", "let instant = brand;")).is_empty());
        assert_eq!(naming_faults(&file("driver", "raft_rs::RawNode"), "raft_rs", ENGINE).len(), 1);
        assert!(naming_faults(&file("node::gate", "raft_rs::X"), "raft_rs", ENGINE).is_empty());
        assert_eq!(
            word_faults(&file("raft", "struct PeerManager; fn get_x() { panic!() }")).len(),
            3
        );
        let body = "x;\n".repeat(MAX_FUNCTION_LINES);
        assert_eq!(length_faults(&file("raft", &format!("fn f() {{\n{body}}}"))).len(), 1);
        assert_eq!(length_faults(&file("raft", &"\n".repeat(MAX_FILE_LINES + 2))).len(), 1);
    }
}
