//! What may happen next: the frame in which every subject puts its steps.

use std::fmt;

use tierfs::peer::{Ownership, Phase};

use crate::bugs::Bug;
use crate::explorer::{self, Explored, Kind};
use crate::state::{Spent, State};
use crate::{calls, crashes, invariants, jobs, users};

pub type Next = explorer::Next<State, Label>;

/// What a step does, and on which side.
#[derive(Clone, Copy, Debug)]
pub struct Label {
    side: Option<usize>,
    what: &'static str,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = self.side.map_or("", |side| ["east: ", "west: "][side]);
        write!(f, "{side}{}", self.what)
    }
}

/// What is explored: how often what may happen at most, from where, and what is broken.
#[derive(Clone, Copy, Debug)]
pub struct World {
    pub bounds: Spent,
    /// All bytes are at the stub at first.
    pub partial: bool,
    pub bug: Option<Bug>,
}

impl Explored for World {
    type State = State;
    type Label = Label;

    fn initial(&self) -> Vec<State> {
        vec![State::first(self.partial)]
    }

    /// The system's steps come in an order in which nobody starves: what was asked is answered before anything is asked anew.
    fn steps(&self, state: &State, next: &mut Vec<Next>) {
        let mut out = Out { world: self, from: state, next };
        let both = |out: &mut Out, steps: fn(&mut Out, usize)| (0..2).for_each(|side| steps(out, side));
        both(&mut out, calls::handle);
        calls::deliver(&mut out);
        both(&mut out, users::finish);
        both(&mut out, crashes::tidy);
        both(&mut out, jobs::ask);
        both(&mut out, jobs::work);
        both(&mut out, users::ask);
        both(&mut out, users::wish);
        both(&mut out, crashes::crash);
        calls::disturb(&mut out);
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        invariants::broken(state)
    }

    fn is_at_rest(&self, state: &State) -> bool {
        state.is_at_rest()
    }
}

/// Collects the steps from one state.
pub struct Out<'a> {
    pub world: &'a World,
    pub from: &'a State,
    next: &'a mut Vec<Next>,
}

impl Out<'_> {
    pub fn has(&self, bug: Bug) -> bool {
        self.world.bug == Some(bug)
    }

    pub fn step(&mut self, kind: Kind, side: Option<usize>, what: &'static str, change: impl FnOnce(&mut State)) {
        let mut state = self.from.clone();
        change(&mut state);
        self.next.push(Next { kind, label: Label { side, what }, state });
    }

    pub fn system(&mut self, side: usize, what: &'static str, change: impl FnOnce(&mut State)) {
        self.step(Kind::System, Some(side), what, change);
    }

    /// A user's step, as often as `spent` of it is within bounds.
    pub fn user(
        &mut self,
        side: usize,
        what: &'static str,
        spent: fn(&mut Spent) -> &mut u8,
        change: impl FnOnce(&mut State),
    ) {
        self.within(Kind::User, Some(side), what, spent, change);
    }

    /// A failure, as often as `spent` of it is within bounds.
    pub fn fault(
        &mut self,
        side: Option<usize>,
        what: &'static str,
        spent: fn(&mut Spent) -> &mut u8,
        change: impl FnOnce(&mut State),
    ) {
        self.within(Kind::Fault, side, what, spent, change);
    }

    fn within(
        &mut self,
        kind: Kind,
        side: Option<usize>,
        what: &'static str,
        spent: fn(&mut Spent) -> &mut u8,
        change: impl FnOnce(&mut State),
    ) {
        if self.may(spent) {
            self.step(kind, side, what, |state| {
                *spent(&mut state.spent) += 1;
                change(state);
            });
        }
    }

    /// Whether it may happen once more.
    pub fn may(&self, spent: fn(&mut Spent) -> &mut u8) -> bool {
        let (mut bounds, mut now) = (self.world.bounds, self.from.spent);
        *spent(&mut now) < *spent(&mut bounds)
    }
}

impl State {
    /// The record is stored, durably and in one step.
    pub fn save(&mut self, side: usize, record: Ownership) {
        let was = *self.sides[side].own();
        self.sides[side].record = record;
        self.sides[side].mem = None;
        self.learn(side, was, record);
    }

    /// It is not stored, and the process goes on as if it were.
    pub fn believe(&mut self, side: usize, record: Ownership) {
        let was = *self.sides[side].own();
        self.sides[side].mem = Some(record);
        self.learn(side, was, record);
    }

    /// A generation that is published from now on is what the file is now.
    fn learn(&mut self, side: usize, was: Ownership, is: Ownership) {
        // What was offered was thrown away; that somebody wanted it so makes it the content.
        let emptied = was.phase == Phase::Stub && is.is_owner() && is.content.generation > was.content.generation;
        if emptied && self.sides[side].empties() {
            self.truth.set_len(0);
            self.sides[side].emptied = true;
        }
        if emptied || was.phase == (Phase::Owner { published: false }) && is.phase == (Phase::Owner { published: true })
        {
            let image = self.sides[side].bytes.now;
            let known = &mut self.history[is.content.generation.0 as usize];
            if known.is_some_and(|known| known != image) {
                self.violation = Some("one generation has two contents");
            }
            *known = Some(image);
        }
    }
}
