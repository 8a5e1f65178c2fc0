//! What follows from what: one total function.
//!
//! Every arm that changes what is durable returns [`Verdict::Save`] and is fed again; so nothing is told, let in or freed that is not durable.

use serde::{Deserialize, Serialize};

use super::call::{Answer, Call, Facts, Refusal};
use super::state::{Content, Epoch, Ownership, Ticket};
use crate::types::{Generation, Phase, Timestamp};

/// The copy that the owner uploaded: complete, verified, durable, not visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Staged {
    /// The epoch that the handover it is meant for begins.
    pub epoch: Epoch,
    pub content: Content,
}

/// What the engine sees at the moment of an event, with the file's cell locked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Local {
    /// Somebody has it open for writing or mapped so: by our own tables, or the kernel refuses a lease for reading.
    pub writers: bool,
    /// Nothing was written since the local bytes were last synced. Counts for owners; `false` if in doubt, as after a start.
    pub synced: bool,
    /// Somebody may read the local bytes without asking: a passthrough handle or mapping from when all of them were here, or the kernel refuses a lease for writing.
    /// That does not keep ownership here: such readers go on with the generation that they opened. But these bytes are neither freed nor replaced meanwhile;
    /// other readers of a newer generation get it from memory.
    pub held: bool,
    /// Length of the local file. Counts for owners.
    pub len: u64,
    /// Its mtime. Counts for owners.
    pub mtime: Timestamp,
    /// All bytes of this generation are in the local file, compared with their hashes and synced. Counts for stubs; `None` if in doubt.
    pub whole: Option<Generation>,
    /// What is staged for this file id.
    pub staged: Option<Staged>,
    /// The journal has an intent to finish this side's handover.
    pub intended: bool,
    /// Somebody here waits to throw the content away, all of it: the generation that it has then. Counts for stubs.
    pub emptied: Option<Generation>,
    /// The local file has been cut to nothing, durably. Counts for stubs, under the lock under which it was done.
    pub cut: bool,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Content is wanted by a reader.
    Read,
    /// Content is about to change: an open for writing, a truncation, a replacement by PUT, times set. `next`: the generation it would have,
    /// [`Generation::after`] the present one.
    Write { next: Generation },
    /// Local blocks of a stub are to be freed.
    Free,
    /// A copy is to be uploaded.
    StageBegin,
    /// The other side has staged this, and ownership is to follow.
    OfferBegin(Staged),
    /// All content is to come, with ownership: somebody writes, or an administrator asks.
    TakeBegin,
    /// Ownership is to come, and no content: somebody throws that away.
    WantBegin,
    /// A start, or the time to repeat a call has come, for a file with an intent.
    Resume,
    /// The other side asks.
    Called(Call),
    /// It has answered.
    Answered(Answer),
}

/// What to do next. Those that do not end the matter are followed by the same event, fed to what is durable then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Done, or allowed.
    Go,
    /// It is so already, or was overtaken: nothing follows.
    Already,
    /// Not now; nothing waits for it.
    Refuse(Refusal),
    /// A handover runs: feed it again when [`Ownership::phase`] has changed. The wait has a deadline and can be interrupted; calls are repeated meanwhile.
    Wait,
    /// The reader gets these bytes from the owner (those that are not here), with the generation as a condition. If it has changed, feed the answer and then the
    /// read again.
    Remote(Content),
    /// Ownership must come first: feed [`Event::TakeBegin`], then the event again; or [`Event::WantBegin`], if all of the content is to be thrown away.
    Take,
    /// Store this durably, then feed the event again.
    Save(Ownership),
    /// Sync the local bytes, then feed the event again: a generation that is told of must not have other bytes after a power loss.
    Sync,
    /// Note the intent durably, then feed the event again.
    Intend,
    /// Remove the intent: what it was for has ended.
    Forget,
    /// Bring all bytes of this content into the local file, verified by hash and synced, then feed the event again.
    Fetch(Content),
    /// The same from the staged copy. The length and mtime of the file become those of the content.
    Install(Content),
    /// Cut the local file to nothing, durably, in such a way that a crash leaves the stub what it is. Then feed the event again, under the same lock.
    Cut,
    /// Verify what came with the call, make it durable in staging, under this name; then feed the event again. Bytes that do not match: no answer of this protocol.
    Keep(Staged),
    /// Send this. The answer is an event; no answer is none.
    Call(Call),
    /// To a `Get`: read the bytes, then feed the event again; answer with them if it is `SendBytes` once more.
    SendBytes(Answer),
    /// Tell the other side.
    Answer(Answer),
    /// No answer of this protocol: the call came to another file than it is for.
    Silence,
}

