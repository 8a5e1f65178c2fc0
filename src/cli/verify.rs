//! `tierfs verify` and `tierfs check`.

use clap::Args;

use super::Global;
use super::exit::{self, CliError, Exit};
use super::files::{self, Ask, ByXattr, Paths};
use crate::control::protocol::Request;

const ROOT_ONLY: ByXattr = ByXattr::No("this needs root: it reads the store for everybody's files");

/// Read files' objects again and compare every byte with its hash, recalling nothing.
///
/// What is stored costs a read of the store, and its traffic; nothing changes on either side. Files without a remote copy
/// are counted as unchanged.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs verify /mnt/tiered/big.iso\n  \
     tierfs verify -r --sample 1% /mnt/tiered      (a hundredth of the files, others each time)\n  \
     tierfs verify -r --md5 /mnt/tiered/2019 > sums"))]
pub struct Verify {
    #[command(flatten)]
    paths: Paths,
    /// Only about so many of the files, chosen by chance.
    #[arg(long, value_name = "PERCENT", default_value = "100%", value_parser = parse_share)]
    sample: u32,
    /// Print the MD5 of each content as md5sum does, for comparison with other tools.
    #[arg(long)]
    md5: bool,
}

impl Verify {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let (recursive, sample_ppm, md5) = (self.paths.recursive, self.sample, self.md5);
        let request = |paths| Request::Verify { paths, recursive, sample_ppm, md5 };
        let verb = Some(("verifying", "verified"));
        files::run(global, &self.paths, Ask { verb, request: &request, by_xattr: ROOT_ONLY })
    }
}

/// Compare files' records with their objects and with the local content.
///
/// For each file with a remote copy: the object is there and has the recorded length and version, and where the content is local too, it has the recorded
/// hash. Object contents are not read: `tierfs verify` does that.
#[derive(Debug, Args)]
#[command(after_help = exit::help(
    "  tierfs check -r /mnt/tiered\n  \
     tierfs check -r --repair /mnt/tiered\n  \
     tierfs check -r --adopt /mnt/tiered/restored"))]
pub struct Check {
    #[command(flatten)]
    paths: Paths,
    /// Where the object is gone or another one but the local content is whole: let the local content count again. What
    /// cannot be mended without choosing between two contents is only told.
    #[arg(long)]
    repair: bool,
    /// Make files whose records name another pair (an old one, a restored backup) this mount's pair's, where that has what they need: their object, or
    /// their counterpart at the other side. Others are told and left alone.
    #[arg(long, conflicts_with = "repair")]
    adopt: bool,
}

impl Check {
    pub(super) fn run(&self, global: &Global) -> Result<Exit, CliError> {
        let (recursive, repair, adopt) = (self.paths.recursive, self.repair, self.adopt);
        let request = |paths| Request::Check { paths, recursive, repair, adopt };
        let verb = Some(if adopt { ("adopting", "adopted") } else { ("checking", "checked") });
        files::run(global, &self.paths, Ask { verb, request: &request, by_xattr: ROOT_ONLY })
    }
}

/// Parts in a million from text like `5%`, `0.01%` or `5`.
fn parse_share(text: &str) -> Result<u32, String> {
    let wrong = || format!("{text:?} is not a share of the files: write 0.0001% to 100%, like 5%");
    let percent: f64 = text.strip_suffix('%').unwrap_or(text).trim().parse().map_err(|_| wrong())?;
    let ppm = (percent * 10_000.0).round();
    if (1.0..=1_000_000.0).contains(&ppm) { Ok(ppm as u32) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::parse_share;

    #[test]
    fn shares() {
        let good = [("100%", 1_000_000), ("5", 50_000), ("0.01%", 100), ("0.0001%", 1)];
        good.iter().for_each(|(text, ppm)| assert_eq!(parse_share(text), Ok(*ppm), "{text}"));
        for text in ["0", "101%", "-1", "", "NaN", "inf", "five", "0.00001"] {
            assert!(parse_share(text).is_err(), "{text}");
        }
    }
}
