//! Packing: small files that are archived at one time are stored together, in one object with an index ([`crate::remote::pack`]).
//!
//! Each file comes with its content, read and looked at as for an object of its own, and waits until it is stored; then it goes on by itself. Invariants: all members
//! are noted before the pack is stored, and none is answered before the pack was confirmed. Who does not wait any more has his note rolled back: his range in
//! the pack is nobody's. What is held in memory is bounded by [`HELD_KIB_MAX`].

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::archive::disturbed;
use super::cell::Cell;
use super::error::{EngineError, EngineResult};
use super::orphans::SHARE_METADATA;
use super::source::MemorySource;
use super::{Engine, Target};
use crate::kill;
use crate::ports::{Intent, IntentId, IntentKind, Remote, RemoteError, RemoteErrorKind, Stored};
use crate::record::PackName;
use crate::remote::pack::{Index, Member};
use crate::tier::Refusal;
use crate::types::{ByteRange, ContentHash, Generation, Inode, ObjectKey, PairName};

/// A pack is closed when nobody has joined it for so long, and nobody is on his way …
const LINGER: Duration = Duration::from_millis(10);
/// … or after so many times that, whoever is.
const LINGERS_MAX: u32 = 50;
/// What a pack has at most, in bytes, its index included: one request.
const PACK_MAX: u64 = 8 << 20;
/// Contents in memory, in all packs, in KiB.
const HELD_KIB_MAX: u32 = 64 << 10;
/// What a member takes of an index besides its texts, in bytes.
const ENTRY_OVERHEAD: usize = 64;
/// Metadata of each member is believed to have about this many texts; each has a length in front.
const TEXT_OVERHEAD: usize = 4;

/// Which files a pair has packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    /// Only those shorter than this, in bytes.
    pub below: u64,
    /// A pack of fewer is none: its files get objects of their own.
    pub members_min: usize,
}

impl Target {
    /// Whether a content of `len` bytes goes into a pack with others.
    pub fn packs(&self, len: u64) -> bool {
        self.pack.is_some_and(|packing| len < packing.below) && len <= u64::from(self.chunk_size(len))
    }
}

/// One file's content on its way into a pack.
pub(super) struct Joining {
    pub node: Inode,
    /// The key that an object of its own would have.
    pub key: ObjectKey,
    pub content: Bytes,
    pub metadata: Vec<(String, String)>,
    /// Memory for the content.
    pub _memory: OwnedSemaphorePermit,
}

impl Joining {
    /// What it takes of a pack, in bytes.
    fn takes(&self) -> u64 {
        let texts: usize = self.metadata.iter().map(|(name, value)| name.len() + value.len() + TEXT_OVERHEAD).sum();
        (self.content.len() + self.key.0.len() + texts + ENTRY_OVERHEAD) as u64
    }
}

/// A content that lies in a pack. Its note is rolled back unless somebody takes it over.
pub(super) struct InPack {
    engine: Arc<Engine>,
    note: Option<IntentId>,
    pub key: ObjectKey,
    pub stored: Stored,
}

impl InPack {
    /// The upload's note, now the caller's to end.
    pub(super) fn take_note(&mut self) -> Option<IntentId> {
        self.note.take()
    }
}

impl Drop for InPack {
    fn drop(&mut self) {
        if let Some(note) = self.note.take() {
            let engine = self.engine.clone();
            self.engine.runtime.spawn(async move { engine.roll_back(note).await });
        }
    }
}

/// `None`: there were too few, and it is better an object of its own.
type Answer = EngineResult<Option<InPack>>;

/// A pack that is open for more.
struct Open {
    prefix: String,
    remote: Arc<dyn Remote>,
    members_min: usize,
    members: Vec<(Joining, oneshot::Sender<Answer>)>,
    /// What it would have now, in bytes.
    len: u64,
    /// Tells it from the next one of the same pair.
    number: u64,
}

/// Somebody who will join a pack, or give it up.
pub(super) struct Coming<'a>(&'a AtomicUsize);

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The packs of one engine.
pub(super) struct Packer {
    /// Files that are on their way into a pack.
    coming: AtomicUsize,
    open: Mutex<State>,
    memory: Arc<Semaphore>,
}

#[derive(Default)]
struct State {
    /// One a pair at most.
    packs: HashMap<PairName, Open>,
    number: u64,
    /// Of the last pack.
    generation: Generation,
}