/// What follows from `event`. Total: every combination has a verdict, whatever the other side sends.
///
/// A call must be for this file's id: how it is found, and what if it is not, see [`answer_gone`]. While an event is fed again, the file's cell stays locked, but for
/// what takes long: `Fetch`, `Install`, `Keep`, `SendBytes`, and the network. (A writer's `Save` and his being let in must be one: else those who publish and
/// those who write could take turns for ever.)
pub fn decide(own: &Ownership, local: &Local, event: Event) -> Verdict {
    match event {
        Event::Read => match own.phase {
            Phase::Stub => Verdict::Remote(own.content),
            Phase::Owner { .. } | Phase::Offering | Phase::Taking => Verdict::Go,
        },
        Event::Write { next } => match own.phase {
            Phase::Owner { published: false } => Verdict::Go,
            Phase::Owner { published: true } => {
                let content = Content {
                    generation: next.max(Generation(own.content.generation.0.saturating_add(1))),
                    ..here(own, local)
                };
                Verdict::Save(Ownership { phase: Phase::Owner { published: false }, content, ..*own })
            }
            Phase::Offering | Phase::Taking => Verdict::Wait,
            Phase::Stub => Verdict::Take,
        },
        Event::Free => match own.phase {
            Phase::Stub if local.held => Verdict::Refuse(Refusal::Open),
            Phase::Stub => Verdict::Go,
            Phase::Owner { .. } => Verdict::Refuse(Refusal::Owner),
            Phase::Offering | Phase::Taking => Verdict::Refuse(Refusal::Handover),
        },
        Event::StageBegin => stage_begin(own, local),
        Event::OfferBegin(staged) => offer_begin(own, local, staged),
        Event::TakeBegin => take_begin(own, local),
        Event::WantBegin => match own.phase {
            Phase::Owner { .. } => Verdict::Already,
            Phase::Offering | Phase::Taking => Verdict::Wait,
            Phase::Stub => Verdict::Call(Call::Want { file: own.file, generation: own.content.generation }),
        },
        Event::Resume if own.phase.is_asking() => Verdict::Call(open_call(own)),
        Event::Resume => Verdict::Forget,
        Event::Called(call) => called(own, local, call),
        Event::Answered(answer) => answered(own, answer),
    }
}

/// The answer where the file of this id is gone for good (or never was): ids are not given again, so it is definite.
///
/// A file that is only not found is another matter: the path may be on its way (a rename that one side has not heard of), and the file may have granted this very
/// call. Refused then, its asker would go back, and there would be two owners. So calls find their file by its id (or inode), not by their path alone; and where that does
/// not tell, there is no answer.
pub fn answer_gone(call: Call) -> Answer {
    Answer::Refused { ticket: call.ticket(), refusal: Refusal::NoSuchFile, facts: None }
}

/// The content as `stat` shows it here.
fn here(own: &Ownership, local: &Local) -> Content {
    match own.phase {
        Phase::Owner { .. } => Content { len: local.len, mtime: local.mtime, ..own.content },
        Phase::Stub | Phase::Offering | Phase::Taking => own.content,
    }
}

fn facts(own: &Ownership, local: &Local) -> Facts {
    Facts { epoch: own.epoch, phase: own.phase, content: here(own, local) }
}

/// The call that is repeated until it is answered.
fn open_call(own: &Ownership) -> Call {
    let (file, ticket, content) = (own.file, own.ticket(), own.content);
    match own.phase {
        Phase::Taking => Call::Rtl { file, ticket, generation: content.generation },
        _ => Call::Ltr { file, ticket, content },
    }
}

/// The bytes here are to be told of. `Err`: it cannot be (`Refuse`), or something comes first.
fn publish(own: &Ownership, local: &Local) -> Result<(), Verdict> {
    match own.phase {
        Phase::Owner { .. } if local.writers => Err(Verdict::Refuse(Refusal::OpenForWriting)),
        Phase::Owner { published: true } => Ok(()),
        Phase::Owner { published: false } if !local.synced => Err(Verdict::Sync),
        Phase::Owner { published: false } => {
            let phase = Phase::Owner { published: true };
            Err(Verdict::Save(Ownership { phase, content: here(own, local), ..*own }))
        }
        Phase::Offering => Ok(()),
        Phase::Taking => Err(Verdict::Refuse(Refusal::Handover)),
        Phase::Stub => Err(Verdict::Refuse(Refusal::NotOwner)),
    }
}

