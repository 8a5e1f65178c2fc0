//! Many members of one pack brought back by one request: what several files of a job want of a pack is fetched together.
//!
//! Each file's recall goes its own way: note, look, verify, write, sync, record. Only where it would ask for its content it first says here that it wants it, and waits
//! until the others of the job that want some of the same pack have said so too; then it gets its part of what one GET brought, and compares its hash as it would that of an answer of its own.
//! Who gets nothing here asks by himself. Invariants: only files that a job has announced wait here, once an attempt, and no longer than nobody but jobs wants them; what
//! was fetched together is in memory for no longer than somebody holds a part of it, and has its share of the memory for recalls as long.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::slots::RequestRoom;
use super::{Cell, Engine};
use crate::admission::Class;
use crate::ports::Remote;
use crate::record::{ObjectRef, place_of};
use crate::types::{ByteRange, FileId, ObjectKey, PairName};

/// A pack's members are fetched once no other was asked for so long, unless a job is about to ask for more of them …
const LINGER: Duration = Duration::from_millis(5);
/// … and after so many times that, in any case.
const LINGERS_MAX: u32 = 40;
/// What is between two members is fetched with them, if it is no longer than this, in bytes: another request would cost more.
const GAP_MAX: u64 = 64 << 10;
/// Bytes of one request at most.
const REQUEST_MAX: u64 = 8 << 20;

/// What is fetched together: members of one pack, as one version of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PackOf {
    pair: PairName,
    pack: ObjectKey,
    etag: String,
}

impl PackOf {
    /// With the member's place. `None`: the object is no member, or not of one chunk.
    fn of(object: &ObjectRef) -> Option<(Self, ByteRange)> {
        let place = place_of(&object.key).filter(|place| object.chunks() == 1 && place.range.len == object.len)?;
        let (pair, pack, etag) = (object.pair.name.clone(), place.pack.key(), object.etag.clone());
        Some((Self { pair, pack, etag }, place.range))
    }
}

/// A file that a job recalls: until this is dropped its content may come with others'.
pub(super) struct Coming {
    engine: Arc<Engine>,
    file: FileId,
    pack: PackOf,
    /// Its record need not be read once more.
    _cell: Arc<Cell>,
}

impl Drop for Coming {
    fn drop(&mut self) {
        let mut state = self.engine.bulk.state.lock();
        // The file's recall was not asked for its content, or it was another job's.
        if state.files.remove(&self.file) == Some(Announced::Comes) {
            state.has_come(&self.pack);
        }
        self.engine.bulk.announced.store(state.files.len(), Ordering::SeqCst);
    }
}

/// While it lives, a job may announce more files.
pub(super) struct Listing(Arc<Engine>);

