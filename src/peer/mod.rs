//! Who owns the content of a file that two clusters share: what each side keeps, what they tell each other, and what follows from what.
//!
//! Pure: nothing here does I/O, knows the time, holds a lock or waits. [`decide`] is a function of what is durable ([`Ownership`]), of what the
//! engine sees at that moment ([`Local`]) and of what happens ([`Event`]). Whoever calls it holds the file's cell, carries out the [`Verdict`], and where
//! that asks for something first (save, fetch, install …) feeds the same event again afterwards, with what is then durable. So a crash between any two
//! steps, a call that comes twice, and one that comes late are the same thing: the event is fed to what is durable.
//!
//! One side, the *owner*, has the content and may change it; the other is a *stub*. A *handover* makes the stub's side the owner, and has a
//! [`Ticket`]: the epoch that begins with it, and the number of the attempt. It comes about in two ways:
//!
//! * the owner **offers** (migration): it uploads a copy, which the other side *stages* ([`Call::Stage`]); saves `Offering`; asks `ltr_local_to_remote`
//!   ([`Call::Ltr`]). The other side installs the copy, saves `Owner` in the new epoch, grants. The old owner saves `Stub`, and frees its bytes after.
//! * the stub's side **takes** (recall for writing, or by command): it fetches all content, makes it durable; saves `Taking`; asks
//!   `rtl_remote_to_local` ([`Call::Rtl`]). The owner saves `Stub` in the new epoch, grants, and may free its bytes. The taker saves `Owner`.
//!
//! Who throws all of the content away needs none of it: the stub's side asks the owner to offer it without a copy ([`Call::Want`]), and accepts the offer if
//! he still waits, by cutting its file and saving `Owner` of an empty content. So until that record is durable the owner has all bytes, and where it does not
//! come about, whatever the reason, the offer is refused like one of which no copy is staged.
//!
//! **Why never two owners**: the one who is asked moves first, and the one who asks has stopped before it asks: `Offering` and `Taking` let no write in.
//!
//! **Why never two stubs, and no byte lost**: `Taking` has all bytes, durable; `Offering` keeps its own until the grant.
//!
//! **Why an attempt can be given up**: a call may be repeated, and delayed for as long as the network likes. One that was refused and comes again must
//! not be granted later, for the asker has gone on: an owner who was refused lets writers in again, and a stub frees its parts. So *a refusal is durable
//! before it is told* ([`Ownership::refused`]), unless it holds for ever by itself; the next attempt has the next number. And the asker goes back
//! only on such an answer: a connection that fails, a time-out, any answer that is not of this protocol (a proxy's 404, a bucket's plain 200) is no answer, and the
//! attempt stays open, and is repeated.
//!
//! **Why a generation is a condition**: bytes are told of a generation (facts, staged copies, ranges) only once it is *published*; the first change after that raises
//! the generation durably before a byte changes. Nothing is published while anyone has the file open for writing.
//!
//! **When both ask at once**, they want the same: an owner who offers grants what the other takes of the same generation, and a taker accepts what is
//! offered. Either way the same side owns the same content in the same epoch.
//!
//! `tests/pairs_explore/` runs these decisions on two sides, over a network that loses, repeats, delays and reorders, with crashes at every step.

mod call;
mod decide;
mod state;

pub use crate::types::Phase;
pub use call::{Answer, Call, Facts, Refusal};
pub use decide::{Event, Local, Staged, Verdict, answer_gone, decide};
pub use state::{Attempt, Content, Epoch, Ownership, PairFileId, Ticket};

#[cfg(test)]
mod tests;
