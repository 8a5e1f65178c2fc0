//! What the crate fuser cannot carry, looked up in its source: a new version that can would answer by its defaults, the mount would go on
//! as before, and nobody would notice that more is possible.
//!
//! Needs cargo, and the sources that the build itself was made from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where it is listed what programs see instead.
const LISTED: &str = "docs/semantics.md (What differs from the filesystem below)";

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The version that `Cargo.lock` names.
fn locked() -> String {
    let lock: toml::Table = read(root().join("Cargo.lock")).parse().unwrap();
    let packages = lock["package"].as_array().unwrap().iter();
    let versions: Vec<_> = packages
        .filter(|package| package["name"].as_str() == Some("fuser"))
        .map(|package| package["version"].as_str().unwrap().to_owned())
        .collect();
    let [version] = &versions[..] else { panic!("Cargo.lock has fuser {versions:?}") };
    version.clone()
}

/// The source that the build takes of that version.
fn source(version: &str) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    // Sources for other platforms need not be here.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    cargo.args(["metadata", "--offline", "--locked", "--format-version", "1", "--filter-platform", &platform]);
    cargo.current_dir(root());
    let output = cargo.output().expect("cargo");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|package| package["name"] == "fuser" && package["version"] == version);
    let manifest = package.unwrap_or_else(|| panic!("no fuser {version}"))["manifest_path"].as_str().unwrap();
    Path::new(manifest).parent().unwrap().join("src")
}

/// All of its source, by file.
fn files(source: &Path) -> Vec<(PathBuf, String)> {
    let (mut found, mut open) = (Vec::new(), vec![source.to_owned()]);
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((path.clone(), read(&path)));
            }
        }
    }
    found
}

/// From `begin` to the first `end` after it.
fn between<'a>(text: &'a str, begin: &str, end: &str) -> &'a str {
    let from =
        text.find(begin).unwrap_or_else(|| panic!("fuser has no {begin:?} any more: see whether {LISTED} holds"));
    let rest = &text[from..];
    &rest[..rest.find(end).unwrap_or(rest.len())]
}

/// What fuser can carry that the document says it cannot.
fn carried(lib: &str, abi: &str, rest: &[(PathBuf, String)]) -> Vec<String> {
    let mut found = Vec::new();
    let operations = between(lib, "pub trait Filesystem", "\n}\n");
    let requests = between(abi, "enum fuse_opcode", "\n}\n");
    for (method, request) in [("tmpfile", "FUSE_TMPFILE"), ("statx", "FUSE_STATX"), ("syncfs", "FUSE_SYNCFS")] {
        if operations.contains(&format!("fn {method}(")) {
            found.push(format!("Filesystem::{method}"));
        }
        if requests.contains(request) {
            found.push(request.to_owned());
        }
    }
    // A lock request tells flock(2) from fcntl(2) by its flags only.
    for method in ["getlk", "setlk"] {
        if between(operations, &format!("fn {method}("), ")").contains("flag") {
            found.push(format!("flags of Filesystem::{method}"));
        }
    }
    let passes = rest.iter().filter(|(_, text)| text.contains("lk_flags") || text.contains("FUSE_LK_FLOCK"));
    found.extend(passes.map(|(path, _)| format!("flags of locks, used in {}", path.display())));
    found
}

#[test]
fn what_fuser_cannot_carry_it_cannot_carry_yet() {
    let version = locked();
    let source = source(&version);
    let (lib, abi) = (source.join("lib.rs"), source.join("ll/fuse_abi.rs"));
    // The layout of the kernel's messages has the flags; the bindings of libfuse, which is not linked, have everything.
    let rest: Vec<_> =
        files(&source).into_iter().filter(|(path, _)| *path != abi && !path.ends_with("mnt/fuse3_sys.rs")).collect();
    assert!(rest.len() > 20, "only {} files in {}", rest.len(), source.display());
    let found = carried(&read(&lib), &read(&abi), &rest);
    assert!(
        found.is_empty(),
        "fuser {version} has what {LISTED} says it cannot carry: {found:?}. Use it, or say why not."
    );
    let text = read(root().join("docs/semantics.md"));
    let (major, minor) = (version.split('.').next().unwrap(), version.split('.').nth(1).unwrap());
    assert!(
        text.contains(&format!("the crate fuser {major}.{minor})")),
        "fuser is {version} now: read what it brought, and name it in {LISTED}"
    );
}

/// A lock's flags would be passed on as another argument, a new operation as another method.
#[test]
fn the_checker_itself_sees_what_comes() {
    let lib = "pub trait Filesystem {\n    fn getlk(&self, typ: i32) {}\n    fn setlk(&self, typ: i32) {}\n}\n";
    let abi = "pub enum fuse_opcode {\n    FUSE_LOOKUP = 1,\n}\n";
    let check = |lib: &str, abi: &str, rest: &str| carried(lib, abi, &[(PathBuf::from("x.rs"), rest.to_owned())]);
    assert_eq!(check(lib, abi, "fn other() {}"), [""; 0]);
    for method in ["tmpfile", "statx", "syncfs"] {
        let more = lib.replace("    fn getlk", &format!("    fn {method}(&self) {{}}\n    fn getlk"));
        assert_eq!(check(&more, abi, ""), [format!("Filesystem::{method}")]);
        let request = format!("FUSE_{}", method.to_uppercase());
        let more = abi.replace("= 1,\n", &format!("= 1,\n    {request} = 51,\n"));
        assert_eq!(check(lib, &more, ""), [request]);
    }
    let more = lib.replace("setlk(&self, typ: i32", "setlk(&self, typ: i32, flags: LockFlags");
    assert_eq!(check(&more, abi, ""), ["flags of Filesystem::setlk"]);
    assert_eq!(check(lib, abi, "self.arg.lk_flags"), ["flags of locks, used in x.rs"]);
}