impl Drop for Listing {
    fn drop(&mut self) {
        self.0.bulk.listing.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Announced {
    Comes,
    /// It has wanted its content; if it wants it again, something was wrong with what it got.
    Came,
}

/// What one of several files gets of what was fetched together.
pub(super) struct Part {
    pub content: Bytes,
    /// Of all of it.
    pub room: Arc<RequestRoom>,
}

/// Somebody who waits for his part.
struct Waiting {
    range: ByteRange,
    answer: oneshot::Sender<Part>,
}

/// Members of a pack that will be fetched together.
struct Open {
    remote: Arc<dyn Remote>,
    uid: u32,
    waiting: Vec<Waiting>,
    bytes: u64,
    /// Tells it from the next one of the same pack.
    number: u64,
}

#[derive(Default)]
struct State {
    files: HashMap<FileId, Announced>,
    /// Files that were announced and have not come yet.
    coming: HashMap<PackOf, usize>,
    open: HashMap<PackOf, Open>,
    number: u64,
}

impl State {
    fn has_come(&mut self, pack: &PackOf) {
        if let Some(count) = self.coming.get_mut(pack) {
            *count -= 1;
            if *count == 0 {
                self.coming.remove(pack);
            }
        }
    }
}

/// What jobs of one engine fetch together.
#[derive(Default)]
pub(super) struct Bulk {
    /// Files that jobs have announced: without any, nobody takes the lock.
    announced: AtomicUsize,
    listing: AtomicUsize,
    state: Mutex<State>,
}

/// Keeps the room as long as any part of the bytes is in use.
struct Fetched {
    bytes: Bytes,
    _room: Arc<RequestRoom>,
}

impl AsRef<[u8]> for Fetched {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Engine {
    /// To be held by a job while it may call [`Engine::announce_recall`].
    pub(super) fn list_recalls(self: &Arc<Self>) -> Listing {
        self.bulk.listing.fetch_add(1, Ordering::SeqCst);
        Listing(self.clone())
    }

    /// A job is about to recall the file. `None`: there is nothing to bring back, its content is in no pack, or another job has announced it.
    pub(super) fn announce_recall(self: &Arc<Self>, cell: Arc<Cell>) -> Option<Coming> {
        let pack = {
            let inner = cell.lock();
            let away = inner.record.claim.is_remote();
            inner.record.object.as_ref().filter(|_| away).and_then(PackOf::of)?.0
        };
        let file = cell.node.id;
        let mut state = self.bulk.state.lock();
        if state.files.contains_key(&file) {
            return None;
        }
        state.files.insert(file, Announced::Comes);
        *state.coming.entry(pack.clone()).or_default() += 1;
        self.bulk.announced.store(state.files.len(), Ordering::SeqCst);
        drop(state);
        Some(Coming { engine: self.clone(), file, pack, _cell: cell })
    }

    /// The content of a file that a job recalls, as it came with others'; not verified. `None`: it is to be asked for by itself.
    pub(super) async fn content_in_bulk(
        self: &Arc<Self>,
        file: FileId,
        object: &ObjectRef,
        range: ByteRange,
    ) -> Option<Part> {
        if self.bulk.announced.load(Ordering::SeqCst) == 0 || (range.offset, range.len) != (0, object.len) {
            return None;
        }
        let (pack, range) = PackOf::of(object)?;
        let (class, uid) = self.running.class_of(file);
        if class != Class::Bulk {
            return None;
        }
        let remote = self.source(file, object).ok()?;
        let (answer, answered) = oneshot::channel();
        self.want_in_bulk(file, pack, remote, uid, Waiting { range, answer })?;
        tokio::select! {
            biased;
            // Dropped unanswered: it could not be fetched so.
            part = answered => part.ok(),
            // Somebody waits for it now, and does not wait for others.
            () = self.running.until_above(file, Class::Bulk) => None,
        }
    }

    /// `None`: the file was not announced, or came before.
    fn want_in_bulk(
        self: &Arc<Self>,
        file: FileId,
        pack: PackOf,
        remote: Arc<dyn Remote>,
        uid: u32,
        waiting: Waiting,
    ) -> Option<()> {
        let mut state = self.bulk.state.lock();
        let announced = state.files.get_mut(&file).filter(|announced| **announced == Announced::Comes)?;
        *announced = Announced::Came;
        state.has_come(&pack);
        let len = waiting.range.len;
        if !state.open.contains_key(&pack) {
            state.number += 1;
            let number = state.number;
            state.open.insert(pack.clone(), Open { remote, uid, waiting: Vec::new(), bytes: 0, number });
            let (this, pack) = (self.clone(), pack.clone());
            self.runtime.spawn(async move { this.close_bulk_in_time(pack, number).await });
        }
        let open = state.open.get_mut(&pack).expect("it was just opened");
        open.waiting.push(waiting);
        open.bytes += len;
        let full = open.bytes >= REQUEST_MAX;
        // Nobody else comes who would be waited for.
        let last = state.coming.is_empty() && self.bulk.listing.load(Ordering::SeqCst) == 0;
        if full || last {
            self.close_bulk(&mut state, &pack);
        }
        Some(())
    }

    async fn close_bulk_in_time(self: Arc<Self>, pack: PackOf, number: u64) {
        let (mut seen, mut waited) = (0, 0);
        loop {
            tokio::time::sleep(LINGER).await;
            let mut state = self.bulk.state.lock();
            let Some(open) = state.open.get(&pack).filter(|open| open.number == number) else { return };
            let joined = open.waiting.len();
            waited += 1;
            if joined > seen {
                (seen, waited) = (joined, 0);
            } else if waited >= LINGERS_MAX || !state.coming.contains_key(&pack) {
                return self.close_bulk(&mut state, &pack);
            }
        }
    }

    fn close_bulk(self: &Arc<Self>, state: &mut State, pack: &PackOf) {
        let Some(open) = state.open.remove(pack) else { return };
        let (this, pack) = (self.clone(), pack.clone());
        self.runtime.spawn(async move { this.fetch_bulk(pack, open).await });
    }

    async fn fetch_bulk(self: Arc<Self>, pack: PackOf, open: Open) {
        let Open { remote, uid, mut waiting, .. } = open;
        // Who has left meanwhile needs nothing.
        waiting.retain(|waiting| !waiting.answer.is_closed());
        let fetches = runs(waiting).into_iter().filter(|(_, members)| members.len() > 1).map(|(range, mut members)| {
            let (this, pack, remote) = (&self, &pack, &remote);
            async move {
                let fetch = async {
                    let permit = this.slots.acquire_asking(Class::Bulk, uid, range.len).await.ok()?;
                    // A failure is not told: each asks by himself then, and hears what is wrong with his own.
                    let got = remote.get(&pack.pack, range, Some(&pack.etag)).await.inspect_err(
                        |error| tracing::info!(pack = %pack.pack, "its members are fetched one by one: {error}"),
                    );
                    let bytes = got.ok().filter(|bytes| bytes.len() as u64 == range.len)?;
                    // The slot is given back here: what is left of the request is its room.
                    let room = permit.room().clone();
                    Some((Bytes::from_owner(Fetched { bytes, _room: room.clone() }), room))
                };
                let (all, room) = tokio::select! {
                    biased;
                    all = fetch => all?,
                    () = left(&mut members) => return None,
                };
                for Waiting { range: part, answer } in members {
                    let at = (part.offset - range.offset) as usize;
                    // Who has left meanwhile gives his part back.
                    let content = all.slice(at..at + part.len as usize);
                    drop(answer.send(Part { content, room: room.clone() }));
                }
                Some(())
            }
        });
        futures::future::join_all(fetches).await;
    }
}

/// Ends when nobody waits any more.
async fn left(members: &mut [Waiting]) {
    for member in members {
        member.answer.closed().await;
    }
}

/// What is fetched by one request each, and for whom.
fn runs(mut waiting: Vec<Waiting>) -> Vec<(ByteRange, Vec<Waiting>)> {
    waiting.sort_unstable_by_key(|waiting| (waiting.range.offset, waiting.range.len));
    let mut runs: Vec<(ByteRange, Vec<Waiting>)> = Vec::new();
    for one in waiting {
        let end = one.range.end();
        match runs.last_mut() {
            Some((run, members))
                if one.range.offset <= run.end() + GAP_MAX && end.max(run.end()) - run.offset <= REQUEST_MAX =>
            {
                run.len = end.max(run.end()) - run.offset;
                members.push(one);
            }
            _ => runs.push((one.range, vec![one])),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_that_are_near_come_together() {
        let check = |ranges: &[(u64, u64)], want: &[(u64, u64, usize)]| {
            let waiting = |&(offset, len): &(u64, u64)| Waiting {
                range: ByteRange { offset, len },
                answer: oneshot::channel().0,
            };
            let found = runs(ranges.iter().map(waiting).collect());
            let found: Vec<_> = found.iter().map(|(run, members)| (run.offset, run.len, members.len())).collect();
            assert_eq!(found, want, "{ranges:?}");
        };
        check(&[], &[]);
        check(&[(5, 1)], &[(5, 1, 1)]);
        // In whatever order; two files may name one member.
        check(&[(30, 10), (0, 10), (10, 20), (10, 20)], &[(0, 40, 4)]);
        check(&[(0, 10), (10 + GAP_MAX, 1)], &[(0, GAP_MAX + 11, 2)]);
        check(&[(0, 10), (11 + GAP_MAX, 1)], &[(0, 10, 1), (GAP_MAX + 11, 1, 1)]);
        let half = REQUEST_MAX / 2;
        check(&[(0, half), (half, half), (REQUEST_MAX, 1)], &[(0, REQUEST_MAX, 2), (REQUEST_MAX, 1, 1)]);
    }
}