fn stage_begin(own: &Ownership, local: &Local) -> Verdict {
    match publish(own, local) {
        Ok(()) if own.phase == Phase::Offering => Verdict::Refuse(Refusal::Handover),
        Ok(()) => {
            let (file, epoch, content) = (own.file, own.epoch.next(), here(own, local));
            Verdict::Call(Call::Stage { file, epoch, content })
        }
        Err(first) => first,
    }
}

fn offer_begin(own: &Ownership, local: &Local, staged: Staged) -> Verdict {
    let same = staged.epoch == own.epoch.next() && staged.content.generation == own.content.generation;
    match own.phase {
        Phase::Offering if same => Verdict::Call(open_call(own)),
        Phase::Offering | Phase::Taking => Verdict::Refuse(Refusal::Handover),
        Phase::Stub => Verdict::Refuse(Refusal::NotOwner),
        // What changed since was raised before it changed, so what is staged is of these very bytes.
        Phase::Owner { published } if !published || !same => Verdict::Refuse(Refusal::Changed),
        Phase::Owner { .. } if local.writers => Verdict::Refuse(Refusal::OpenForWriting),
        // Before the record, or a crash leaves an offer that nobody repeats.
        Phase::Owner { .. } if !local.intended => Verdict::Intend,
        Phase::Owner { .. } => Verdict::Save(own.asking(Phase::Offering, here(own, local))),
    }
}

fn take_begin(own: &Ownership, local: &Local) -> Verdict {
    match own.phase {
        Phase::Owner { .. } => Verdict::Already,
        Phase::Offering => Verdict::Wait,
        Phase::Taking => Verdict::Call(open_call(own)),
        Phase::Stub if local.whole != Some(own.content.generation) && local.held => Verdict::Refuse(Refusal::Open),
        Phase::Stub if local.whole != Some(own.content.generation) => Verdict::Fetch(own.content),
        Phase::Stub if !local.intended => Verdict::Intend,
        Phase::Stub => Verdict::Save(own.asking(Phase::Taking, own.content)),
    }
}

fn called(own: &Ownership, local: &Local, call: Call) -> Verdict {
    if call.file() != own.file {
        return Verdict::Silence;
    }
    let refuse = |refusal| {
        let facts = Some(facts(own, local));
        Verdict::Answer(Answer::Refused { ticket: call.ticket(), refusal, facts })
    };
    match call {
        Call::Head { .. } => match publish(own, local) {
            Ok(()) | Err(Verdict::Refuse(_)) => Verdict::Answer(Answer::Facts(facts(own, local))),
            Err(first) => first,
        },
        // Published first in any case: a refusal then tells the generation to ask for.
        Call::Get { generation, .. } => match publish(own, local) {
            Ok(()) if own.content.generation == generation => Verdict::SendBytes(Answer::Bytes(facts(own, local))),
            Ok(()) => refuse(Refusal::Changed),
            Err(Verdict::Refuse(refusal)) => refuse(refusal),
            Err(first) => first,
        },
        Call::Stage { epoch, content, .. } => stage(own, local, Staged { epoch, content }).unwrap_or_else(refuse),
        Call::Ltr { ticket, content, .. } => handover(own, local, ticket, accept(own, local, ticket, content)),
        Call::Rtl { ticket, generation, .. } => handover(own, local, ticket, give_up(own, local, generation)),
        Call::Want { generation, .. } => wanted(own, local, generation).unwrap_or_else(refuse),
    }
}

