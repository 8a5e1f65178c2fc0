//! Who may have content brought back, how much of it at once, and before whom: what keeps `grep -r`, an indexer or a backup from pulling a
//! whole share home.
//!
//! Pure: nothing here reads a clock, a file or `/proc`, takes a lock or waits. Times come from the caller, in nanoseconds of any clock that does
//! not go back.

mod budget;
mod scan;

pub use budget::{Budget, Budgets, Counted, Entry, Rate, Ticket, Wanted};
pub use scan::{Noticed, SCAN_FILES, Scans, Seen};

/// Who wants content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requester {
    pub uid: u32,
    /// The process, not its thread; 0 where it is not known.
    pub pid: u32,
    /// The process that started it; 0 where that is not known or says nothing (init, the daemon that takes in orphans).
    pub parent: u32,
    /// As `/proc/PID/comm` has it, so at most 15 bytes; empty where it is not known.
    pub program: String,
    /// Path of its control group (the unified one); empty where it is not known.
    pub cgroup: String,
}

/// Before whom somebody is served. The order is that of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Somebody waits for the bytes.
    Interactive,
    /// Somebody is about to want them.
    Prefetch,
    /// Commands, and programs that read everything.
    Bulk,
}

impl Class {
    pub const ALL: [Self; 3] = [Self::Interactive, Self::Prefetch, Self::Bulk];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Prefetch => "prefetch",
            Self::Bulk => "bulk",
        }
    }
}

/// Whom a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// All together.
    All,
    Uid(u32),
    /// Each user by himself.
    EachUid,
    Program(String),
    EachProgram,
    /// This control group and those below it.
    Cgroup(String),
    EachCgroup,
}

/// What the kernel keeps of a program's name (`TASK_COMM_LEN` without its NUL).
const COMM_MAX: usize = 15;

impl Subject {
    /// Whether the rule is about `requester`. What is not known of him is covered by no rule but those for all.
    pub fn covers(&self, requester: &Requester) -> bool {
        match self {
            Self::All | Self::EachUid => true,
            Self::Uid(uid) => *uid == requester.uid,
            Self::Program(name) => !name.is_empty() && requester.program == name[..name.floor_char_boundary(COMM_MAX)],
            Self::EachProgram => !requester.program.is_empty(),
            Self::Cgroup(path) => {
                let below = requester.cgroup.strip_prefix(path.trim_end_matches('/'));
                !requester.cgroup.is_empty() && below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::EachCgroup => !requester.cgroup.is_empty(),
        }
    }
}

/// What a mount allows whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Who gets no content that is not local.
    pub no_recall: Vec<Subject>,
    pub budgets: Vec<Budget>,
    /// Files read once and in order after which their reader is taken for one that reads everything; `None`: never.
    pub scan_files: Option<usize>,
}

impl Default for Rules {
    fn default() -> Self {
        Self { no_recall: Vec::new(), budgets: Vec::new(), scan_files: Some(SCAN_FILES) }
    }
}

impl Rules {
    /// Whether `requester` gets no content that is not local.
    pub fn refuses(&self, requester: &Requester) -> bool {
        self.no_recall.iter().any(|subject| subject.covers(requester))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_cover_whom_they_name() {
        let requester = Requester {
            uid: 1000,
            pid: 7,
            parent: 6,
            program: "updatedb.plocat".into(),
            cgroup: "/system.slice/backup.service/x".into(),
        };
        let nobody = Requester { uid: 5, ..Requester::default() };
        for (subject, covers, unknown) in [
            (Subject::All, true, true),
            (Subject::EachUid, true, true),
            (Subject::Uid(1000), true, false),
            (Subject::Uid(1), false, false),
            (Subject::Program("updatedb.plocate".into()), true, false),
            (Subject::Program("updatedb".into()), false, false),
            (Subject::Program(String::new()), false, false),
            (Subject::EachProgram, true, false),
            (Subject::Cgroup("/system.slice/backup.service".into()), true, false),
            (Subject::Cgroup("/system.slice/".into()), true, false),
            (Subject::Cgroup("/system.slice/backup".into()), false, false),
            (Subject::Cgroup("/".into()), true, false),
            (Subject::EachCgroup, true, false),
        ] {
            assert_eq!((subject.covers(&requester), subject.covers(&nobody)), (covers, unknown), "{subject:?}");
            let rules = Rules { no_recall: vec![subject], ..Rules::default() };
            assert_eq!(rules.refuses(&requester), covers);
        }
        assert!(!Rules::default().refuses(&requester));
    }
}
