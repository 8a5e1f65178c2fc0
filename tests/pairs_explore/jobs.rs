//! What a side's process does by itself: upload and offer, fetch and take, and repeat what was not answered.

use tierfs::peer::{Call, Event, Phase, Staged, Verdict};

use crate::bugs::Bug;
use crate::judge::{judge, judge_offer};
use crate::state::{CHUNKS, Job, Message, NOTHING, State};
use crate::steps::Out;

/// A call for a handover is repeated until it is answered; a note is removed when it is not needed any more.
pub fn ask(out: &mut Out, side: usize) {
    let this = &out.from.sides[side];
    let own = *this.own();
    let asking = own.phase.is_asking();
    if this.intent && !this.sent && this.job == Job::Idle {
        match judge(out.from, side, Event::Resume, out.world.bug) {
            Verdict::Call(call) => out.system(side, "asks the other side again", |s| send(s, side, call)),
            Verdict::Forget => out.system(side, "the note is removed", |s| s.sides[side].intent = false),
            other => panic!("resumed, {other:?}"),
        }
    }
    // Whatever is in flight may be the answer; if nothing is, none will come.
    let waiting = match this.job {
        Job::Upload { waiting, .. } | Job::Fetch { waiting, .. } | Job::Want { waiting } => waiting,
        _ => this.sent,
    };
    let lost = out.from.net.is_empty() && out.from.sides.iter().all(|side| side.handling.is_none());
    let unanswered = out.has(Bug::NoAnswerIsRefusal);
    let give_up = |s: &mut State| {
        if unanswered && asking {
            let phase = if own.phase == Phase::Taking { Phase::Stub } else { Phase::Owner { published: true } };
            s.save(side, tierfs::peer::Ownership { phase, ..own });
        }
        let this = &mut s.sides[side];
        this.sent = false;
        match &mut this.job {
            job @ (Job::Upload { .. } | Job::Want { .. }) => *job = Job::Idle,
            Job::Fetch { waiting, .. } => *waiting = false,
            _ => {}
        }
    };
    if waiting && lost {
        out.system(side, "no answer came", give_up);
    } else if waiting {
        out.fault(Some(side), "no answer came in time", |spent| &mut spent.timeouts, give_up);
    }
    // A plain bucket answers 200 to any tag: no answer, either.
    if this.sent && asking && out.has(Bug::PlainAnswerBelieved) {
        out.fault(
            Some(side),
            "a plain 200 is taken for a grant",
            |spent| &mut spent.timeouts,
            |s| {
                let granted = tierfs::peer::Answer::Granted { ticket: own.ticket(), content: own.content };
                if let Verdict::Save(saved) = judge(s, side, Event::Answered(granted), None) {
                    s.save(side, saved);
                }
                s.sides[side].sent = false;
            },
        );
    }
}

fn send(s: &mut State, side: usize, call: Call) {
    s.send_call(side, call, 0, NOTHING);
    s.sides[side].sent = true;
}

/// The job goes one step on.
pub fn work(out: &mut Out, side: usize) {
    match out.from.sides[side].job {
        Job::Idle => {}
        Job::Migrate => migrate(out, side),
        Job::Upload { staged, got, chunks, waiting: false } => {
            out.system(side, "a chunk is read for the upload", |s| {
                let mut got = got;
                let at = usize::from(chunks);
                got.ch[at] = s.sides[side].bytes.now.ch[at];
                let all = at + 1 == CHUNKS;
                if all {
                    got.len = staged.content.len as u8;
                    let Staged { epoch, content } = staged;
                    let file = s.sides[side].own().file;
                    s.send_call(side, Call::Stage { file, epoch, content }, 0, got);
                }
                s.sides[side].job = Job::Upload { staged, got, chunks: chunks + 1, waiting: all };
            });
        }
        Job::Upload { .. } => {}
        Job::Offer(staged) => decided(out, side, Event::OfferBegin(staged)),
        Job::Fetch { take: true, waiting: false } => decided(out, side, Event::TakeBegin),
        Job::Fetch { take: false, waiting: false } => decided(out, side, Event::Read),
        Job::Fetch { .. } => {}
        Job::Want { waiting: false } => match judge(out.from, side, Event::WantBegin, out.world.bug) {
            Verdict::Call(call) => out.system(side, "asks for an offer of what is thrown away", |s| {
                s.send_call(side, call, 0, NOTHING);
                s.sides[side].job = Job::Want { waiting: true };
            }),
            Verdict::Already | Verdict::Wait => out.system(side, "nothing is asked", |s| s.sides[side].job = Job::Idle),
            other => panic!("content is thrown away, {other:?}"),
        },
        Job::Want { .. } => {}
        Job::Accept(call) => match judge_offer(out.from, side, call, out.world.bug) {
            Verdict::Save(saved) => out.system(side, "a record of what was offered", |s| s.save(side, saved)),
            Verdict::Cut => cut(out, side),
            // The owner asks until he has heard it.
            Verdict::Answer(_) => out.system(side, "the offer is answered", |s| s.sides[side].job = Job::Idle),
            other => panic!("{call:?} was offered, {other:?}"),
        },
    }
}

