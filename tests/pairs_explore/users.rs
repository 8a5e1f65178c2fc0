//! What users of either side do, and what they wait for.

use tierfs::peer::{Event, Phase, Verdict};
use tierfs::types::Generation;

use crate::judge::judge;
use crate::state::{Bytes, Job, Op, State, User};
use crate::steps::Out;

/// Who has the file open goes on, and closes it.
pub fn finish(out: &mut Out, side: usize) {
    let this = &out.from.sides[side];
    match this.user {
        Some(User::Opened(chunk)) => out.system(side, "the user writes", |s| {
            // The next value that nothing has.
            let value = 2 + s.spent.writes - 1;
            s.sides[side].bytes.write(chunk.into(), value);
            s.truth.write(chunk.into(), value);
            s.sides[side].user = Some(User::Written);
        }),
        Some(User::Written) => {
            out.system(side, "the user syncs and closes", |s| {
                s.sides[side].bytes.sync();
                s.truth.sync();
                let generation = s.sides[side].own().content.generation;
                s.sides[side].floor = s.sides[side].floor.max(generation);
                s.sides[side].user = None;
            });
            out.user(side, "the user closes", |spent| &mut spent.unsynced, |s| s.sides[side].user = None);
        }
        _ => {}
    }
    if this.held {
        out.system(side, "who reads by himself closes", |s| s.sides[side].held = false);
    }
}

/// What was asked for is tried, and tried again after what must come first.
pub fn ask(out: &mut Out, side: usize) {
    let this = &out.from.sides[side];
    let Some(User::Ask(op)) = this.user else { return };
    let next = Generation(this.own().content.generation.0 + 1);
    let event = if op == Op::Read { Event::Read } else { Event::Write { next } };
    match judge(out.from, side, event, out.world.bug) {
        Verdict::Go => out.system(side, allowed(op), |s| allow(s, side, op)),
        // With the lock held: else who publishes and who writes could take turns for ever, and nobody gets on.
        Verdict::Save(saved) => out.system(side, allowed(op), |s| {
            s.save(side, saved);
            allow(s, side, op);
        }),
        Verdict::Take if this.job == Job::Idle && this.empties() && out.may(|spent| &mut spent.takes) => {
            out.system(side, "ownership is asked for, and no content", |s| {
                s.spent.takes += 1;
                s.sides[side].job = Job::Want { waiting: false };
            });
        }
        Verdict::Take if this.job == Job::Idle && out.may(|spent| &mut spent.takes) => {
            out.system(side, "content and ownership are fetched for the writer", |s| {
                s.spent.takes += 1;
                s.sides[side].job = Job::Fetch { take: true, waiting: false };
            });
        }
        Verdict::Take if this.job == Job::Idle => out.system(side, "the writer gets an error", |s| fail(s, side)),
        Verdict::Remote(content) if out.from.image(content.generation) == Some(this.bytes.now) => {
            out.system(side, "the user has read the stub", |s| read(s, side));
        }
        // From memory; nothing is kept, and nothing of it is modelled.
        Verdict::Remote(_) if this.held => out.system(side, "the user gives up", |s| s.sides[side].user = None),
        Verdict::Remote(_) if this.job == Job::Idle => out.system(side, "content is fetched for the reader", |s| {
            s.sides[side].job = Job::Fetch { take: false, waiting: false };
        }),
        Verdict::Wait | Verdict::Take | Verdict::Remote(_) => {}
        other => panic!("{event:?} leads to {other:?}"),
    }
    // What was accepted for him is his to finish, also if he would have given up.
    if !this.emptied {
        out.user(side, "the user gives up", |spent| &mut spent.giveups, |s| fail(s, side));
    }
}

/// The user is told that it failed, or is gone.
fn fail(s: &mut State, side: usize) {
    if s.sides[side].emptied {
        s.violation = Some("who is told that it failed finds it thrown away");
    }
    s.sides[side].user = None;
}

fn allowed(op: Op) -> &'static str {
    match op {
        Op::Write(_) => "the user has it open for writing",
        Op::Cut(_) => "the user has cut it",
        Op::Read => "the user has read it",
    }
}

fn allow(s: &mut State, side: usize, op: Op) {
    let len = s.sides[side].bytes.now.len;
    match op {
        // Nothing is written past a hole.
        Op::Write(chunk) => s.sides[side].user = Some(User::Opened(chunk.min(len))),
        Op::Cut(to) => {
            s.sides[side].bytes.set_len(to.min(len));
            s.truth.set_len(to.min(len));
            (s.sides[side].user, s.sides[side].emptied) = (None, false);
        }
        Op::Read => read(s, side),
    }
}

/// What is read is whole, of some generation, and none older than what this side has seen.
fn read(s: &mut State, side: usize) {
    let this = &s.sides[side];
    let own = *this.own();
    let content = if own.is_owner() { Some(s.truth.now) } else { s.image(own.content.generation) };
    if content != Some(this.bytes.now) {
        s.violation = Some("a reader gets what is no content");
    }
    if own.content.generation < this.floor {
        s.violation = Some("a reader gets an older content than before");
    }
    s.sides[side].floor = this.floor.max(own.content.generation);
    s.sides[side].user = None;
}

/// Users' and administrators' wishes.
pub fn wish(out: &mut Out, side: usize) {
    let this = &out.from.sides[side];
    let own = *this.own();
    if this.user.is_none() {
        let mut begin = |what, op: Op, spent| out.user(side, what, spent, |s| s.sides[side].user = Some(User::Ask(op)));
        begin("a user wants to write chunk 0", Op::Write(0), |spent| &mut spent.writes);
        begin("a user wants to write chunk 1", Op::Write(1), |spent| &mut spent.writes);
        begin("a user wants to cut it to nothing", Op::Cut(0), |spent| &mut spent.cuts);
        begin("a user wants to cut it to one chunk", Op::Cut(1), |spent| &mut spent.cuts);
        begin("a user wants to read", Op::Read, |spent| &mut spent.reads);
    }
    if this.job == Job::Idle && own.is_owner() {
        out.user(side, "a migration begins", |spent| &mut spent.migrations, |s| s.sides[side].job = Job::Migrate);
    }
    if this.job == Job::Idle && own.phase == Phase::Stub {
        let take = Job::Fetch { take: true, waiting: false };
        out.user(side, "a recall begins", |spent| &mut spent.takes, |s| s.sides[side].job = take);
        let call = tierfs::peer::Call::Head { file: own.file };
        out.user(
            side,
            "the stub is looked at",
            |spent| &mut spent.heads,
            |s| s.send_call(side, call, 0, crate::state::NOTHING),
        );
    }
    if own.phase.is_local() && !this.held {
        out.user(
            side,
            "somebody reads the local file by himself",
            |spent| &mut spent.holds,
            |s| s.sides[side].held = true,
        );
    }
    let freed = |bytes: &Bytes| bytes.now.ch == [crate::state::FREED; 2];
    if !freed(&this.bytes) && judge(out.from, side, Event::Free, out.world.bug) == Verdict::Go {
        out.user(side, "local blocks are freed", |spent| &mut spent.frees, |s| s.sides[side].bytes.free());
    }
}
