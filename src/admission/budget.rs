//! Budgets: files and bytes that somebody may have on their way at once, and bytes over time.
//!
//! Invariant: who holds nothing may always begin one file, whatever its size, once his time has come: no budget refuses for ever.

use std::collections::HashMap;

use super::{Requester, Subject};
use crate::types::FileId;

/// So many bytes in so much time, on average. What is not used is saved up for one such time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub bytes: u64,
    pub per_ns: u64,
}

/// What one subject may use. `Each…` has one such budget for each of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    pub of: Subject,
    /// Files on their way at once.
    pub files: Option<usize>,
    /// Bytes on their way at once; a larger file comes alone.
    pub bytes: Option<u64>,
    pub rate: Option<Rate>,
}

/// Of a budget's users, the one it is counted for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum One {
    All,
    Uid(u32),
    Name(String),
}

/// For whom something is counted: a budget, and the one of its users.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Counted(usize, One);

/// A file that one has on its way.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    /// How often it was let in.
    times: usize,
    /// The most that was wanted of it at once.
    bytes: u64,
}

/// How far the recall of a file is paid for.
#[derive(Clone, Copy, Debug)]
struct Paid {
    /// What the recall had brought then: one that has brought less is another one.
    done: u64,
    until: u64,
}

/// Files of an account of which it is remembered how far they are paid for. Of a forgotten one only what is wanted next is paid.
const PAID_MAX: usize = 256;

/// What one has on its way.
#[derive(Debug)]
struct Account {
    files: HashMap<FileId, Held>,
    paid: HashMap<FileId, Paid>,
    bytes: u64,
    /// Bytes that may still come; below zero after a file that was larger.
    left: i128,
    at_ns: u64,
}

/// What somebody wants of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Bytes that its recall has brought already; 0 where none runs.
    pub done: u64,
    /// Bytes that he wants beyond those.
    pub more: u64,
}

impl Wanted {
    fn all(self) -> u64 {
        self.done.saturating_add(self.more)
    }
}

/// What somebody was let in with; to be given back by [`Budgets::leave`].
#[derive(Debug)]
pub struct Ticket {
    file: FileId,
    keys: Vec<Counted>,
}

impl Ticket {
    /// For whom it is counted; nobody, where no budget covers who was let in.
    pub fn counted(&self) -> &[Counted] {
        &self.keys
    }
}

/// The answer to who wants a file.
#[derive(Debug)]
pub enum Entry {
    Go(Ticket),
    /// Ask again when somebody has left, and at the time given, if there is one.
    Wait {
        until_ns: Option<u64>,
    },
}

/// All budgets and who uses them.
#[derive(Debug)]
pub struct Budgets {
    rules: Vec<Budget>,
    accounts: HashMap<Counted, Account>,
}

/// Accounts at which those that are not used are thrown out.
const ACCOUNTS_MAX: usize = 1024;

impl Budget {
    fn one(&self, requester: &Requester) -> One {
        match &self.of {
            Subject::All | Subject::Uid(_) | Subject::Program(_) | Subject::Cgroup(_) => One::All,
            Subject::EachUid => One::Uid(requester.uid),
            Subject::EachProgram => One::Name(requester.program.clone()),
            Subject::EachCgroup => One::Name(requester.cgroup.clone()),
        }
    }

    fn full(&self) -> i128 {
        self.rate.map_or(0, |rate| rate.bytes.into())
    }
}

impl Account {
    fn new(budget: &Budget, now_ns: u64) -> Self {
        Self { files: HashMap::new(), paid: HashMap::new(), bytes: 0, left: budget.full(), at_ns: now_ns }
    }

    /// Adds what time has brought.
    fn refill(&mut self, budget: &Budget, now_ns: u64) {
        let Some(rate) = budget.rate else { return };
        let passed = now_ns.saturating_sub(self.at_ns);
        let more = i128::from(rate.bytes) * i128::from(passed) / i128::from(rate.per_ns.max(1));
        // What is less than a byte stays to be counted.
        if more > 0 {
            self.left = (self.left + more).min(budget.full());
            self.at_ns = now_ns;
        }
    }

    /// When the next byte may come.
    fn pays_at(&self, rate: Rate) -> u64 {
        let owed = 1 - self.left;
        let takes = owed * i128::from(rate.per_ns) / i128::from(rate.bytes.max(1)) + 1;
        self.at_ns.saturating_add(u64::try_from(takes).unwrap_or(u64::MAX))
    }

    /// `Err`: not now, but perhaps at the time given, or when something was given back.
    fn room(&self, budget: &Budget, file: FileId, wanted: Wanted) -> Result<(), Option<u64>> {
        let held = self.files.get(&file);
        if held.is_none() && budget.files.is_some_and(|max| self.files.len() >= max.max(1)) {
            return Err(None);
        }
        let more = wanted.more.saturating_sub(held.map_or(0, |held| held.bytes));
        if more > 0 && budget.bytes.is_some_and(|max| self.bytes > 0 && self.bytes.saturating_add(more) > max) {
            return Err(None);
        }
        match budget.rate {
            Some(rate) if self.left <= 0 && self.cost(file, wanted) > 0 => Err(Some(self.pays_at(rate))),
            _ => Ok(()),
        }
    }

