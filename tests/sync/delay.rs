//! How long it takes until the slave has what the master's users do: measured, not asserted.

use std::fs;
use std::time::{Duration, Instant};

use crate::tools::*;
use crate::two::Two;

/// Changes of each kind, each alone: the next comes when the slave has had this one for a while.
const CHANGES: usize = 200;

/// The slave's share shows it.
fn seen(done: impl Fn() -> bool) -> Duration {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < SOON, "the slave does not have it");
        std::thread::sleep(Duration::from_micros(500));
    }
    begun.elapsed()
}

fn tell(what: &str, mut took: Vec<Duration>) {
    took.sort();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    println!(
        "{what:<24} {:>4}   p50 {:>6.1?}   p90 {:>6.1?}   p99 {:>6.1?}   most {:>6.1?}",
        took.len(),
        at(50),
        at(90),
        at(99),
        at(100)
    );
}

#[test]
#[ignore = "measures; half a minute"]
fn measured() {
    let Some(two) = Two::new() else { return };
    let dir = two.east.mnt("d");
    fs::create_dir(&dir).unwrap();
    two.equal();
    let each = |what: &str, change: &dyn Fn(usize), done: &dyn Fn(usize) -> bool| {
        let mut took = Vec::new();
        for n in 0..CHANGES {
            change(n);
            took.push(seen(|| done(n)));
            // Not in step with the master's gathering.
            std::thread::sleep(Duration::from_millis(20 + (n as u64 * 7) % 60));
        }
        tell(what, took);
    };
    let (east, west) = (|n: usize| dir.join(format!("f{n}")), |n: usize| two.west.low(format!("d/f{n}")));
    each("a file is made", &|n| fs::write(east(n), "x").unwrap(), &|n| west(n).exists());
    let mode = |n: usize| std::os::unix::fs::PermissionsExt::mode(&fs::metadata(west(n)).unwrap().permissions());
    let chmod = |n: usize| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(east(n), mode).unwrap();
    };
    each("its mode is set", &chmod, &|n| mode(n) & 0o7777 == 0o600);
    let to = |n: usize| dir.join(format!("g{n}"));
    each("it is renamed", &|n| fs::rename(east(n), to(n)).unwrap(), &|n| two.west.low(format!("d/g{n}")).exists());
    each("it is removed", &|n| fs::remove_file(to(n)).unwrap(), &|n| !two.west.low(format!("d/g{n}")).exists());
    // And many at once: when the last is there.
    let mut took = Vec::new();
    for round in 0..5 {
        for n in 0..1_000 {
            fs::write(dir.join(format!("m{round}.{n}")), "").unwrap();
        }
        took.push(seen(|| two.west.low(format!("d/m{round}.999")).exists()));
    }
    tell("the last of 1,000 made", took);
}
