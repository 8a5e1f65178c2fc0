//! Whole commands on a tree of small files, as people use a share: unpacking, searching, git, a build.
//!
//! Each side has a copy of its own. Rates are of whole commands, their start included.

use std::fs;
use std::path::Path;
use std::time::Instant;

use super::metadata::drop_caches;
use super::report::Report;
use super::rig::{self, Result, Target, said};
use super::sides::{Side, Sides};

/// Files of the tree: 200 directories of 20.
const DIRECTORIES: usize = 200;
const FILES_EACH: usize = 20;
/// Modules of the crate that is built.
const MODULES: usize = 30;

/// Makes the tree's archive and the crate in `share`.
pub fn prepare(share: &Path) -> Result<()> {
    let tree = share.join("tree");
    let mut noise = blake3::Hasher::new().finalize_xof();
    for directory in 0..DIRECTORIES {
        let directory = tree.join(format!("part-{:02}", directory / 20)).join(format!("module-{directory:03}"));
        fs::create_dir_all(&directory).map_err(said("tree"))?;
        for file in 0..FILES_EACH {
            // 1 to 16 KiB, as source files are.
            let mut content = vec![0; 1024 + (file * 773) % 15_360];
            noise.fill(&mut content);
            fs::write(directory.join(format!("source-{file:02}.txt")), content).map_err(said("tree"))?;
        }
    }
    rig::run(rig::command("tar").current_dir(share).args(["-cf", "tree.tar", "tree"]))?;
    let package = share.join("package");
    fs::create_dir_all(package.join("src")).map_err(said("package"))?;
    fs::write(
        package.join("Cargo.toml"),
        "[package]\nname = \"built\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n",
    )
    .map_err(said("package"))?;
    let mut main = String::new();
    for n in 0..MODULES {
        let body = format!(
            "#[derive(Debug, Clone, PartialEq, Default)]\npub struct S{n} {{ pub a: u64, pub b: String, pub c: Vec<u8> }}\n\
             pub fn f(x: &S{n}) -> String {{ format!(\"{{x:?}} {{}}\", x.a.wrapping_mul({n})) }}\n"
        );
        fs::write(package.join(format!("src/m{n}.rs")), body).map_err(said("package"))?;
        main.push_str(&format!("mod m{n};\n"));
    }
    main.push_str("fn main() {\n");
    for n in 0..MODULES {
        main.push_str(&format!("    println!(\"{{}}\", m{n}::f(&m{n}::S{n}::default()));\n"));
    }
    fs::write(package.join("src/main.rs"), main + "}\n").map_err(said("package"))
}

/// Commands per second of `command`.
fn per_second(command: &mut std::process::Command) -> std::io::Result<f64> {
    let began = Instant::now();
    rig::run(command).map_err(std::io::Error::other)?;
    Ok(1.0 / began.elapsed().as_secs_f64())
}

fn git(directory: &Path, arguments: &[&str]) -> std::process::Command {
    let mut git = rig::command("git");
    git.current_dir(directory).env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    git.args(["-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "safe.directory=*"]).args(arguments);
    git
}

fn find(directory: &Path) -> std::process::Command {
    let mut find = rig::command("find");
    find.arg(directory).args(["-printf", "%s %p\\n"]);
    find
}

/// Unpacks the tree and removes it again.
fn unpack(sides: &Sides, side: &Side) -> std::io::Result<Vec<f64>> {
    let home = side.home();
    let archive = sides.below.path.join("tree.tar");
    let unpacked = per_second(rig::command("tar").arg("-xf").arg(archive).arg("-C").arg(&home))?;
    let removed = per_second(rig::command("rm").arg("-r").arg(home.join("tree")))?;
    Ok(vec![unpacked, removed])
}

/// A command warm (it has just been run) and cold.
fn warm_and_cold(sides: &Sides, mut command: impl FnMut() -> std::process::Command) -> std::io::Result<Vec<f64>> {
    per_second(&mut command())?;
    let warm = per_second(&mut command())?;
    drop_caches(&sides.below)?;
    // The program itself is not what is cold.
    rig::run(rig::command(&command().get_program().to_string_lossy()).arg("--version"))
        .map_err(std::io::Error::other)?;
    Ok(vec![warm, per_second(&mut command())?])
}

/// Measures every command and adds its rows.
pub fn measure(sides: &Sides, samples: usize, report: &mut Report) -> Result<()> {
    let samples = samples.div_ceil(3);
    let rows = [("tar x, 4,000 files", "/s", Target::Ahead), ("rm -r, 4,000 files", "/s", Target::Ahead)];
    sides.measure(&rows, samples, true, report, |side, _| unpack(sides, side))?;
    let rows = [("find, 4,000 files, warm", "/s", Target::Ahead), ("find, 4,000 files, cold", "/s", Target::Ahead)];
    sides.measure(&rows, samples, false, report, |side, _| warm_and_cold(sides, || find(&side.root.join("tree"))))?;
    for side in &sides.all {
        let repository = side.home().join("repository");
        rig::run(rig::command("cp").arg("-r").arg(side.root.join("tree")).arg(&repository))?;
        rig::run(&mut git(&repository, &["init", "-q"]))?;
        rig::run(&mut git(&repository, &["add", "."]))?;
        rig::run(&mut git(&repository, &["commit", "-q", "-m", "all"]))?;
    }
    // git reads again what is younger than its index.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    for side in &sides.all {
        rig::run(&mut git(&side.home().join("repository"), &["status", "--short"]))?;
    }
    let rows = [("git status, warm", "/s", Target::Ahead), ("git status, cold", "/s", Target::Ahead)];
    sides.measure(&rows, samples, false, report, |side, _| {
        let repository = side.home().join("repository");
        warm_and_cold(sides, || git(&repository, &["status", "--short"]))
    })?;
    for side in &sides.all {
        rig::run(rig::command("cp").arg("-r").arg(side.root.join("package")).arg(side.home()))?;
    }
    sides.measure(&[("cargo build", "/s", Target::Ahead)], samples.min(4), true, report, |side, _| {
        let package = side.home().join("package");
        let mut cargo = rig::command("cargo");
        cargo.current_dir(&package).args(["build", "--offline", "--quiet", "--target-dir"]).arg(package.join("target"));
        cargo.env_remove("RUSTFLAGS").env_remove("CARGO_TARGET_DIR");
        let rate = per_second(&mut cargo)?;
        fs::remove_dir_all(package.join("target"))?;
        Ok(vec![rate])
    })
}
