//! The network, and how calls are answered: step by step, so that a crash or another's step fits between any two.

use tierfs::peer::{Answer, Call, Event, Phase, Verdict};

use crate::bugs::Bug;
use crate::explorer::Kind;
use crate::jobs;
use crate::judge::{judge, judge_stray};
use crate::state::{Handling, Message, Read, State};
use crate::steps::Out;

/// Any message may be the next to arrive.
pub fn deliver(out: &mut Out) {
    for (index, message) in out.from.net.iter().enumerate() {
        if index > 0 && out.from.net[index - 1] == *message {
            continue;
        }
        let side = message.to();
        let bug = out.world.bug;
        match *message {
            Message::Call { call, chunk, body, .. } if out.from.sides[side].handling.is_none() => {
                out.system(side, label(&call), |s| {
                    s.net.remove(index);
                    s.sides[side].handling = Some(Handling { call, chunk, body, read: Read::No });
                });
            }
            Message::Call { .. } => {}
            Message::Answer { answer, .. } => out.system(side, told(&answer), |s| {
                let message = s.net.remove(index);
                let verdict = judge(s, side, Event::Answered(answer), bug);
                if let Verdict::Save(saved) = verdict {
                    let freed = bug == Some(Bug::FreedBeforeRecord) && saved.phase == Phase::Stub;
                    let refreshed = s.sides[side].own().phase == Phase::Stub;
                    if freed && saved.epoch > s.sides[side].own().epoch {
                        s.sides[side].bytes.free();
                    }
                    if freed || (bug == Some(Bug::RefreshUnsaved) && refreshed) {
                        s.believe(side, saved);
                    } else {
                        s.save(side, saved);
                    }
                }
                jobs::answered(s, side, &message, matches!(verdict, Verdict::Save(_)), bug);
            }),
        }
    }
}

fn label(call: &Call) -> &'static str {
    match call {
        Call::Head { .. } => "is asked how the file is",
        Call::Get { .. } => "is asked for a chunk",
        Call::Stage { .. } => "is sent a copy",
        Call::Ltr { .. } => "is asked to own (ltr)",
        Call::Rtl { .. } => "is asked to give up (rtl)",
        Call::Want { .. } => "is asked to offer what is thrown away",
    }
}

fn told(answer: &Answer) -> &'static str {
    match answer {
        Answer::Facts(_) => "is told how the file is",
        Answer::Bytes(_) => "gets a chunk",
        Answer::Staged { .. } => "is told that the copy is staged",
        Answer::Granted { .. } => "is granted it",
        Answer::Refused { .. } => "is refused it",
        Answer::Offered { .. } => "is offered what it throws away",
    }
}

/// One step of answering.
pub fn handle(out: &mut Out, side: usize) {
    let this = &out.from.sides[side];
    let bug = out.world.bug;
    let Some(handling) = this.handling else {
        // What a bug left to be stored is stored a moment later.
        if let Some(late) = this.mem {
            out.system(side, "what was believed is stored", |s| s.save(side, late));
        }
        return;
    };
    let call = handling.call;
    if handling.read == Read::Allowed {
        // Without the lock: what is read now counts only if the generation is still the same afterwards.
        out.system(side, "the chunk is read", |s| {
            let value = s.sides[side].bytes.now.ch[usize::from(handling.chunk)];
            s.sides[side].handling = Some(Handling { read: Read::Got(value), ..handling });
        });
        return;
    }
    let verdict = match this.astray {
        true => judge_stray(call, bug),
        false => judge(out.from, side, Event::Called(call), bug),
    };
    let unsaved = |saved: &tierfs::peer::Ownership| {
        (saved.epoch > this.own().epoch && bug == Some(Bug::GrantUnsaved))
            || (saved.refused > this.own().refused && bug == Some(Bug::RefusalUnsaved))
            || (saved.phase == Phase::Offering && bug == Some(Bug::OfferedUnsaved))
    };
    match verdict {
        Verdict::Save(saved) if unsaved(&saved) => out.system(side, "believes it", |s| s.believe(side, saved)),
        Verdict::Save(saved) => out.system(side, "a record for the answer", |s| s.save(side, saved)),
        Verdict::Sync => out.system(side, "synced for the answer", |s| s.sides[side].bytes.sync()),
        Verdict::Intend => out.system(side, "a note of what will be offered", |s| s.sides[side].intent = true),
        Verdict::Cut => jobs::cut(out, side),
        Verdict::Silence => out.system(side, "does not answer", |s| s.sides[side].handling = None),
        Verdict::Install(_) => {
            let (_, image) = this.staged.expect("what is installed is staged");
            if this.bytes.now == image {
                out.system(side, "the staged bytes are synced", |s| s.sides[side].bytes.sync());
            } else {
                out.system(side, "the staged bytes are written", |s| s.sides[side].bytes.replace(image));
            }
            // Not compared with what was offered: it counts as installed.
            if bug == Some(Bug::StagedUncompared) && this.bytes.now == image && this.bytes.is_synced() {
                out.step(Kind::System, Some(side), "what is staged is taken for what is offered", |s| {
                    let Call::Ltr { ticket, content, .. } = call else { return };
                    let phase = Phase::Owner { published: true };
                    let own = *s.sides[side].own();
                    s.save(side, tierfs::peer::Ownership { epoch: ticket.epoch, phase, content, ..own });
                });
            }
        }
        Verdict::Keep(staged) => {
            out.system(side, "the copy is staged", |s| s.sides[side].staged = Some((staged, handling.body)));
        }
        Verdict::SendBytes(answer) => match handling.read {
            Read::Got(value) => {
                out.system(side, "the chunk is sent", |s| reply(s, side, answer, handling.chunk, value))
            }
            _ => out.system(side, "the chunk may be read", |s| {
                s.sides[side].handling = Some(Handling { read: Read::Allowed, ..handling });
            }),
        },
        Verdict::Answer(Answer::Refused { facts: Some(facts), .. })
            if handling.read != Read::No && bug == Some(Bug::BytesUnchecked) =>
        {
            let (Read::Got(value), Call::Get { generation, .. }) = (handling.read, call) else { return };
            let len = out.from.image(generation).map_or(0, |image| image.len.into());
            let content = tierfs::peer::Content { generation, len, ..facts.content };
            let answer = Answer::Bytes(tierfs::peer::Facts { content, ..facts });
            out.system(side, "the chunk is sent", |s| reply(s, side, answer, handling.chunk, value));
        }
        Verdict::Answer(answer) => out.system(side, "answers", |s| reply(s, side, answer, 0, 0)),
        other => panic!("{call:?} leads to {other:?}"),
    }
}

fn reply(s: &mut State, side: usize, answer: Answer, chunk: u8, value: u8) {
    s.sides[side].handling = None;
    s.send(Message::Answer { to: 1 - side as u8, answer, chunk, value });
}

/// Messages are lost, and come twice.
pub fn disturb(out: &mut Out) {
    for (index, message) in out.from.net.iter().enumerate() {
        if index > 0 && out.from.net[index - 1] == *message {
            continue;
        }
        out.fault(
            None,
            "a message is lost",
            |spent| &mut spent.losses,
            |s| {
                s.net.remove(index);
            },
        );
        out.fault(
            None,
            "a message is on its way twice",
            |spent| &mut spent.repeats,
            |s| {
                let again = s.net[index];
                s.send(again);
            },
        );
    }
}
