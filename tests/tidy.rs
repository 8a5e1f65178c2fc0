//! The shape of the source tree, checked as text: imports go down only, `unsafe` stays in `lower/`, every file says what it
//! owns, and none grows without end.
//!
//! The floors are those of `docs/architecture.md`. Siblings of one floor do not import each other: they meet through
//! `types` and `ports`.

use std::fs;
use std::path::{Path, PathBuf};

/// Each top-level module and its floor.
const FLOORS: [(&str, u32); 24] = [
    ("types", 0),
    ("kill", 0),
    ("admission", 1),
    ("peer", 1),
    ("record", 1),
    ("tier", 1),
    ("tree", 1),
    ("ports", 2),
    ("lower", 3),
    ("remote", 3),
    ("journal", 3),
    ("engine", 4),
    ("pair", 4),
    ("capture", 4),
    ("catalog", 4),
    ("cluster", 4),
    ("fs", 5),
    ("rebuild", 5),
    ("sync", 5),
    ("fuse", 6),
    ("gateway", 6),
    ("control", 6),
    ("cli", 7),
    // The binary only calls the library.
    ("main", 8),
];

/// Lines after which a file is two files.
const LINES_MAX: usize = 600;

fn floor(module: &str) -> Option<u32> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

fn sources(directory: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// Module path of a source file: `src/pair/store.rs` → `["pair", "store"]`, `src/pair/mod.rs` → `["pair"]`.
fn module_path(file: &Path) -> Vec<String> {
    let below = file.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap().with_extension("");
    let mut parts: Vec<_> = below.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    parts
}

/// The code without comments: `//` to the end of a line, where it is not inside a string such as a URL.
fn code(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let trimmed = line.trim_start();
        if !trimmed.starts_with("//") {
            out.push_str(line.split(" // ").next().unwrap_or(line));
        }
        out.push('\n');
    }
    out
}

/// Names that follow every occurrence of `root` (`crate::`, `super::super::`), `{a::x, b}` groups included.
fn names_after(code: &str, root: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices(root) {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &code[at + root.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut start = true;
            for (i, c) in group.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => start = true,
                    c if c.is_whitespace() => {}
                    _ if start => {
                        names.push(identifier(&group[i..]));
                        start = false;
                    }
                    _ => {}
                }
            }
        } else {
            names.push(identifier(rest));
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// What a file at `module` may not import, as `importer → imported`.
fn upward_imports(module: &[String], text: &str) -> Vec<String> {
    let own = &module[0];
    let own_floor = floor(own).unwrap_or_else(|| panic!("module {own} has no floor: give it one in tests/tidy.rs"));
    let code = code(text);
    let mut used = names_after(&code, "crate::");
    if own == "main" {
        used.extend(names_after(&code, "tierfs::"));
    }
    // Enough `super::` lead to the root as well; an inline test module needs one more.
    let supers = "super::".repeat(module.len());
    used.extend(names_after(&code, &supers));
    used.sort();
    used.dedup();
    used.into_iter()
        .filter(|name| name != own && floor(name).is_some_and(|other| other >= own_floor))
        .map(|name| format!("{} → {name}", module.join("::")))
        .collect()
}

#[test]
fn imports_go_down_only() {
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        let module = module_path(&path);
        if module == ["lib"] {
            continue;
        }
        wrong.extend(upward_imports(&module, &text));
    }
    assert!(wrong.is_empty(), "imports that do not go down a floor: {wrong:#?}");
}

#[test]
fn every_module_of_the_crate_has_a_floor() {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    for line in lib.lines() {
        if let Some(name) =
            line.trim().trim_start_matches("pub ").strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';'))
        {
            assert!(floor(name).is_some(), "module {name} has no floor: give it one in tests/tidy.rs");
        }
    }
}

#[test]
fn unsafe_stays_in_lower() {
    let words = [
        "unsafe {",
        "unsafe fn",
        "unsafe impl",
        "unsafe extern",
        "unsafe trait",
        "allow(unsafe_code",
        "expect(unsafe_code",
    ];
    for (path, text) in sources("src") {
        if module_path(&path)[0] == "lower" {
            continue;
        }
        let code = code(&text);
        for word in words {
            assert!(!code.contains(word), "{}: {word:?} outside lower/", path.display());
        }
    }
}

#[test]
fn every_file_says_what_it_owns_and_stays_readable() {
    for directory in ["src", "tests", "benches"] {
        for (path, text) in sources(directory) {
            assert!(text.starts_with("//!"), "{} does not start with //!", path.display());
            let lines = text.lines().count();
            assert!(lines <= LINES_MAX, "{} has {lines} lines: split it (at most {LINES_MAX})", path.display());
        }
    }
}

#[test]
fn the_checker_itself_sees_upward_imports() {
    let check = |module: &str, text: &str, want: usize| {
        let module: Vec<_> = module.split("::").map(str::to_owned).collect();
        let found = upward_imports(&module, text);
        assert_eq!(found.len(), want, "{text:?}: {found:?}");
    };
    check("pair::store", "use crate::types::PairName;", 0);
    check("pair::store", "use crate::pair::file;", 0);
    check("pair::store", "use crate::cli::X;", 1);
    check("pair::store", "use crate::engine::X;", 1);
    check("pair::store", "use crate::{types::X, cli::{A, fuse}, control};", 2);
    check("pair::store", "fn f() { crate::fuse::mount(); }", 1);
    check("pair::store", "// use crate::cli::X;\nlet a = b; // crate::cli::x", 0);
    check("pair::store", "use super::super::cli::X;", 1);
    check("pair", "use super::control::X;", 1);
    check("main", "tierfs::cli::main()", 0);
    check("cli", "use crate::fuse::X; use crate::control::Y;", 0);
}