impl Default for Packer {
    fn default() -> Self {
        Self {
            coming: AtomicUsize::new(0),
            open: Mutex::default(),
            memory: Arc::new(Semaphore::new(HELD_KIB_MAX as usize)),
        }
    }
}

impl Engine {
    /// Memory for a content of `len` bytes on its way into a pack.
    pub(super) async fn memory_for_packing(&self, len: u64) -> EngineResult<OwnedSemaphorePermit> {
        let kib = u32::try_from(len.div_ceil(1 << 10)).unwrap_or(HELD_KIB_MAX).min(HELD_KIB_MAX);
        self.packer.memory.clone().acquire_many_owned(kib).await.map_err(|_| EngineError::ShuttingDown)
    }

    /// To be held while a file is on its way into a pack: others wait a little for it.
    pub(super) fn coming_to_pack(&self) -> Coming<'_> {
        self.packer.coming.fetch_add(1, Ordering::SeqCst);
        Coming(&self.packer.coming)
    }

    /// Waits until the content of `cell` lies in a pack. `None`: there were too few to share it with.
    pub(super) async fn into_pack(
        self: &Arc<Self>,
        target: &Target,
        cell: &Cell,
        file: Joining,
        coming: Coming<'_>,
    ) -> Answer {
        let (answer, answered) = oneshot::channel();
        self.join_pack(target, file, answer);
        drop(coming);
        tokio::select! {
            biased;
            answer = answered => answer.unwrap_or(Err(EngineError::ShuttingDown)),
            // As with an object of its own: the asker may hold the inode's lock, which the writer waits for.
            () = disturbed(cell) => Err(EngineError::Refused { file: cell.node.id, why: Refusal::Changed }),
        }
    }

    fn join_pack(self: &Arc<Self>, target: &Target, file: Joining, answer: oneshot::Sender<Answer>) {
        let mut state = self.packer.open.lock();
        let pair = &target.pair.name;
        let takes = file.takes();
        if state.packs.get(pair).is_some_and(|open| open.len + takes > PACK_MAX) {
            self.close(&mut state, pair, None);
        }
        if !state.packs.contains_key(pair) {
            state.number += 1;
            let (prefix, remote, number) = (target.prefix.clone(), target.remote.clone(), state.number);
            let members_min = target.pack.map_or(1, |packing| packing.members_min);
            let open = Open { prefix, remote, members_min, members: Vec::new(), len: 0, number };
            state.packs.insert(pair.clone(), open);
            let (this, pair) = (self.clone(), pair.clone());
            self.runtime.spawn(async move { this.close_in_time(pair, number).await });
        }
        let open = state.packs.get_mut(pair).expect("it was just opened");
        open.len += takes;
        open.members.push((file, answer));
    }

    /// Closes a pack once nobody has joined it for a while.
    async fn close_in_time(self: Arc<Self>, pair: PairName, number: u64) {
        let (mut seen, mut waited) = (0, 0);
        loop {
            tokio::time::sleep(LINGER).await;
            let mut state = self.packer.open.lock();
            let joined = state.packs.get(&pair).filter(|open| open.number == number).map(|open| open.members.len());
            waited += 1;
            match joined {
                Some(joined) if joined > seen => (seen, waited) = (joined, 0),
                Some(_) if waited < LINGERS_MAX && self.packer.coming.load(Ordering::SeqCst) > 0 => {}
                _ => return self.close(&mut state, &pair, Some(number)),
            }
        }
    }

    /// Has the pair's open pack stored; only if it has this `number`, where one is said.
    fn close(self: &Arc<Self>, state: &mut State, pair: &PairName, number: Option<u64>) {
        if state.packs.get(pair).is_none_or(|open| number.is_some_and(|number| number != open.number)) {
            return;
        }
        let Some(open) = state.packs.remove(pair) else { return };
        state.generation = state.generation.after(self.clock.now());
        let (this, pair, generation) = (self.clone(), pair.clone(), state.generation);
        self.runtime.spawn(async move { this.store_pack(pair, open, generation).await });
    }

    /// Notes, stores, confirms, answers.
    async fn store_pack(self: Arc<Self>, pair: PairName, open: Open, generation: Generation) {
        let Open { prefix, remote, members_min, mut members, .. } = open;
        // Who has left meanwhile needs nothing.
        members.retain(|(_, answer)| !answer.is_closed());
        if members.len() < members_min {
            members.into_iter().for_each(|(_, answer)| drop(answer.send(Ok(None))));
            return;
        }
        let share = match self.share_id().await {
            Ok(share) => share.to_owned(),
            Err(error) => return members.into_iter().for_each(|(_, answer)| drop(answer.send(Err(error.clone())))),
        };
        let mut keys = blake3::Hasher::new();
        for (file, _) in &members {
            keys.update(file.key.0.as_bytes());
        }
        let tag = ContentHash(*keys.finalize().as_bytes()).to_string()[..16].to_owned();
        let pack = PackName { prefix, share, generation, tag };
        let noted = self.note_members(&pair, &pack, members).await;
        kill::point("pack.noted");
        let stored = match &noted[..] {
            // Nothing could be noted.
            [] => return,
            members => put_pack(&*remote, &pack, members).await,
        };
        for Noted { file, mut copy, answer, .. } in noted {
            let told = match &stored {
                Ok(stored) => {
                    copy.stored = stored.clone();
                    Ok(Some(copy))
                }
                Err(error) => Err(EngineError::remote(file.node.id)(error.clone())),
            };
            // What nobody takes rolls its note back.
            drop(answer.send(told));
        }
    }

    /// Lays the members out and notes their uploads, durably. Who cannot be noted is told, and is no member.
    async fn note_members(
        self: &Arc<Self>,
        pair: &PairName,
        pack: &PackName,
        members: Vec<(Joining, oneshot::Sender<Answer>)>,
    ) -> Vec<Noted> {
        let mut at = 0;
        let placed = members.into_iter().map(|(file, answer)| {
            let range = ByteRange { offset: at, len: file.content.len() as u64 };
            at += range.len;
            (file, answer, range)
        });
        let notes = placed.map(|(file, answer, range)| async move {
            let key = pack.member(&file.key, range);
            let (pair, node, kind) = (pair.clone(), file.node, IntentKind::Upload);
            let note = self.journal.add(Intent { pair, key: key.clone(), manifest: false, node, kind }).await;
            (file, answer, range, key, note)
        });
        let mut noted = Vec::new();
        for (file, answer, range, key, note) in futures::future::join_all(notes).await {
            match note {
                Ok(note) => {
                    let stored = Stored { etag: String::new(), version: None };
                    let copy = InPack { engine: self.clone(), note: Some(note), key, stored };
                    noted.push(Noted { file, range, copy, answer });
                }
                Err(error) => drop(answer.send(Err(error.into()))),
            }
        }
        noted
    }
}

