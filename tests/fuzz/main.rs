//! Decoders and clients fed with what nobody should send: bytes and answers that are nearly right.
//!
//! In `make test` a fixed number of cases from a fixed seed; `make fuzz SECONDS=600 SEED=…` goes on as long as asked. A failure prints the
//! shortest case that was found and the seed that repeats it.

mod answers;
mod decoders;
mod memory;
mod mutate;
mod recalls;
#[path = "../remote/rig.rs"]
#[allow(dead_code, reason = "the tests of the remote use more of it")]
mod rig;
mod twist;

use std::time::{Duration, Instant};

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

/// The seed where none is given.
const SEED: u64 = 4;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Checks values of `strategy`: `cases` of them, or as many as there is time for where `TIERFS_FUZZ_SECONDS` says how long.
pub fn fuzz<S: Strategy>(what: &str, cases: u32, strategy: S, check: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let begun = Instant::now();
    let seconds = number("TIERFS_FUZZ_SECONDS").map(Duration::from_secs);
    let mut seed = number("TIERFS_FUZZ_SEED").unwrap_or(SEED);
    let mut done = 0u64;
    loop {
        let config = Config { cases, failure_persistence: None, max_shrink_iters: 2_000, ..Config::default() };
        let key = *blake3::hash(format!("{what} {seed}").as_bytes()).as_bytes();
        let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &key));
        if let Err(error) = runner.run(&strategy, &check) {
            panic!("{what}, TIERFS_FUZZ_SEED={seed}: {error}");
        }
        done += u64::from(cases);
        if seconds.is_none_or(|seconds| begun.elapsed() >= seconds) {
            println!("{what}: {done} cases, {:.1?}, the last seed was {seed}", begun.elapsed());
            return;
        }
        seed += 1;
    }
}
