//! `-o` options of `tierfs mount`, as mount(8) and fstab write them: text to [`Options`].
//!
//! An option unknown here is refused: a misspelt `ro` must not give a writable mount.

use std::path::PathBuf;
use std::time::Duration;

use super::gateway::GatewayOptions;
use super::recall_rules;
use crate::admission::{Budget, Subject};
use crate::control::space::Amount;
use crate::control::tasks::{Rates, TASK_FILES_MAX};
use crate::pair::units::{parse_duration, parse_percent, parse_size};
use crate::types::PairName;

/// Least memory for recalls, bytes.
const MEMORY_MIN: u64 = 1 << 20;

/// Options that mean nothing to us or are so anyway, and are there for mount(8), systemd and other tools.
const HARMLESS: [&str; 18] = [
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "nouser",
    "relatime",
    "norelatime",
    "nostrictatime",
    "nolazytime",
    "async",
    "nomand",
    "noiversion",
    "silent",
    "loud",
    "allow_other",
    "default_permissions",
    "nonempty",
];

/// Flags of mount(2) that are passed on to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountFlags {
    pub nosuid: bool,
    pub nodev: bool,
    pub noexec: bool,
    pub noatime: bool,
    pub nodiratime: bool,
}

/// What may be given as `-o` and as long options alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub read_only: bool,
    pub flags: MountFlags,
    pub archive_after: Option<Duration>,
    pub release_above_pct: Option<u8>,
    pub release_below_pct: Option<u8>,
    /// Bytes a second.
    pub scrub: Option<u64>,
    /// The one that files go to first.
    pub pairs: Vec<PairName>,
    pub config_dir: Option<PathBuf>,
    pub state_dir: Option<PathBuf>,
    /// How long a request of `delay_for`'s programs waits for content before it is told to come back later.
    pub delay_after: Option<Duration>,
    /// Names of programs; empty: none.
    pub delay_for: Option<Vec<String>>,
    /// How often the names of the whole share are stored; `Some(None)`: never.
    pub save_names: Option<Option<Duration>>,
    pub gateway: GatewayOptions,
    /// Who gets no content that is not local.
    pub no_recall: Option<Vec<Subject>>,
    pub recall_budget: Option<Vec<Budget>>,
    /// Files after which a reader is taken for one that reads everything; `Some(None)`: never.
    pub recall_scan: Option<Option<usize>>,
    /// Bytes of content in memory for all recalls.
    pub recall_memory: Option<u64>,
    /// The file of policies.
    pub policies: Option<PathBuf>,
    /// What is kept free; `Some(None)`: nothing is.
    pub space_reserve: Option<Option<Amount>>,
    /// How long who finds the share full waits.
    pub space_wait: Option<Duration>,
    /// How fast tasks go at which hour.
    pub task_rate: Option<Rates>,
    /// Files of one task.
    pub task_files: Option<usize>,
    /// The file in which each file that is done with is announced.
    pub announce: Option<PathBuf>,
    /// Where metrics are served.
    pub metrics: Option<std::net::SocketAddr>,
}

/// Reads comma-separated options; of two that contradict each other the later one holds, as with mount(8).
pub fn parse(lists: &[String]) -> Result<Options, String> {
    let mut options = Options::default();
    for option in lists.iter().flat_map(|list| list.split(',')).map(str::trim).filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        take(&mut options, name, value).map_err(|reason| format!("-o {option}: {reason}"))?;
    }
    Ok(options)
}