    /// What is to be paid for: what is wanted, and what came since this one asked last.
    fn cost(&self, file: FileId, wanted: Wanted) -> u64 {
        match self.paid.get(&file) {
            Some(paid) if wanted.done >= paid.done => wanted.all().saturating_sub(paid.until),
            _ => wanted.more,
        }
    }

    fn take(&mut self, budget: &Budget, file: FileId, wanted: Wanted) {
        if budget.rate.is_some() {
            self.left -= i128::from(self.cost(file, wanted));
            if self.paid.len() >= PAID_MAX {
                self.paid.clear();
            }
            let before = self.paid.get(&file).filter(|paid| wanted.done >= paid.done).map_or(0, |paid| paid.until);
            self.paid.insert(file, Paid { done: wanted.done, until: before.max(wanted.all()) });
        }
        let held = self.files.entry(file).or_default();
        held.times += 1;
        self.bytes += wanted.more.saturating_sub(held.bytes);
        held.bytes = held.bytes.max(wanted.more);
    }
}

impl Budgets {
    pub fn new(rules: Vec<Budget>) -> Self {
        Self { rules, accounts: HashMap::new() }
    }

    /// Whether there is nothing to count.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Lets `requester` in who wants some of a file, or says when to ask again. A file that his budget has on its way already is no further
    /// file, and what its recall has brought since is paid for now.
    pub fn enter(&mut self, requester: &Requester, file: FileId, wanted: Wanted, now_ns: u64) -> Entry {
        let rules = self.rules.iter().enumerate().filter(|(_, budget)| budget.of.covers(requester));
        let keys: Vec<Counted> = rules.map(|(n, budget)| Counted(n, budget.one(requester))).collect();
        let mut until_ns = None;
        let mut waits = false;
        for key in &keys {
            let budget = &self.rules[key.0];
            let account = self.accounts.entry(key.clone()).or_insert_with(|| Account::new(budget, now_ns));
            account.refill(budget, now_ns);
            if let Err(at) = account.room(budget, file, wanted) {
                waits = true;
                // All must agree: no sooner than the last of those who know a time.
                until_ns = until_ns.max(at);
            }
        }
        if waits {
            return Entry::Wait { until_ns };
        }
        for key in &keys {
            self.accounts.get_mut(key).expect("made above").take(&self.rules[key.0], file, wanted);
        }
        Entry::Go(Ticket { file, keys })
    }

