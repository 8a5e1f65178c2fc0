//! Policies: rules in a file that choose files by the index and have the engine act on them.
//!
//! The index proposes, the file decides: each candidate is found again by its inode and every condition is looked at anew, and the engine does
//! its own checks after that. A run takes files in lots of bounded size, so its memory does not go by how many there are.

mod at_work;
mod choose;
mod memory;
mod parse;
mod rule;
mod run;
mod serve;
mod why;

pub use parse::{Policies, PolicyError, group_id, heat, load, parse, user_id};
pub use rule::{Action, Condition, Rule, Subject};
pub use run::Manager;
