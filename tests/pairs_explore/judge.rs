//! What `tierfs::peer` says, and where planted bugs make it say something else.

use tierfs::peer::{
    Answer, Call, Epoch, Event, Local, Ownership, Phase, Refusal, Ticket, Verdict, answer_gone, decide,
};
use tierfs::types::Generation;

use crate::bugs::Bug;
use crate::state::{NOTHING, State};

/// What the engine sees.
pub fn local(state: &State, side: usize, bug: Option<Bug>) -> Local {
    let has = |b| bug == Some(b);
    let this = &state.sides[side];
    let generation = this.own().content.generation;
    let same = state.image(generation) == Some(this.bytes.now);
    let whole = (same && (this.bytes.is_synced() || has(Bug::TakenUnsynced))) || has(Bug::TakenWithoutBytes);
    Local {
        writers: (this.writers() && !has(Bug::WriterIgnored)) || (this.emptied && !has(Bug::EmptiedUnheld)),
        synced: this.bytes.is_synced() || has(Bug::PublishedUnsynced),
        held: this.held && !has(Bug::HolderIgnored),
        len: this.bytes.now.len.into(),
        mtime: Default::default(),
        whole: whole.then_some(generation),
        staged: this.staged.map(|(staged, _)| staged),
        intended: this.intent || has(Bug::IntentLate),
        emptied: (this.empties() || has(Bug::EmptiedUnasked)).then_some(Generation(generation.0 + 1)),
        cut: (this.bytes.now == NOTHING && (this.bytes.is_synced() || has(Bug::CutUnsynced))) || has(Bug::CutLate),
    }
}

/// What follows at `side`.
pub fn judge(state: &State, side: usize, event: Event, bug: Option<Bug>) -> Verdict {
    judged(state, side, event, bug, local(state, side, bug))
}

/// The same of an offer that this side has asked for: it is accepted to be thrown away or not at all, whatever copy may be staged.
pub fn judge_offer(state: &State, side: usize, call: Call, bug: Option<Bug>) -> Verdict {
    let local = Local { staged: None, ..local(state, side, bug) };
    judged(state, side, Event::Called(call), bug, local)
}

fn judged(state: &State, side: usize, event: Event, bug: Option<Bug>, mut local: Local) -> Verdict {
    let mut own = *state.sides[side].own();
    let verdict = match bug {
        None => decide(&own, &local, event),
        Some(bug) => {
            let event = bend(bug, &mut own, &mut local, event);
            match overrule(bug, &own, event) {
                Some(verdict) => verdict,
                None => bent(bug, &own, &local, event, decide(&own, &local, event)),
            }
        }
    };
    assert!(!matches!(verdict, Verdict::Save(saved) if saved == own), "saved for nothing");
    verdict
}

/// What follows where the path leads elsewhere.
pub fn judge_stray(call: Call, bug: Option<Bug>) -> Verdict {
    match bug {
        Some(Bug::StrayRefused) => Verdict::Answer(answer_gone(call)),
        _ => Verdict::Silence,
    }
}

/// What a bug has the decision see.
fn bend(bug: Bug, own: &mut Ownership, local: &mut Local, mut event: Event) -> Event {
    match (bug, &mut event) {
        // Not the one that has just been done, or it would never be answered.
        (Bug::EpochUncompared, Event::Called(Call::Ltr { ticket, .. } | Call::Rtl { ticket, .. }))
            if ticket.epoch < own.epoch =>
        {
            ticket.epoch = own.epoch.next();
        }
        (Bug::GenerationUncompared, Event::Called(Call::Rtl { generation, .. })) => {
            *generation = own.content.generation
        }
        (Bug::StagedUncompared, Event::Called(Call::Ltr { content, .. })) => {
            if let Some(staged) = &mut local.staged {
                staged.content.generation = content.generation;
            }
        }
        (Bug::EmptiedUncompared, Event::Called(Call::Ltr { content, .. })) if local.emptied.is_some() => {
            *content = own.content
        }
        (Bug::OfferUncompared, Event::OfferBegin(staged)) => {
            staged.content.generation = own.content.generation;
            own.phase = if own.is_owner() { Phase::Owner { published: true } } else { own.phase };
        }
        (
            Bug::LateAnswerBelieved,
            Event::Answered(Answer::Granted { ticket, .. } | Answer::Refused { ticket: Some(ticket), .. }),
        ) => ticket.attempt = own.attempt,
        _ => {}
    }
    event
}

/// What a bug says without asking.
fn overrule(bug: Bug, own: &Ownership, event: Event) -> Option<Verdict> {
    let verdict = match (bug, event, own.phase) {
        (Bug::WriteUnraised, Event::Write { .. }, Phase::Owner { .. })
        | (Bug::WriteWhileOffering, Event::Write { .. }, Phase::Offering)
        | (Bug::WriteWhileTaking, Event::Write { .. }, Phase::Taking)
        | (Bug::FreedWhileOffering, Event::Free, Phase::Offering)
        | (Bug::FreedWhileTaking, Event::Free, Phase::Taking) => Verdict::Go,
        (Bug::OldFactsBelieved, Event::Answered(Answer::Facts(facts)), Phase::Stub)
            if facts.content.generation < own.content.generation =>
        {
            Verdict::Save(Ownership { content: facts.content, ..*own })
        }
        (Bug::UnpublishedBelieved, Event::Answered(Answer::Facts(facts)), Phase::Stub)
            if facts.content.generation > own.content.generation =>
        {
            Verdict::Save(Ownership { content: facts.content, ..*own })
        }
        (Bug::RefusedWhileOffering, Event::Called(Call::Rtl { ticket, .. }), Phase::Offering)
            if ticket == (Ticket { epoch: own.epoch.next(), ..ticket }) =>
        {
            let facts = None;
            Verdict::Answer(Answer::Refused { ticket: Some(ticket), refusal: Refusal::Handover, facts })
        }
        _ => return None,
    };
    Some(verdict)
}

/// What a bug makes of the verdict.
fn bent(bug: Bug, own: &Ownership, local: &Local, event: Event, verdict: Verdict) -> Verdict {
    match (bug, verdict) {
        (Bug::RefusalForgotten, Verdict::Answer(Answer::Refused { refusal: Refusal::RefusedBefore, .. })) => {
            decide(&Ownership { refused: Ticket::default(), ..*own }, local, event)
        }
        (Bug::RefusalEndsWithEpoch, Verdict::Save(saved)) if saved.epoch > own.epoch => {
            Verdict::Save(Ownership { refused: Ticket::default(), ..saved })
        }
        (Bug::EpochKept, Verdict::Save(saved)) if saved.epoch > own.epoch => {
            Verdict::Save(Ownership { epoch: Epoch(own.epoch.0), ..saved })
        }
        (Bug::EmptiedGenerationKept, Verdict::Save(saved)) if saved.epoch > own.epoch && local.cut => {
            let generation = own.content.generation;
            Verdict::Save(Ownership { content: tierfs::peer::Content { generation, ..saved.content }, ..saved })
        }
        (Bug::GenerationKept, Verdict::Save(saved)) if saved.phase == (Phase::Owner { published: false }) => {
            let mut content = saved.content;
            content.generation = Generation(own.content.generation.0);
            Verdict::Save(Ownership { content, ..saved })
        }
        // Refused, and it goes on asking.
        (Bug::RefusedStays, Verdict::Save(_))
            if matches!(event, Event::Answered(Answer::Refused { ticket: Some(_), .. })) =>
        {
            Verdict::Already
        }
        (_, verdict) => verdict,
    }
}
