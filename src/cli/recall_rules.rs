//! The rules of a mount about recalls as people write them: `no_recall=uid:1000+prog:updatedb`, `recall_budget=uid:*:files=32:bytes=1G/min`.

use crate::admission::{Budget, Rate, SCAN_FILES, Subject};
use crate::pair::units::parse_size;

const NS: u64 = 1_000_000_000;
const TIMES: [(&str, u64); 4] = [("s", NS), ("min", 60 * NS), ("h", 3_600 * NS), ("d", 86_400 * NS)];

/// Who a rule is about: `all`, `uid:1000`, `uid:*`, `prog:NAME`, `prog:*`, `cgroup:/PATH`, `cgroup:*`.
fn subject(text: &str) -> Result<Subject, String> {
    let bad = || {
        format!(
            "{text:?} names nobody: write all, uid:NUMBER, prog:NAME or cgroup:/PATH; in a budget * stands for each of them by itself"
        )
    };
    match text.split_once(':') {
        None if text == "all" => Ok(Subject::All),
        Some(("uid", "*")) => Ok(Subject::EachUid),
        Some(("uid", uid)) => uid.parse().map(Subject::Uid).map_err(|_| bad()),
        Some(("prog", "*")) => Ok(Subject::EachProgram),
        Some(("prog", name)) if !name.is_empty() && !name.contains('/') => Ok(Subject::Program(name.into())),
        Some(("cgroup", "*")) => Ok(Subject::EachCgroup),
        Some(("cgroup", path)) if path.starts_with('/') => Ok(Subject::Cgroup(path.into())),
        _ => Err(bad()),
    }
}

/// Who gets no content that is not local: subjects with `+` between them, or `none`.
pub(super) fn no_recall(text: &str) -> Result<Vec<Subject>, String> {
    if text == "none" {
        return Ok(Vec::new());
    }
    let subjects: Vec<_> = text.split('+').map(subject).collect::<Result<_, _>>()?;
    let each = |subject: &Subject| matches!(subject, Subject::EachUid | Subject::EachProgram | Subject::EachCgroup);
    if subjects.iter().any(each) {
        return Err("* is for budgets: write all, or name them".into());
    }
    Ok(subjects)
}

/// Budgets with `+` between them, each a subject and what it may use: `:files=32` and `:bytes=64M` at once, `:bytes=1G/min` over time; or `none`.
pub(super) fn budgets(text: &str) -> Result<Vec<Budget>, String> {
    if text == "none" {
        return Ok(Vec::new());
    }
    text.split('+').map(budget).collect()
}

fn budget(text: &str) -> Result<Budget, String> {
    let bad = |why: &str| format!("{text:?}: {why}: write a subject and its limits, like uid:*:files=32:bytes=1G/min");
    let is_limit = |part: &&str| part.starts_with("files=") || part.starts_with("bytes=");
    // Paths of control groups may have colons.
    let limits: Vec<&str> = text.rsplit(':').take_while(is_limit).collect();
    let of = text[..text.len() - limits.iter().map(|part| part.len() + 1).sum::<usize>().min(text.len())].to_owned();
    let mut budget = Budget { of: subject(&of)?, files: None, bytes: None, rate: None };
    if limits.is_empty() {
        return Err(bad("there is no limit in it"));
    }
    for limit in limits {
        if let Some(files) = limit.strip_prefix("files=") {
            let files = files.parse::<usize>().ok().filter(|files| *files > 0);
            budget.files = Some(files.ok_or_else(|| bad("files= wants a number from 1"))?);
        } else if let Some((bytes, time)) = limit["bytes=".len()..].split_once('/') {
            let per = TIMES.iter().find(|(unit, _)| *unit == time);
            let (_, per_ns) = *per.ok_or_else(|| bad("a rate is a size per s, min, h or d"))?;
            budget.rate = Some(Rate { bytes: size(bytes)?, per_ns });
        } else {
            budget.bytes = Some(size(&limit["bytes=".len()..])?);
        }
    }
    Ok(budget)
}