fn take(options: &mut Options, name: &str, value: Option<&str>) -> Result<(), String> {
    if let Some(flag) = flag(options, name) {
        *flag.0 = flag.1;
        return none(value);
    }
    let needed = || value.filter(|value| !value.is_empty()).ok_or_else(|| format!("write {name}=VALUE"));
    let place = || {
        let path = PathBuf::from(needed()?);
        if path.is_absolute() { Ok(path) } else { Err("name an absolute path".to_owned()) }
    };
    match name {
        "archive_after" => options.archive_after = Some(Duration::from_secs(parse_duration(needed()?)?)),
        "release_above" => options.release_above_pct = Some(parse_percent(needed()?)?),
        "release_below" => options.release_below_pct = Some(parse_percent(needed()?)?),
        "scrub" => options.scrub = Some(parse_rate(needed()?)?),
        "pair" => {
            let names = needed()?.split(':').map(|name| name.parse().map_err(|e: crate::types::BadName| e.to_string()));
            options.pairs = names.collect::<Result<_, String>>()?;
        }
        "config_dir" => options.config_dir = Some(place()?),
        "state_dir" => options.state_dir = Some(place()?),
        "delay_after" => options.delay_after = Some(Duration::from_secs(parse_duration(needed()?)?)),
        "save_names" => {
            options.save_names = Some(match needed()? {
                "off" => None,
                text => Some(parse_duration(text)?).filter(|secs| *secs > 0).map(Duration::from_secs),
            });
        }
        "gateway" => options.gateway.listen = Some(address(needed()?)?),
        "identities" => options.gateway.identities = Some(place()?),
        "bucket" => options.gateway.bucket = Some(needed()?.to_owned()),
        "tls_cert" => options.gateway.tls_cert = Some(place()?),
        "tls_key" => options.gateway.tls_key = Some(place()?),
        // With hyphens, too: so do other filesystems' options of several words, and a rule that is overlooked costs much.
        "no_recall" | "no-recall" => options.no_recall = Some(recall_rules::no_recall(needed()?)?),
        "recall_budget" | "recall-budget" => options.recall_budget = Some(recall_rules::budgets(needed()?)?),
        "recall_scan" | "recall-scan" => options.recall_scan = Some(recall_rules::scan_files(needed()?)?),
        "recall_memory" | "recall-memory" => options.recall_memory = Some(parse_memory(needed()?)?),
        "space_reserve" | "space-reserve" => options.space_reserve = Some(amount(needed()?)?),
        "space_wait" | "space-wait" => options.space_wait = Some(wait(needed()?)?),
        "task_rate" | "task-rate" => options.task_rate = Some(Rates::parse(needed()?)?),
        "task_files" | "task-files" => options.task_files = Some(task_files(needed()?)?),
        "announce" => options.announce = Some(place()?),
        "metrics" => options.metrics = Some(address(needed()?)?),
        "policies" => options.policies = Some(place()?),
        "delay_for" => options.delay_for = Some(programs(needed()?)?),
        // Comments for other programs: x-systemd.*, x-gvfs-*, comment=…
        _ if name.starts_with("x-") || name.starts_with("X-") || name == "comment" => {}
        _ if HARMLESS.contains(&name) => none(value)?,
        _ => {
            return Err(
                "there is no such option; known are archive_after, release_above, release_below, scrub, pair, \
                        config_dir, state_dir, delay_after, delay_for, save_names, no_recall, recall_budget, recall_scan, \
                        recall_memory, gateway, identities, bucket, tls_cert, tls_key, policies, metrics, announce, space_reserve, space_wait, task_rate, task_files, ro, and the usual ones of mount(8)"
                    .into(),
            );
        }
    }
    Ok(())
}

fn address(text: &str) -> Result<std::net::SocketAddr, String> {
    text.parse().map_err(|_| "write an address and a port, like 127.0.0.1:9000 or [::]:9000".to_owned())
}

/// Bytes a second from text like `10MiB` or `10MiB/s`.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    match parse_size(text.strip_suffix("/s").unwrap_or(text))? {
        0 => Err("a rate of 0 reads nothing: leave the option out".into()),
        rate => Ok(rate),
    }
}

/// A size, or a part of the whole in per cent; `off` for none.
fn amount(text: &str) -> Result<Option<Amount>, String> {
    if text == "off" {
        return Ok(None);
    }
    if text.ends_with('%') {
        return match parse_percent(text)? {
            percent @ 1..=50 => Ok(Some(Amount::Percent(percent))),
            _ => Err("keep from 1% to 50% free".into()),
        };
    }
    match parse_size(text) {
        Ok(0) | Err(_) => Err("write a size like 20GiB, a part like 5%, or off".into()),
        Ok(bytes) => Ok(Some(Amount::Bytes(bytes))),
    }
}

fn task_files(text: &str) -> Result<usize, String> {
    let files = text.parse().ok().filter(|files| (1..=TASK_FILES_MAX).contains(files));
    files.ok_or_else(|| format!("write a number of files, 1 to {TASK_FILES_MAX}"))
}

/// A request holds its program, and perhaps a directory, for as long.
fn wait(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        seconds @ 0..=60 => Ok(Duration::from_secs(seconds)),
        _ => Err("a minute at most".into()),
    }
}

/// Memory for recalls.
fn parse_memory(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        0..MEMORY_MIN => Err("recalls need at least 1MiB".into()),
        bytes => Ok(bytes),
    }
}

/// Names between colons; `none` for no program at all.
fn programs(list: &str) -> Result<Vec<String>, String> {
    if list == "none" {
        return Ok(Vec::new());
    }
    let names: Vec<String> = list.split(':').map(str::to_owned).collect();
    if names.iter().any(|name| name.is_empty() || name.contains('/')) {
        return Err("write names of programs like ganesha.nfsd:nfsd, or none".into());
    }
    Ok(names)
}

/// The flag an option sets, and to what. `rw`, `suid` and the like undo what came before.
fn flag<'o>(options: &'o mut Options, name: &str) -> Option<(&'o mut bool, bool)> {
    let flags = &mut options.flags;
    Some(match name {
        "ro" => (&mut options.read_only, true),
        "rw" => (&mut options.read_only, false),
        "nosuid" => (&mut flags.nosuid, true),
        "suid" => (&mut flags.nosuid, false),
        "nodev" => (&mut flags.nodev, true),
        "dev" => (&mut flags.nodev, false),
        "noexec" => (&mut flags.noexec, true),
        "exec" => (&mut flags.noexec, false),
        "noatime" => (&mut flags.noatime, true),
        "atime" => (&mut flags.noatime, false),
        "nodiratime" => (&mut flags.nodiratime, true),
        "diratime" => (&mut flags.nodiratime, false),
        _ => return None,
    })
}

