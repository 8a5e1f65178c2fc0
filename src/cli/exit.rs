//! How a command ends: the exit codes, which scripts rely on, and the error that leads to them.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | all done |
//! | 1 | done in part: some files failed or were skipped, the rest is done |
//! | 2 | usage: the command line makes no sense (clap's own code) |
//! | 3 | nothing could be done: no mount, daemon unreachable, bad configuration, refused |

use std::process::ExitCode;

use crate::control::ControlError;
use crate::pair::PairError;

/// How a command that ran ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done,
    Partial,
}

impl Exit {
    /// How two parts of a command ended together.
    pub fn and(self, other: Self) -> Self {
        if self == Self::Done { other } else { self }
    }

    /// The number a script sees.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Partial => 1,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

/// Why a command could not run. Each is one line: the thing, the reason, the way out.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The arguments contradict each other, found after clap was content.
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Failed(String),
    #[error(transparent)]
    Pair(#[from] PairError),
    #[error(transparent)]
    Control(#[from] ControlError),
}

impl CliError {
    /// The number a script sees.
    pub fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Failed(_) | Self::Pair(_) | Self::Control(_) => 3,
        }
    }
}

/// The end of every `--help`: the command's examples, and what its exit codes mean.
pub fn help(examples: &str) -> String {
    format!(
        "Examples:\n{examples}\n\nExit codes:\n  0  all done\n  1  done in part: some files failed or were skipped\n  \
         2  usage error\n  3  nothing could be done: no mount, daemon unreachable, bad configuration, refused"
    )
}