/// A member whose upload is noted.
struct Noted {
    file: Joining,
    range: ByteRange,
    copy: InPack,
    answer: oneshot::Sender<Answer>,
}

/// Stores a pack and asks for it.
async fn put_pack(remote: &dyn Remote, pack: &PackName, members: &[Noted]) -> Result<Stored, RemoteError> {
    let entry = |member: &Noted| Member {
        key: member.file.key.clone(),
        range: member.range,
        metadata: member.file.metadata.clone(),
    };
    let index = Index::new(members.iter().map(entry).collect()).expect("they were laid out in order");
    let contents = members.last().map_or(0, |last| last.range.end());
    let index = index.encode();
    let mut body = Vec::with_capacity(contents as usize + index.len());
    for member in members {
        // Who could not be noted has left a gap.
        body.resize(member.range.offset as usize, 0);
        body.extend_from_slice(&member.file.content);
    }
    body.extend_from_slice(&index);
    let (key, len) = (pack.key(), body.len() as u64);
    let metadata = [(SHARE_METADATA.to_owned(), pack.share.clone())];
    let stored = remote.put(&key, len, Arc::new(MemorySource(body.into())), &metadata).await?;
    kill::point("pack.stored");
    let found = remote.head(&key).await?;
    if (found.len, &found.etag) != (len, &stored.etag) {
        return Err(RemoteError {
            kind: RemoteErrorKind::Corrupt,
            operation: "confirm",
            object: key.to_string(),
            endpoint: String::new(),
            detail: format!(
                "{len} bytes with ETag {} were stored, {} with {} are there",
                stored.etag, found.len, found.etag
            ),
        });
    }
    kill::point("pack.confirmed");
    Ok(stored)
}
