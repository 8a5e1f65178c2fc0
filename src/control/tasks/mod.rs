//! Tasks: jobs over many files that outlive a crash, a restart and whoever asked for them.
//!
//! A job is what somebody asked for; it is carried out in tasks of 500 files (`-o task_files=`), which is all that is in memory of it. A file leaves the queue only after it has ended, so after a
//! crash some are tried once more: every kind of job finds what is done already, and leaves it.

mod rate;
mod run;
mod serve;
mod store;

pub use rate::{Rates, TASK_FILES, TASK_FILES_MAX, TaskOptions};
pub use run::Queue;
pub use store::JobState;