fn none(value: Option<&str>) -> Result<(), String> {
    if value.is_none() { Ok(()) } else { Err("this option takes no value".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(list: &str) -> Result<Options, String> {
        parse(&[list.to_owned()])
    }

    #[test]
    fn options_of_ours_and_of_mount() {
        let options =
            one("rw,nosuid,archive_after=5m,release_above=80%,release_below=70,pair=p,_netdev,x-systemd.automount")
                .unwrap();
        assert_eq!(options.archive_after, Some(Duration::from_secs(300)));
        assert_eq!((options.release_above_pct, options.release_below_pct), (Some(80), Some(70)));
        assert_eq!(options.pairs.iter().map(PairName::as_str).collect::<Vec<_>>(), ["p"]);
        assert_eq!(one("pair=a:b").unwrap().pairs.len(), 2);
        assert!(options.flags.nosuid && !options.read_only);
        assert_eq!(one("scrub=10MiB/s").unwrap().scrub, one("scrub=10485760").unwrap().scrub);
        assert!(one("ro,,allow_other,default_permissions").unwrap().read_only);
        assert!(!one("ro,rw,nodev,dev").unwrap().flags.nodev);
        assert!(parse(&["ro".into(), "noexec".into()]).unwrap().flags.noexec);
    }

    #[test]
    fn who_is_put_off_and_when() {
        let options = one("delay_after=0,delay_for=ganesha.nfsd:smbd").unwrap();
        assert_eq!(options.delay_after, Some(Duration::ZERO));
        assert_eq!(options.delay_for.unwrap(), ["ganesha.nfsd", "smbd"]);
        assert_eq!(one("delay_for=none").unwrap().delay_for.unwrap(), [""; 0]);
    }

    #[test]
    fn how_often_names_are_stored() {
        assert_eq!(one("ro").unwrap().save_names, None);
        assert_eq!(one("save_names=2h").unwrap().save_names, Some(Some(Duration::from_secs(7200))));
        for never in ["save_names=off", "save_names=0s"] {
            assert_eq!(one(never).unwrap().save_names, Some(None));
        }
    }

    #[test]
    fn who_may_recall_what() {
        let options =
            one("no-recall=uid:7+prog:updatedb,recall_budget=uid:*:files=2,recall_scan=off,recall-memory=64MiB")
                .unwrap();
        assert_eq!(options.no_recall.unwrap().len(), 2);
        assert_eq!(options.recall_budget.unwrap().len(), 1);
        assert_eq!((options.recall_scan, options.recall_memory), (Some(None), Some(64 << 20)));
    }

    #[test]
    fn what_is_kept_free() {
        let reserve = |text: &str| one(&format!("space_reserve={text}")).unwrap().space_reserve.unwrap();
        assert_eq!(reserve("5%"), Some(Amount::Percent(5)));
        assert_eq!(reserve("20GiB"), Some(Amount::Bytes(20 << 30)));
        assert_eq!(reserve("off"), None);
        assert_eq!(one("space-wait=0s").unwrap().space_wait, Some(Duration::ZERO));
    }

    #[test]
    fn bad_options_are_named() {
        for (list, piece) in [
            ("no_recall", "no_recall=VALUE"),
            ("no-recall=root", "names nobody"),
            ("recall_budget=uid:1", "no limit"),
            ("recall_scan=1", "from 4"),
            ("recall_memory=4", "at least"),
            ("r0", "no such option"),
            ("archive_after", "archive_after=VALUE"),
            ("archive_after=", "archive_after=VALUE"),
            ("archive_after=5", "duration"),
            ("release_above=101", "percentage"),
            ("pair=../x", "pair name"),
            ("scrub=0", "reads nothing"),
            ("scrub=fast", "not a size"),
            ("config_dir=etc", "absolute"),
            ("policies=policies.toml", "absolute"),
            ("delay_for=a::b", "names of programs"),
            ("delay_for=/usr/bin/x", "names of programs"),
            ("delay_after=2", "duration"),
            ("save_names=often", "duration"),
            ("gateway=9000", "address and a port"),
            ("space_reserve=some", "a size like"),
            ("space_reserve=60%", "from 1% to 50%"),
            ("task_rate=fast", "no rate"),
            ("task_files=0", "1 to 10000"),
            ("task_files=10001", "1 to 10000"),
            ("space_wait=2m", "a minute"),
            ("announce=file", "absolute"),
            ("metrics=localhost", "address and a port"),
            ("identities=keys.toml", "absolute"),
            ("ro=1", "takes no value"),
            ("allow_other=1", "takes no value"),
        ] {
            let message = one(list).unwrap_err();
            assert!(message.contains(piece) && message.contains(list), "{message}");
        }
    }
}
