//! Every combination of a state, what is seen and what happens: a verdict, and none that breaks a rule by itself. What follows from many steps
//! is explored in `tests/pairs_explore/`.

use super::*;
use crate::types::{Generation, Timestamp};

const FILE: PairFileId = PairFileId(7);

fn content(generation: u64) -> Content {
    Content { generation: Generation(generation), len: generation, mtime: Timestamp::default() }
}

const PHASES: [Phase; 5] =
    [Phase::Owner { published: false }, Phase::Owner { published: true }, Phase::Stub, Phase::Offering, Phase::Taking];

fn tickets() -> Vec<Ticket> {
    let mut all = Vec::new();
    for epoch in 2..=5 {
        for attempt in 1..=2 {
            all.push(Ticket { epoch: Epoch(epoch), attempt: Attempt(attempt) });
        }
    }
    all
}

fn states() -> Vec<Ownership> {
    let mut all = Vec::new();
    for phase in PHASES {
        for attempt in 1..=2 {
            for refused in [Ticket::default(), tickets()[2], tickets()[4]] {
                let attempt = Attempt(attempt);
                all.push(Ownership { file: FILE, epoch: Epoch(2), phase, content: content(5), attempt, refused });
            }
        }
    }
    all
}

fn locals() -> Vec<Local> {
    let staged = |epoch, generation| Some(Staged { epoch: Epoch(epoch), content: content(generation) });
    let mut all = Vec::new();
    for staged in [None, staged(3, 4), staged(3, 5), staged(3, 6), staged(2, 5)] {
        for whole in [None, Some(Generation(4)), Some(Generation(5)), Some(Generation(6))] {
            for bits in 0..32 {
                let (writers, held, intended, synced) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0, bits & 8 != 0);
                let emptied = (bits & 16 != 0).then_some(Generation(6));
                let seen =
                    Local { writers, held, intended, synced, whole, staged, emptied, len: 5, ..Local::default() };
                all.push(seen);
            }
        }
    }
    all
}

fn events() -> Vec<Event> {
    let mut all = vec![
        Event::Read,
        Event::Write { next: Generation(6) },
        Event::Write { next: Generation(1) },
        Event::Free,
        Event::StageBegin,
        Event::TakeBegin,
        Event::WantBegin,
        Event::Resume,
        Event::Called(Call::Head { file: FILE }),
        Event::Called(Call::Head { file: PairFileId(8) }),
    ];
    let mut facts = Vec::new();
    for generation in 4..=6 {
        for epoch in 1..=4 {
            let epoch = Epoch(epoch);
            let content = content(generation);
            all.push(Event::OfferBegin(Staged { epoch, content }));
            all.push(Event::Called(Call::Stage { file: FILE, epoch, content }));
            all.push(Event::Answered(Answer::Staged { epoch, generation: content.generation }));
            facts.extend(PHASES.map(|phase| Facts { epoch, phase, content }));
        }
        all.push(Event::Called(Call::Get { file: FILE, generation: Generation(generation) }));
        all.push(Event::Called(Call::Want { file: FILE, generation: Generation(generation) }));
        for ticket in tickets() {
            all.push(Event::Called(Call::Ltr { file: FILE, ticket, content: content(generation) }));
            all.push(Event::Called(Call::Rtl { file: FILE, ticket, generation: Generation(generation) }));
            all.push(Event::Answered(Answer::Granted { ticket, content: content(generation) }));
            all.push(Event::Answered(Answer::Offered { ticket, content: content(generation) }));
        }
    }
    for told in facts {
        all.push(Event::Answered(Answer::Facts(told)));
        for ticket in [None, Some(tickets()[2]), Some(tickets()[3]), Some(tickets()[5])] {
            let refusal = Refusal::Changed;
            all.push(Event::Answered(Answer::Refused { ticket, refusal, facts: Some(told) }));
            all.push(Event::Answered(Answer::Refused { ticket, refusal, facts: None }));
        }
    }
    all
}

