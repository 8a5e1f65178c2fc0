//! What is told of policies and of the scrub, which go over the share by themselves.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::types::{FileState, WirePath};

/// The background scrub. Times are seconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubInfo {
    /// Bytes a second at most.
    pub rate: u64,
    /// The file it is at, or was last at.
    pub at: Option<WirePath>,
    /// Of the pass that runs.
    pub pass: Option<ScrubPass>,
    /// The last pass that came to its end.
    pub last: Option<ScrubPass>,
    /// Why it does not get on at present.
    pub problem: Option<String>,
}

/// One pass of the scrub over the share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubPass {
    pub begun: i64,
    pub ended: Option<i64>,
    /// Objects read.
    pub files: u64,
    pub bytes: u64,
    /// Files whose object is damaged, missing or cannot be read; they are on the dead-letter list.
    pub damaged: u64,
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyInfo {
    pub name: String,
    pub action: String,
    pub enabled: bool,
    /// In words.
    pub conditions: Vec<String>,
    pub schedule: String,
    pub trigger: Option<String>,
    /// For `explain`: what is asked of the index, and how many files and bytes that is.
    pub filter: Option<String>,
    pub matches: Option<(u64, u64)>,
    /// The run that is at work; how far it is.
    #[serde(default)]
    pub running: Option<PolicyRun>,
    pub last: Option<PolicyRun>,
}

/// How a policy does: the run that is at work, and the one that ended last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyGlance {
    pub name: String,
    pub action: String,
    #[serde(default)]
    pub running: Option<PolicyRun>,
    #[serde(default)]
    pub last: Option<PolicyRun>,
}

/// One run of a policy. Times are seconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRun {
    pub began: i64,
    pub ended: Option<i64>,
    /// Files that the index proposed and the limits let through.
    pub matched: u64,
    /// Files that were changed (in a dry run: would be tried), and their bytes.
    pub files: u64,
    pub bytes: u64,
    /// In use, or not as they were.
    pub skipped: u64,
    pub failed: u64,
    /// What was wrong, where it ended early for that.
    pub problem: Option<String>,
    /// Why it ended early, where nothing was wrong.
    #[serde(default)]
    pub stopped: Option<Stopped>,
}

/// Why nothing more is begun in a run of a policy; what is in hand is finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stopped {
    /// Its window closed: it goes on at the next one.
    Window,
    /// By `tierfs policy stop`.
    Asked,
    /// The rule was switched off.
    Disabled,
    /// The rule is not in the file any more.
    Gone,
    /// The rule is another one now, which runs in its turn.
    Changed,
    /// The mount ends; it goes on at the next one.
    Unmount,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Window => "the window has closed",
            Self::Asked => "it was stopped by hand",
            Self::Disabled => "it was switched off",
            Self::Gone => "it was taken out of the file",
            Self::Changed => "it was changed in the file",
            Self::Unmount => "the mount ended",
        })
    }
}

/// A file that a policy would take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyCandidate {
    pub policy: String,
    pub path: WirePath,
    pub size: u64,
    /// Bytes allocated.
    pub local: u64,
}

/// What decides about a file. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WhyFile {
    pub path: WirePath,
    pub state: FileState,
    /// Its own quota project, 0 for none; `None`: it cannot be told just now.
    pub project: Option<u32>,
    /// Whether the index knows it.
    pub indexed: bool,
    /// Opens through the mount, and what is left of them as heat.
    pub accesses: u64,
    pub heat: f64,
    pub accessed: Option<i64>,
    pub recalled: Option<i64>,
    /// A user and process, a command or a policy.
    pub recalled_by: Option<String>,
    /// What keeps policies off it, all of them or those that do one thing.
    pub against: Vec<WhyReason>,
    pub rules: Vec<WhyRule>,
    /// What the mount's own archiving and freeing, beside policies, make of it.
    #[serde(default)]
    pub background: Vec<WhyBackground>,
}

/// What a mount does by itself by one of its options, and what that makes of a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WhyBackground {
    /// `archive_after`, `release_above` or `space_reserve`.
    pub option: String,
    /// As it is set; `None`: it is off.
    pub value: Option<String>,
    /// `archive` or `release`.
    pub action: String,
    /// It takes the file, as far as it has to go.
    pub applies: bool,
    pub against: Option<WhyReason>,
    /// When it takes the file, if it does.
    pub next: Option<WhyReason>,
}

/// What a policy says of a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WhyRule {
    pub name: String,
    pub action: String,
    /// It takes the file when it next runs, as far as its limits go.
    pub applies: bool,
    /// What of the file itself speaks against it.
    pub against: Option<WhyReason>,
    /// Each condition, and whether it holds.
    pub conditions: Vec<(String, bool)>,
    pub last_run: Option<i64>,
    /// When it takes the file, if it does.
    pub next: Option<WhyReason>,
}

/// A reason, or what is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhyReason {
    /// In a word, for programs (docs/policies.md).
    pub reason: String,
    pub text: String,
    /// Until when, or when; `None`: no time can be told.
    pub at: Option<i64>,
}

impl WhyReason {
    pub fn new(reason: &str, text: impl Into<String>) -> Self {
        Self { reason: reason.into(), text: text.into(), at: None }
    }

    pub fn at(self, at: i64) -> Self {
        Self { at: Some(at), ..self }
    }
}
