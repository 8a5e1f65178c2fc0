//! A side's process dies, or its power is cut; and what a side does without being asked.

use crate::state::{Bytes, Job, State, User};
use crate::steps::Out;

pub fn crash(out: &mut Out, side: usize) {
    out.fault(Some(side), "the process is killed", |spent| &mut spent.crashes, |s| die(s, side));
    if !out.may(|spent| &mut spent.powers) {
        return;
    }
    for left in out.from.sides[side].bytes.survivors() {
        out.fault(
            Some(side),
            "the power fails",
            |spent| &mut spent.powers,
            |s| {
                let owns = s.authority() == Some(side);
                die(s, side);
                let this = &mut s.sides[side];
                (this.user, this.held) = (None, false);
                this.bytes = Bytes::synced(left);
                if owns {
                    // What users had not synced may be gone; what is left is the content from now on.
                    s.truth = Bytes::synced(left);
                }
            },
        );
    }
}

/// All that the process knew is gone. Files that are open through the kernel stay so.
fn die(s: &mut State, side: usize) {
    let this = &mut s.sides[side];
    if matches!(this.user, Some(User::Ask(_))) {
        this.user = None;
    }
    (this.mem, this.handling, this.job, this.sent, this.emptied) = (None, None, Job::Idle, false, false);
}

/// What is staged and can never be installed goes; paths are found again.
pub fn tidy(out: &mut Out, side: usize) {
    let this = &out.from.sides[side];
    let own = *this.own();
    if let Some((staged, _)) = this.staged {
        if staged.epoch <= own.epoch || staged.content.generation < own.content.generation {
            out.system(side, "a copy that was overtaken is removed", |s| s.sides[side].staged = None);
        } else {
            out.fault(
                Some(side),
                "a copy that nobody asked for is removed",
                |spent| &mut spent.evictions,
                |s| {
                    s.sides[side].staged = None;
                },
            );
        }
    }
    if this.astray {
        out.system(side, "the path leads to the file again", |s| s.sides[side].astray = false);
    } else {
        out.fault(Some(side), "the path leads elsewhere", |spent| &mut spent.strays, |s| s.sides[side].astray = true);
    }
}
