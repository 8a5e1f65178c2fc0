//! What the metadata sync of a pair wants of a share that is used: to hear of changes before they happen, to keep the master's names on the
//! slave, and to have files removed and contents told by the rules that hold for everybody.

use std::ffi::OsStr;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::Fs;
use super::error::{FsError, FsResult};
use super::namespace::Noted;
use crate::capture::files::{Facts, Files};
use crate::capture::id::peer_id;
use crate::capture::{Capture, Change};
use crate::engine::{EngineError, PeerFacts};
use crate::ports::{Attr, LowerError, LowerResult};
use crate::record::Phase;
use crate::types::{FileId, Inode, PairFileId};

/// What a side of a metadata sync has its users' calls do.
#[derive(Clone, Debug, Default)]
pub struct Synced {
    /// Where changes are noted; off where there is no sync.
    pub capture: Arc<Capture>,
    /// Names that both sides have are the other side's to change.
    pub slave: bool,
}

impl Fs {
    /// To be called before names in directories change.
    pub fn changing(&self, dirs: [Option<&Inode>; 2]) -> FsResult<Option<Change<'_>>> {
        Ok(self.options.synced.capture.names(dirs)?)
    }

    pub(super) fn changing_inode(&self, node: &Inode) -> FsResult<Option<Change<'_>>> {
        Ok(self.options.synced.capture.inode(node)?)
    }

    /// A file is about to be written to, for as long as it is open.
    pub fn to_be_written(&self, node: &Inode) -> FsResult<()> {
        let capture = &self.options.synced.capture;
        // What the other side does not know is told with its name.
        if capture.is_on() && peer_id(&*self.lower, node)?.is_some() {
            capture.look_at_later(node)?;
        }
        Ok(())
    }

    /// A file that was open for writing is closed.
    pub fn was_written(&self, node: &Inode) {
        self.options.synced.capture.written(node);
    }

    /// Somebody else than the mount's users changed what a name means.
    pub fn name_changed(&self, dir: FileId, name: &OsStr) {
        let capture = &self.options.synced.capture;
        if capture.is_on()
            && let Ok((dir, _)) = self.lower.by_number(dir.ino)
        {
            capture.changed_name(&dir, name);
        }
    }

    /// Whether what a name stands for is the other side's to rename, link and remove.
    pub fn is_theirs(&self, node: &Inode) -> FsResult<bool> {
        Ok(self.options.synced.slave && peer_id(&*self.lower, node)?.is_some())
    }

    pub(super) fn check_ours(&self, node: &Inode) -> FsResult<()> {
        if self.is_theirs(node)? { Err(FsError::Theirs) } else { Ok(()) }
    }

    /// Refuses to take away a name that is the other side's.
    pub(super) fn check_our_name(&self, dir: &Inode, name: &OsStr) -> FsResult<()> {
        if !self.options.synced.slave {
            return Ok(());
        }
        match self.lower.lookup(dir, name) {
            Ok((node, _)) => self.check_ours(&node),
            Err(error) if error.errno() == libc::ENOENT => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// [`Files`] of a share that is used.
pub struct SyncedFiles {
    fs: Arc<Fs>,
    handle: Handle,
}

impl SyncedFiles {
    pub fn new(fs: Arc<Fs>, handle: Handle) -> Arc<Self> {
        Arc::new(Self { fs, handle })
    }
}

/// The kernel's reason, or one of ours, which has no number.
fn lowered(error: FsError) -> LowerError {
    match error {
        FsError::Lower(error) => error,
        FsError::Engine(EngineError::Lower { source, .. }) => LowerError::from_errno(source.op, source.errno()),
        other => LowerError { op: "content", source: std::io::Error::other(other.to_string()) },
    }
}

fn told(facts: &PeerFacts, held: bool) -> Facts {
    let PeerFacts { generation, epoch, size, mtime, .. } = *facts;
    Facts { size, mtime, generation, epoch, held }
}

fn peer_facts(id: PairFileId, facts: &Facts, there: FileId) -> PeerFacts {
    let Facts { size, mtime, generation, epoch, .. } = *facts;
    PeerFacts { id, generation, epoch, size, mtime, there }
}

impl SyncedFiles {
    fn known(&self, node: &Inode) -> LowerResult<Option<(PeerFacts, bool)>> {
        let found = self.fs.engine.peer_facts(node).map_err(|error| lowered(error.into()))?;
        Ok(found.map(|(facts, phase)| (facts, matches!(phase, Phase::Owner { .. } | Phase::Offering))))
    }
}

impl Files for SyncedFiles {
    fn own(&self, node: &Inode) -> LowerResult<PairFileId> {
        let facts = self.fs.engine.own_for_peer(node).map_err(|error| lowered(error.into()))?;
        Ok(facts.id)
    }

    fn facts(&self, node: &Inode, attr: &Attr) -> LowerResult<Facts> {
        Ok(match self.known(node)? {
            Some((facts, held)) => told(&facts, held),
            None => {
                let Attr { size, mtime, .. } = self.fs.shown(node, *attr);
                Facts { size, mtime, held: true, ..Facts::default() }
            }
        })
    }

    fn is_written(&self, file: FileId) -> bool {
        self.fs.engine.cells.live(file).is_some_and(|cell| cell.lock().machine.has_writers())
    }

    fn make_stub(&self, node: &Inode, id: PairFileId, facts: &Facts, origin: FileId) -> LowerResult<()> {
        let made = self.fs.engine.make_peer_stub(node, &peer_facts(id, facts, origin));
        made.map_err(|error| lowered(error.into()))
    }

    fn refresh(&self, node: &Inode, facts: &Facts, origin: FileId) -> LowerResult<bool> {
        let Some((known, held)) = self.known(node)? else { return Ok(false) };
        if held {
            return Ok(false);
        }
        let there = if origin.ino == 0 { known.there } else { origin };
        let facts = peer_facts(known.id, facts, there);
        let refreshed = self.handle.block_on(self.fs.engine.refresh_peer_stub_unsynced(node, &facts));
        refreshed.map_err(|error| lowered(error.into()))
    }

    fn remove(&self, dir: &Inode, name: &OsStr) -> LowerResult<()> {
        let fs = &self.fs;
        let remove = || Ok(fs.lower.unlink(dir, name)?);
        let attempt = |noted: &Noted| fs.try_remove_inside(dir, name, noted, &remove);
        let removed = match attempt(&Noted::default()) {
            Ok(None) => Ok(()),
            Ok(Some(removal)) => self.handle.block_on(fs.note_and_remove(removal, attempt)),
            Err(error) => Err(error),
        };
        removed.map_err(lowered)
    }

    fn name_changed(&self, dir: FileId, name: &OsStr) {
        self.fs.recorder().named_id(dir, name);
        self.fs.engine.announce_name(dir, name);
    }

    fn inode_changed(&self, file: FileId, owner: bool) {
        if owner {
            // What is registered with the kernel acts as the owner at that time.
            self.fs.let_go(Some(file));
        }
        self.fs.recorder().changed_id(file);
        self.fs.engine.announce_change(file);
    }

    fn told(&self) {
        self.handle.block_on(self.fs.engine.announced());
    }
}