/// The other side wants to own what it then throws away. Nothing is given up by this: it becomes an offer like any other, which the other side takes
/// if he who wanted it still waits, and refuses else.
fn wanted(own: &Ownership, local: &Local, generation: Generation) -> Result<Verdict, Refusal> {
    let known = own.content.generation;
    match own.phase {
        Phase::Stub => Err(Refusal::NotOwner),
        Phase::Taking => Err(Refusal::Handover),
        Phase::Owner { .. } | Phase::Offering if generation > known => Err(Refusal::Diverged),
        // Published first: the refusal tells what there is now.
        Phase::Owner { .. } | Phase::Offering if generation < known => match publish(own, local) {
            Ok(()) | Err(Verdict::Refuse(_)) => Err(Refusal::Changed),
            Err(first) => Ok(first),
        },
        Phase::Offering => Ok(Verdict::Answer(Answer::Offered { ticket: own.ticket(), content: own.content })),
        Phase::Owner { published: false } => Err(Refusal::Changed),
        Phase::Owner { .. } if local.writers => Err(Refusal::OpenForWriting),
        Phase::Owner { .. } if !local.intended => Ok(Verdict::Intend),
        Phase::Owner { .. } => Ok(Verdict::Save(own.asking(Phase::Offering, here(own, local)))),
    }
}

fn stage(own: &Ownership, local: &Local, copy: Staged) -> Result<Verdict, Refusal> {
    let generation = copy.content.generation;
    match own.phase {
        _ if copy.epoch <= own.epoch => Err(Refusal::Overtaken),
        Phase::Offering | Phase::Taking => Err(Refusal::Handover),
        Phase::Owner { .. } => Err(Refusal::Diverged),
        Phase::Stub if copy.epoch != own.epoch.next() => Err(Refusal::Diverged),
        Phase::Stub if generation < own.content.generation => Err(Refusal::Overtaken),
        Phase::Stub => match local.staged {
            Some(there) if there.epoch == copy.epoch && there.content.generation == generation => {
                Ok(Verdict::Answer(Answer::Staged { epoch: copy.epoch, generation }))
            }
            Some(there) if there.epoch == copy.epoch && there.content.generation > generation => {
                Err(Refusal::Overtaken)
            }
            _ => Ok(Verdict::Keep(copy)),
        },
    }
}

/// What a call for a handover leads to, when its ticket allows it.
enum Outcome {
    /// This comes first, or makes it so.
    First(Verdict),
    /// No, and it can never be yes any more.
    Never(Refusal),
    /// No; the same call could be granted at another time.
    No(Refusal),
}

/// Grants and refuses by ticket. A refusal that is not for ever by itself is durable before it is told.
fn handover(own: &Ownership, local: &Local, ticket: Ticket, outcome: Outcome) -> Verdict {
    if ticket.epoch <= own.epoch {
        // It has happened, and an answer was lost or is late; or the ticket's handover was overtaken by later ones, and nobody waits for this answer.
        return Verdict::Answer(Answer::Granted { ticket, content: here(own, local) });
    }
    let outcome = match own.phase {
        _ if ticket.epoch == own.epoch.next() => outcome,
        // The handover that this side asks for has been granted, and the answer is on its way.
        Phase::Offering | Phase::Taking => Outcome::No(Refusal::Handover),
        Phase::Owner { .. } | Phase::Stub => Outcome::No(Refusal::Diverged),
    };
    let barred = ticket <= own.refused;
    let answer =
        |refusal| Verdict::Answer(Answer::Refused { ticket: Some(ticket), refusal, facts: Some(facts(own, local)) });
    match outcome {
        Outcome::First(_) if barred => answer(Refusal::RefusedBefore),
        Outcome::First(verdict) => verdict,
        Outcome::Never(refusal) => answer(refusal),
        Outcome::No(refusal) if barred => answer(refusal),
        Outcome::No(_) => Verdict::Save(Ownership { refused: ticket, ..*own }),
    }
}