fn check_save(own: &Ownership, local: &Local, event: Event, saved: &Ownership) {
    let what = || format!("{own:?}\n{local:?}\n{event:?}\n→ {saved:?}");
    assert_eq!(saved.file, own.file);
    assert!(saved != own, "nothing is saved twice: {}", what());
    assert!(saved.epoch == own.epoch || saved.epoch == own.epoch.next(), "{}", what());
    assert!(saved.content.generation >= own.content.generation, "{}", what());
    if saved.epoch == own.epoch {
        assert!(saved.attempt >= own.attempt && saved.refused >= own.refused, "{}", what());
        let (was, is) =
            (own.is_owner() || own.phase == Phase::Offering, saved.is_owner() || saved.phase == Phase::Offering);
        assert_eq!(was, is, "nobody becomes an owner within an epoch: {}", what());
        assert!(
            saved.content.generation == own.content.generation || !own.phase.is_asking() || !saved.phase.is_local()
        );
    }
}

#[test]
fn every_combination_has_a_verdict_and_ends() {
    let (events, locals) = (events(), locals());
    let mut cases = 0;
    for first in states() {
        for seen in &locals {
            for event in &events {
                cases += 1;
                let (mut own, mut local) = (first, *seen);
                // What is asked for first is done: the same event comes to an end after a few steps.
                let mut steps = 0;
                loop {
                    steps += 1;
                    assert!(steps < 8, "{first:?}\n{seen:?}\n{event:?}");
                    match decide(&own, &local, *event) {
                        Verdict::Save(saved) => {
                            check_save(&own, &local, *event, &saved);
                            own = saved;
                        }
                        Verdict::Intend => local.intended = true,
                        Verdict::Fetch(content) | Verdict::Install(content) => {
                            assert!(!local.held && !own.phase.is_local());
                            assert_eq!(content, own.content);
                            local.whole = Some(content.generation);
                        }
                        Verdict::Sync => local.synced = true,
                        Verdict::Cut => {
                            assert!(own.phase == Phase::Stub && !local.held && local.emptied.is_some());
                            local.cut = true;
                        }
                        Verdict::Keep(staged) => local.staged = Some(staged),
                        _ => break,
                    }
                }
            }
        }
    }
    println!("{cases} combinations");
}

/// The heart of it: a refusal that an asker goes back on is never followed by a grant of the same ticket, whatever is seen later.
#[test]
fn what_was_refused_is_never_granted() {
    let (mut locals, events) = (locals(), events());
    // Nothing that has a ticket looks at that.
    locals.retain(|local| !local.intended);
    let calls = events.iter().filter(|event| matches!(event, Event::Called(Call::Ltr { .. } | Call::Rtl { .. })));
    for event in calls {
        for first in states() {
            for seen in &locals {
                let Some(own) = refused(first, *seen, *event) else { continue };
                for later in &locals {
                    assert!(refused(own, *later, *event).is_some(), "{own:?}\n{later:?}\n{event:?}");
                }
            }
        }
    }
}

/// What is durable when the call has been refused; `None`: it is granted, or on its way to be.
fn refused(mut own: Ownership, mut local: Local, call: Event) -> Option<Ownership> {
    loop {
        match decide(&own, &local, call) {
            Verdict::Save(saved) if saved.epoch == own.epoch => own = saved,
            Verdict::Sync => local.synced = true,
            Verdict::Answer(Answer::Refused { .. }) => return Some(own),
            _ => return None,
        }
    }
}

#[test]
fn a_call_for_another_file_is_not_answered() {
    let own = Ownership::first_stub(FILE, content(5));
    let ticket = tickets()[0];
    let call = Call::Ltr { file: PairFileId(8), ticket, content: content(5) };
    assert_eq!(decide(&own, &Local::default(), Event::Called(call)), Verdict::Silence);
}

#[test]
fn what_is_stored_and_sent_is_read_back() {
    for own in states() {
        let stored = postcard::to_stdvec(&own).unwrap();
        assert_eq!(postcard::from_bytes::<Ownership>(&stored), Ok(own));
    }
    for event in events() {
        match event {
            Event::Called(call) => {
                let sent = serde_json::to_string(&call).unwrap();
                assert_eq!(serde_json::from_str::<Call>(&sent).unwrap(), call);
            }
            Event::Answered(answer) => {
                let sent = postcard::to_stdvec(&answer).unwrap();
                assert_eq!(postcard::from_bytes::<Answer>(&sent), Ok(answer));
            }
            _ => {}
        }
    }
    let id = PairFileId(0x00ff);
    assert_eq!(id.to_string(), "000000000000000000000000000000ff");
    assert_eq!(id.to_string().parse(), Ok(id));
    for bad in ["", "ff", "+00000000000000000000000000000ff", "000000000000000000000000000000FF"] {
        assert!(bad.parse::<PairFileId>().is_err(), "{bad:?}");
    }
}
