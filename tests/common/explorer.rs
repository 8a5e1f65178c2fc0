//! Breadth first through all states: each is checked once, known by a fingerprint of 64 bits; the first way to a violation is a shortest one.
//!
//! Liveness: from each state the first enabled step of the system, no user and no fault interfering, leads to the next. All these ways must
//! end where nobody waits and nothing runs.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::fmt::{Debug, Display};
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Whose step it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Goes on by itself, sooner or later.
    System,
    /// A user's or an administrator's wish.
    User,
    /// Something fails or dies.
    Fault,
}

/// A step and where it leads.
#[derive(Debug)]
pub struct Next<State, Label> {
    pub kind: Kind,
    pub label: Label,
    pub state: State,
}

/// What is explored.
pub trait Explored {
    type State: Clone + Hash + Debug;
    type Label: Copy + Display;

    fn initial(&self) -> Vec<Self::State>;

    /// All steps from `state`; of the system's, the first is the one that it takes when nothing interferes.
    fn steps(&self, state: &Self::State, next: &mut Vec<Next<Self::State, Self::Label>>);

    /// The first rule that does not hold.
    fn broken(&self, state: &Self::State) -> Option<&'static str>;

    /// Nobody waits and nothing runs.
    fn is_at_rest(&self, state: &Self::State) -> bool;
}

/// Where a state was come from first, and where the system goes on by itself (0: nowhere).
struct Seen {
    from: u64,
    onward: u64,
}

/// Fingerprints are hashes already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only fingerprints are keys")
    }
    fn write_u64(&mut self, fingerprint: u64) {
        self.0 = fingerprint;
    }
}

type Visited = HashMap<u64, Seen, BuildHasherDefault<Identity>>;

/// Multiplies and rotates words: SipHash takes half of the time of an exploration.
#[derive(Default)]
struct Mix(u64);

impl Mix {
    fn word(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        let mut x = self.0;
        x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        // 0 means none.
        (x ^ (x >> 32)).max(1)
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word) ^ ((chunk.len() as u64) << 56));
        }
    }
    fn write_u8(&mut self, value: u8) {
        self.word(value.into());
    }
    fn write_u64(&mut self, value: u64) {
        self.word(value);
    }
    fn write_usize(&mut self, value: usize) {
        self.word(value as u64);
    }
}

/// A hash of 64 bits, never 0.
pub fn fingerprint(state: &impl Hash) -> u64 {
    let mut mix = Mix::default();
    state.hash(&mut mix);
    mix.finish()
}

/// A rule broken, and the way there.
#[derive(Debug)]
pub struct Violation<State, Label> {
    pub what: String,
    pub trace: Vec<Label>,
    pub state: Box<State>,
}

impl<State: Debug, Label: Display> Display for Violation<State, Label> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, after:", self.what)?;
        self.trace.iter().try_for_each(|step| write!(f, "\n  {step}"))?;
        write!(f, "\n{:?}", self.state)
    }
}

impl<State, Label: Display> Violation<State, Label> {
    /// Prints that a planted bug was found, and the way there.
    pub fn tell_found(self, bug: impl Debug, rule: &str, world: &str, states: usize) {
        println!("{bug:?}, {rule}\n  → {}: {} steps, {states} states of \"{world}\"", self.what, self.trace.len());
        self.trace.iter().for_each(|step| println!("      {step}"));
    }
}

/// What an exploration has come to.
#[derive(Debug)]
pub struct Report<State, Label> {
    pub states: usize,
    pub steps: usize,
    pub depth: usize,
    pub took: Duration,
    /// Not all states were visited.
    pub cut: bool,
    pub violation: Option<Violation<State, Label>>,
}

impl<State, Label> Display for Report<State, Label> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rate = self.states as f64 / self.took.as_secs_f64().max(1e-3);
        let cut = if self.cut { " (cut short)" } else { "" };
        write!(f, "{} states{cut}, {} steps, depth {}, ", self.states, self.steps, self.depth)?;
        write!(f, "{:.1} s, {rate:.0} states/s", self.took.as_secs_f64())
    }
}