/// `ltr_local_to_remote` reaches the stub's side.
fn accept(own: &Ownership, local: &Local, ticket: Ticket, content: Content) -> Outcome {
    let generation = content.generation;
    match own.phase {
        Phase::Owner { .. } | Phase::Offering => return Outcome::No(Refusal::Diverged),
        // Taking what the owner has changed since: it cannot be granted any more, so what is offered is accepted instead.
        Phase::Stub | Phase::Taking => {}
    }
    if generation < own.content.generation {
        return Outcome::No(Refusal::Diverged);
    }
    let known = generation == own.content.generation;
    let whole = known && (own.phase == Phase::Taking || local.whole == Some(generation));
    if whole {
        return Outcome::First(Verdict::Save(own.handed_over(Phase::Owner { published: true }, content)));
    }
    if let Some(next) = local.emptied.filter(|_| known && own.phase == Phase::Stub) {
        if local.held {
            return Outcome::No(Refusal::Open);
        }
        // The bytes first: an empty file is whole under any record, and a record that outlived them would call holes content.
        if !local.cut {
            return Outcome::First(Verdict::Cut);
        }
        // With this record the content is thrown away, and not before: until it is durable, the owner has it all.
        let generation = next.max(Generation(generation.0.saturating_add(1)));
        let empty = Content { generation, len: 0, mtime: local.mtime };
        return Outcome::First(Verdict::Save(own.handed_over(Phase::Owner { published: true }, empty)));
    }
    match local.staged {
        Some(staged) if (staged.epoch, staged.content.generation) == (ticket.epoch, generation) => {
            if local.held {
                return Outcome::No(Refusal::Open);
            }
            // First a stub of what is staged, then its bytes, then ownership: the record never says more than the bytes.
            let stub = Ownership { phase: Phase::Stub, content, ..*own };
            Outcome::First(if stub == *own { Verdict::Install(content) } else { Verdict::Save(stub) })
        }
        _ => Outcome::No(Refusal::NotStaged),
    }
}

/// `rtl_remote_to_local` reaches the owner.
fn give_up(own: &Ownership, local: &Local, generation: Generation) -> Outcome {
    match own.phase {
        Phase::Stub | Phase::Taking => Outcome::No(Refusal::Diverged),
        Phase::Owner { .. } | Phase::Offering if generation > own.content.generation => Outcome::No(Refusal::Diverged),
        // Generations never come back. Published first: the refusal tells which to fetch.
        Phase::Owner { .. } | Phase::Offering if generation < own.content.generation => match publish(own, local) {
            Ok(()) | Err(Verdict::Refuse(_)) => Outcome::Never(Refusal::Changed),
            Err(first) => Outcome::First(first),
        },
        Phase::Owner { published: false } => Outcome::No(Refusal::Changed),
        Phase::Owner { .. } if local.writers => Outcome::No(Refusal::OpenForWriting),
        Phase::Owner { .. } | Phase::Offering => {
            Outcome::First(Verdict::Save(own.handed_over(Phase::Stub, here(own, local))))
        }
    }
}

fn answered(own: &Ownership, answer: Answer) -> Verdict {
    match answer {
        // What was fetched, staged or uploaded is the engine's to go on with; what the owner says of the content is news for a stub.
        Answer::Facts(facts) | Answer::Bytes(facts) => learned(own, facts),
        Answer::Staged { .. } | Answer::Offered { .. } => Verdict::Go,
        Answer::Granted { ticket, content } => match own.phase {
            Phase::Offering if ticket == own.ticket() => Verdict::Save(own.handed_over(Phase::Stub, own.content)),
            Phase::Taking if ticket == own.ticket() => {
                let content = Content { mtime: content.mtime, ..own.content };
                Verdict::Save(own.handed_over(Phase::Owner { published: true }, content))
            }
            _ => Verdict::Already,
        },
        Answer::Refused { ticket: None, refusal, facts } => match facts.map(|facts| learned(own, facts)) {
            Some(save @ Verdict::Save(_)) => save,
            _ => Verdict::Refuse(refusal),
        },
        Answer::Refused { ticket: Some(ticket), facts, .. } => match own.phase {
            Phase::Offering if ticket == own.ticket() => {
                Verdict::Save(Ownership { phase: Phase::Owner { published: true }, ..*own })
            }
            Phase::Taking if ticket == own.ticket() => {
                let stub = Ownership { phase: Phase::Stub, ..*own };
                match facts.map(|facts| learned(&stub, facts)) {
                    Some(Verdict::Save(newer)) => Verdict::Save(newer),
                    _ => Verdict::Save(stub),
                }
            }
            _ => Verdict::Already,
        },
    }
}

/// What a stub makes of the owner's facts.
fn learned(own: &Ownership, facts: Facts) -> Verdict {
    let owns = matches!(facts.phase, Phase::Owner { published: true } | Phase::Offering);
    // Of another epoch: told before this side owned, or after it will have.
    let newer = facts.content.generation >= own.content.generation && facts.content != own.content;
    if own.phase == Phase::Stub && owns && facts.epoch == own.epoch && newer {
        return Verdict::Save(Ownership { content: facts.content, ..*own });
    }
    Verdict::Already
}