fn size(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        0 => Err("0 bytes let nothing through: no_recall says that".into()),
        bytes => Ok(bytes),
    }
}

/// After how many files read once and in order somebody is taken for a program that reads everything: a number from 4, `on`, or `off`.
pub(super) fn scan_files(text: &str) -> Result<Option<usize>, String> {
    match text {
        "off" => Ok(None),
        "on" => Ok(Some(SCAN_FILES)),
        text => match text.parse() {
            Ok(files @ 4..=10_000) => Ok(Some(files)),
            _ => Err(format!("{text:?} is no number of files: write on, off, or one from 4 to 10000")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gets_nothing() {
        let found = no_recall("uid:1000+prog:updatedb+cgroup:/system.slice/x:y.service+all").unwrap();
        let want = [
            Subject::Uid(1000),
            Subject::Program("updatedb".into()),
            Subject::Cgroup("/system.slice/x:y.service".into()),
            Subject::All,
        ];
        assert_eq!(found, want);
        assert_eq!(no_recall("none"), Ok(Vec::new()));
        for (text, piece) in [
            ("", "names nobody"),
            ("uid:", "names nobody"),
            ("uid:me", "names nobody"),
            ("user:1", "names nobody"),
            ("prog:", "names nobody"),
            ("prog:/bin/x", "names nobody"),
            ("cgroup:x", "names nobody"),
            ("uid:1++uid:2", "names nobody"),
            ("uid:*", "budgets"),
        ] {
            let message = no_recall(text).unwrap_err();
            assert!(message.contains(piece), "{text}: {message}");
        }
    }

    #[test]
    fn who_may_use_how_much() {
        let budget = |of, files, bytes, rate: Option<(u64, u64)>| Budget {
            of,
            files,
            bytes,
            rate: rate.map(|(bytes, per_ns)| Rate { bytes, per_ns }),
        };
        for (text, want) in [
            ("uid:*:files=32:bytes=1G/min", budget(Subject::EachUid, Some(32), None, Some((1 << 30, 60 * NS)))),
            ("all:bytes=64M", budget(Subject::All, None, Some(64 << 20), None)),
            ("all:bytes=1M:bytes=2M/h", budget(Subject::All, None, Some(1 << 20), Some((2 << 20, 3_600 * NS)))),
            ("cgroup:/a:b:files=1", budget(Subject::Cgroup("/a:b".into()), Some(1), None, None)),
            ("prog:*:files=2", budget(Subject::EachProgram, Some(2), None, None)),
        ] {
            assert_eq!(budgets(text), Ok(vec![want]), "{text}");
        }
        assert_eq!(budgets("uid:1:files=1+uid:2:files=2").unwrap().len(), 2);
        assert_eq!(budgets("none"), Ok(Vec::new()));
        for (text, piece) in [
            ("uid:1", "no limit"),
            ("files=3", "names nobody"),
            ("uid:1:files=0", "from 1"),
            ("uid:1:files=x", "from 1"),
            ("uid:1:bytes=1G/year", "per s, min"),
            ("uid:1:bytes=0", "nothing through"),
            ("uid:1:bytes=much", "not a size"),
            ("uid:1:speed=3", "names nobody"),
            ("", "names nobody"),
        ] {
            let message = budgets(text).unwrap_err();
            assert!(message.contains(piece), "{text}: {message}");
        }
    }

    #[test]
    fn when_somebody_reads_everything() {
        assert_eq!(scan_files("off"), Ok(None));
        assert_eq!(scan_files("on"), Ok(Some(SCAN_FILES)));
        assert_eq!(scan_files("8"), Ok(Some(8)));
        for bad in ["3", "10001", "never", ""] {
            assert!(scan_files(bad).unwrap_err().contains("from 4"), "{bad}");
        }
    }
}