    /// Takes a ticket back.
    pub fn leave(&mut self, ticket: Ticket) {
        for key in &ticket.keys {
            let Some(account) = self.accounts.get_mut(key) else { continue };
            if let Some(held) = account.files.get_mut(&ticket.file) {
                held.times -= 1;
                if held.times == 0 {
                    account.bytes -= held.bytes;
                    account.files.remove(&ticket.file);
                }
            }
        }
        if self.accounts.len() > ACCOUNTS_MAX {
            let rules = &self.rules;
            self.accounts.retain(|key, account| !account.files.is_empty() || account.left < rules[key.0].full());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn file(ino: u64) -> FileId {
        FileId { ino, birth: 1 }
    }

    fn more(more: u64) -> Wanted {
        Wanted { done: 0, more }
    }

    fn user(uid: u32) -> Requester {
        Requester { uid, program: format!("p{uid}"), ..Requester::default() }
    }

    fn budgets(of: Subject, files: Option<usize>, bytes: Option<u64>, rate: Option<(u64, u64)>) -> Budgets {
        let rate = rate.map(|(bytes, seconds)| Rate { bytes, per_ns: seconds * S });
        Budgets::new(vec![Budget { of, files, bytes, rate }])
    }

    #[track_caller]
    fn go(entry: Entry) -> Ticket {
        match entry {
            Entry::Go(ticket) => ticket,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn waits(entry: Entry) -> Option<u64> {
        match entry {
            Entry::Wait { until_ns } => until_ns,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn files_at_once_are_counted_for_each_user() {
        let mut all = budgets(Subject::EachUid, Some(2), None, None);
        let first = go(all.enter(&user(1), file(1), more(10), 0));
        go(all.enter(&user(1), file(2), more(10), 0));
        assert_eq!(waits(all.enter(&user(1), file(3), more(10), 0)), None);
        // Another one's reader of a file under way, and another user, are let in.
        let again = go(all.enter(&user(1), file(1), more(10), 0));
        go(all.enter(&user(2), file(3), more(10), 0));
        all.leave(first);
        waits(all.enter(&user(1), file(3), more(10), 0));
        all.leave(again);
        go(all.enter(&user(1), file(3), more(10), 0));
    }

    #[test]
    fn bytes_at_once_let_a_larger_file_come_alone() {
        let mut all = budgets(Subject::All, None, Some(100), None);
        let large = go(all.enter(&user(1), file(1), more(1_000), 0));
        waits(all.enter(&user(2), file(2), more(1), 0));
        all.leave(large);
        go(all.enter(&user(1), file(3), more(60), 0));
        go(all.enter(&user(1), file(4), more(40), 0));
        waits(all.enter(&user(1), file(5), more(1), 0));
    }

    #[test]
    fn bytes_over_time_are_paid_back() {
        let mut all = budgets(Subject::EachProgram, None, None, Some((100, 10)));
        for n in 0..4 {
            let ticket = go(all.enter(&user(1), file(n), more(25), 0));
            all.leave(ticket);
        }
        let at = waits(all.enter(&user(1), file(9), more(25), 0)).unwrap();
        waits(all.enter(&user(1), file(9), more(25), at - S / 100));
        // The whole of it, for it is larger; then its time must be waited out.
        let ticket = go(all.enter(&user(1), file(9), more(1_000), at + S / 10));
        all.leave(ticket);
        // Another file: the whole of that one is paid for.
        let at = waits(all.enter(&user(1), file(10), more(1), 2 * S)).unwrap();
        assert!((99 * S..=101 * S).contains(&at), "{at}");
        go(all.enter(&user(2), file(9), more(1), 2 * S));
        go(all.enter(&user(1), file(10), more(1), at));
        // However long nothing was used: one burst.
        let ticket = go(all.enter(&user(3), file(1), more(100), 1_000_000 * S));
        all.leave(ticket);
        waits(all.enter(&user(3), file(2), more(1), 1_000_000 * S));
    }

    #[test]
    fn who_reads_on_pays_for_what_came_since() {
        let mut all = budgets(Subject::EachUid, Some(1), Some(50), Some((100, 10)));
        let mut ask = |uid, done, more| match all.enter(&user(uid), file(1), Wanted { done, more }, 0) {
            Entry::Go(ticket) => {
                all.leave(ticket);
                let (_, account) = all.accounts.iter().find(|(key, _)| key.1 == One::Uid(uid)).unwrap();
                Some(account.left)
            }
            Entry::Wait { .. } => None,
        };
        assert_eq!(ask(1, 0, 10), Some(90));
        // Ten were paid for, fifty came, and twenty more are wanted.
        assert_eq!(ask(1, 50, 20), Some(30));
        assert_eq!(ask(1, 60, 10), Some(30), "paid for already");
        // Another recall of the file: it brought less.
        assert_eq!(ask(1, 0, 20), Some(10));
        assert_eq!(ask(1, 40, 20), Some(-30));
        assert_eq!(ask(1, 60, 20), None);
        assert_eq!(ask(1, 40, 10), Some(-30), "what is paid for may come");
        // Who joins pays for what he wants, and not for what came before.
        assert_eq!(ask(2, 1_000, 60), Some(40));
        assert!(all.accounts.values().all(|account| account.files.is_empty() && account.bytes == 0));
        for n in 0..3 * PAID_MAX as u64 {
            let ticket = go(all.enter(&user(3), file(n), more(0), 0));
            all.leave(ticket);
        }
        assert!(all.accounts.values().all(|account| account.paid.len() <= PAID_MAX));
    }

    #[test]
    fn all_budgets_of_somebody_must_agree_and_none_is_charged_before() {
        let of = |of, files| Budget { of, files: Some(files), bytes: None, rate: None };
        let mut all = Budgets::new(vec![of(Subject::All, 3), of(Subject::Uid(1), 1)]);
        let mine = go(all.enter(&user(1), file(1), more(0), 0));
        for n in 2..9 {
            waits(all.enter(&user(1), file(n), more(0), 0));
        }
        go(all.enter(&user(2), file(2), more(0), 0));
        go(all.enter(&user(2), file(3), more(0), 0));
        waits(all.enter(&user(2), file(4), more(0), 0));
        all.leave(mine);
        go(all.enter(&user(2), file(4), more(0), 0));
        waits(all.enter(&user(1), file(5), more(0), 0));
    }

    #[test]
    fn who_is_under_no_rule_is_not_counted_and_accounts_do_not_pile_up() {
        let mut all = budgets(Subject::Uid(7), Some(1), None, None);
        for n in 0..10 {
            go(all.enter(&user(1), file(n), more(u64::MAX), 0));
        }
        assert!(all.accounts.is_empty() && !all.is_empty());
        let mut each = budgets(Subject::EachUid, Some(1), None, Some((1, 1)));
        for uid in 0..3 * ACCOUNTS_MAX as u32 {
            let ticket = go(each.enter(&user(uid), file(1), more(0), 0));
            each.leave(ticket);
        }
        assert!(each.accounts.len() <= ACCOUNTS_MAX + 1);
    }
}