pub type ReportOf<W> = Report<<W as Explored>::State, <W as Explored>::Label>;
type ViolationOf<W> = Violation<<W as Explored>::State, <W as Explored>::Label>;
type NextOf<W> = Next<<W as Explored>::State, <W as Explored>::Label>;

/// Visits all states, at most `limit`.
pub fn explore<W: Explored>(world: &W, limit: usize) -> ReportOf<W> {
    let began = Instant::now();
    let mut visited = Visited::default();
    let mut queue = VecDeque::new();
    for state in world.initial() {
        visited.insert(fingerprint(&state), Seen { from: 0, onward: 0 });
        queue.push_back((state, 0));
    }
    let (mut steps, mut depth, mut cut, mut violation) = (0, 0, false, None);
    let mut next = Vec::new();
    while let Some((state, at)) = queue.pop_front() {
        depth = at;
        let mark = fingerprint(&state);
        if let Err(what) = expand(world, &state, &mut next) {
            violation = Some((what, mark));
            break;
        }
        steps += next.len();
        if let Some(onward) = next.iter().find(|next| next.kind == Kind::System) {
            visited.get_mut(&mark).expect("what is queued was visited").onward = fingerprint(&onward.state);
        }
        for Next { state, .. } in next.drain(..) {
            if visited.len() >= limit {
                cut = true;
                break;
            }
            if let Entry::Vacant(entry) = visited.entry(fingerprint(&state)) {
                entry.insert(Seen { from: mark, onward: 0 });
                queue.push_back((state, at + 1));
            }
        }
        if cut {
            break;
        }
    }
    if violation.is_none() {
        violation =
            endless(&visited).map(|mark| ("the system goes round for ever, and somebody waits".to_owned(), mark));
    }
    let states = visited.len();
    let violation = violation.map(|(what, mark)| trace(world, &visited, what, mark));
    Report { states, steps, depth, took: began.elapsed(), cut, violation }
}

/// Checks a state and finds what may follow.
pub fn expand<W: Explored>(world: &W, state: &W::State, next: &mut Vec<NextOf<W>>) -> Result<(), String> {
    next.clear();
    if let Some(what) = world.broken(state) {
        return Err(what.to_owned());
    }
    // The machine's own assertions count as violations.
    let stepped = catch_unwind(AssertUnwindSafe(|| world.steps(state, next)));
    stepped.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
    })?;
    if !next.iter().any(|next| next.kind == Kind::System) && !world.is_at_rest(state) {
        return Err("somebody waits, and nothing goes on".to_owned());
    }
    Ok(())
}

fn trace<W: Explored>(world: &W, visited: &Visited, what: String, mark: u64) -> ViolationOf<W> {
    let mut marks = vec![mark];
    while let Some(from) =
        visited.get(marks.last().expect("it has one")).map(|seen| seen.from).filter(|from| *from != 0)
    {
        marks.push(from);
    }
    let first = marks.pop().expect("it has one");
    let mut state = world.initial().into_iter().find(|state| fingerprint(state) == first).expect("all begin there");
    let (mut trace, mut next) = (Vec::new(), Vec::new());
    for mark in marks.into_iter().rev() {
        next.clear();
        world.steps(&state, &mut next);
        let step = next.iter().find(|next| fingerprint(&next.state) == mark).expect("it was stepped before");
        trace.push(step.label);
        state = step.state.clone();
    }
    Violation { what, trace, state: Box::new(state) }
}

/// A state from which the system alone does not come to rest. (Where the exploration was cut short, a way that leaves it counts as ended.)
fn endless(visited: &Visited) -> Option<u64> {
    let mut ends: HashMap<u64, (), BuildHasherDefault<Identity>> = HashMap::default();
    for start in visited.keys() {
        let (mut way, mut at) = (Vec::new(), *start);
        while at != 0 && !ends.contains_key(&at) {
            // No way is so long: it goes round.
            if way.len() > 2_000 {
                return Some(*start);
            }
            way.push(at);
            at = visited.get(&at).map_or(0, |seen| seen.onward);
        }
        ends.extend(way.into_iter().map(|at| (at, ())));
    }
    None
}