/// The stub's bytes go before the record that says so.
pub fn cut(out: &mut Out, side: usize) {
    match out.from.sides[side].bytes.now {
        NOTHING => out.system(side, "the cut is synced", |s| s.sides[side].bytes.sync()),
        _ => out.system(side, "the stub is cut", |s| s.sides[side].bytes.set_len(0)),
    }
}

fn migrate(out: &mut Out, side: usize) {
    match judge(out.from, side, Event::StageBegin, out.world.bug) {
        Verdict::Sync => out.system(side, "synced for the upload", |s| s.sides[side].bytes.sync()),
        Verdict::Save(saved) => out.system(side, "published for the upload", |s| s.save(side, saved)),
        Verdict::Call(Call::Stage { epoch, content, .. }) => out.system(side, "the upload begins", |s| {
            let staged = Staged { epoch, content };
            s.sides[side].job = Job::Upload { staged, got: NOTHING, chunks: 0, waiting: false };
        }),
        Verdict::Refuse(_) => out.system(side, "the migration is refused", |s| s.sides[side].job = Job::Idle),
        other => panic!("a migration begins, {other:?}"),
    }
}

fn decided(out: &mut Out, side: usize, event: Event) {
    let this = &out.from.sides[side];
    let own = *this.own();
    match judge(out.from, side, event, out.world.bug) {
        Verdict::Intend => out.system(side, "a note of the handover", |s| s.sides[side].intent = true),
        Verdict::Save(saved) => out.system(side, "a record of the handover", |s| s.save(side, saved)),
        Verdict::Call(call) => out.system(side, "asks the other side", |s| {
            s.sides[side].job = Job::Idle;
            if !s.sides[side].sent {
                send(s, side, call);
            }
        }),
        Verdict::Fetch(content) | Verdict::Remote(content) => {
            let Some(image) = out.from.image(content.generation) else { return };
            let bytes = this.bytes;
            let first = (0..CHUNKS).find(|chunk| bytes.now.ch[*chunk] != image.ch[*chunk]);
            match first.filter(|chunk| *chunk < usize::from(image.len)) {
                Some(chunk) => out.system(side, "asks for a chunk", |s| {
                    let generation = content.generation;
                    s.send_call(side, Call::Get { file: own.file, generation }, chunk as u8, NOTHING);
                    let Job::Fetch { waiting, .. } = &mut s.sides[side].job else { unreachable!("only it fetches") };
                    *waiting = true;
                }),
                None if bytes.now.len != image.len || first.is_some() => {
                    out.system(side, "the stub gets its length", |s| s.sides[side].bytes.set_len(image.len));
                }
                None if event == Event::Read => out.system(side, "all is here", |s| s.sides[side].job = Job::Idle),
                None => out.system(side, "what came is synced", |s| s.sides[side].bytes.sync()),
            }
        }
        Verdict::Go | Verdict::Already | Verdict::Wait | Verdict::Refuse(_) => {
            out.system(side, "the transfer ends", |s| s.sides[side].job = Job::Idle);
        }
        other => panic!("{event:?} leads to {other:?}"),
    }
}

/// An answer that a job may have waited for. `saved`: it brought news.
pub fn answered(s: &mut State, side: usize, message: &Message, saved: bool, bug: Option<Bug>) {
    use tierfs::peer::Answer;
    let Message::Answer { answer, chunk, value, .. } = *message else { unreachable!("answers only") };
    let own = *s.sides[side].own();
    let image = s.image(own.content.generation);
    let this = &mut s.sides[side];
    match answer {
        Answer::Staged { epoch, generation } => {
            if let Job::Upload { staged, waiting: true, .. } = this.job
                && (staged.epoch, staged.content.generation) == (epoch, generation)
            {
                this.job = Job::Offer(staged);
            }
        }
        Answer::Bytes(facts) => {
            let Job::Fetch { waiting, .. } = &mut this.job else { return };
            *waiting = false;
            let unverified = bug == Some(Bug::ChunkUnverified);
            let same = own.content.generation == facts.content.generation || unverified;
            let verified = image.is_some_and(|image| image.ch[usize::from(chunk)] == value);
            // Bytes that were not the generation's may come with hashes that were not, either.
            let counts = verified || unverified || bug == Some(Bug::BytesUnchecked);
            if own.phase == Phase::Stub && same && !this.held && counts {
                this.bytes.set_len(own.content.len as u8);
                this.bytes.write(chunk.into(), value);
                if !verified {
                    s.violation = Some("a chunk of another content counts");
                }
            }
        }
        Answer::Granted { .. } | Answer::Refused { ticket: Some(_), .. } => this.sent = false,
        Answer::Refused { ticket: None, .. } => match &mut this.job {
            job @ Job::Upload { waiting: true, .. } => *job = Job::Idle,
            Job::Fetch { waiting, .. } | Job::Want { waiting } if saved => *waiting = false,
            job @ (Job::Fetch { .. } | Job::Want { .. }) => *job = Job::Idle,
            _ => {}
        },
        Answer::Offered { ticket, content } => {
            if this.job == (Job::Want { waiting: true }) {
                this.job = Job::Accept(Call::Ltr { file: own.file, ticket, content });
            }
        }
        Answer::Facts(_) => {}
    }
}
