//! The filesystem in its own terms: inodes, handles, names, attributes, administrative xattrs.
//!
//! It knows no kernel protocol and no remote: what must wait for a transfer is handed back as [`Try::Blocked`], so that no thread that
//! serves the kernel ever waits for the network.

mod attributes;
mod calls;
mod content;
mod delay;
mod directories;
mod error;
mod gate;
mod handles;
mod held;
mod inside;
mod namespace;
mod nodes;
mod open;
mod requester;
mod room;
mod sizes;
mod synced;
mod wait;
mod xattrs;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use calls::{Call, Calls};
pub use delay::Delay;
pub use error::{FsError, FsResult};
pub use namespace::{Entry, Noted, Removal};
pub use nodes::ROOT;
pub use open::{Opened, Register, Service};
pub use requester::look_up as requester;
pub use room::{Patiently, Room};
pub use sizes::Sizes;
pub use synced::{Synced, SyncedFiles};
pub use wait::{Blocker, Try, Waiter};

use crate::admission::Rules;
use crate::catalog::index::{Recorder, Who};
use crate::engine::Engine;
use crate::ports::{Attr, Lower};
use crate::types::Inode;
use delay::Delays;
use directories::Listings;
use gate::Gate;
use handles::Handles;
use held::Held;
use nodes::Nodes;
use open::OpenFile;

/// How a mount behaves.
#[derive(Clone, Debug)]
pub struct FsOptions {
    pub read_only: bool,
    /// Let the kernel read and write resident files itself.
    pub passthrough: bool,
    /// Stubs up to so many bytes are recalled when they are opened for reading, and then pass through; larger ones when read.
    pub recall_at_open_max: u64,
    /// Where the control socket is, for root to find it through the mount.
    pub socket: Option<PathBuf>,
    /// Who does not wait long for a transfer.
    pub delay: Delay,
    /// Who may have content brought back.
    pub rules: Rules,
    /// How long a request that finds the share full waits for room; zero where nobody makes any.
    pub space_wait: Duration,
    /// Where the index of the share is told what happens.
    pub recorder: Arc<Recorder>,
    /// What the metadata sync of the pair wants.
    pub synced: Synced,
}

impl Default for FsOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            passthrough: true,
            recall_at_open_max: 1 << 20,
            socket: None,
            delay: Delay::default(),
            rules: Rules::default(),
            space_wait: Duration::ZERO,
            recorder: Arc::default(),
            synced: Synced::default(),
        }
    }
}

/// A mounted share.
pub struct Fs {
    lower: Arc<dyn Lower>,
    pub engine: Arc<Engine>,
    /// What the kernel has asked for.
    pub calls: Calls,
    /// Who waits for room on the share.
    pub room: Room,
    nodes: Nodes,
    files: Handles<OpenFile>,
    listings: Listings,
    held: Held,
    delays: Delays,
    gate: Arc<Gate>,
    options: FsOptions,
}

/// The file that a request is about, the same over all of its attempts. The kernel names it by a number, and while the request waits the file
/// may be removed and the number become another's.
pub struct Asked {
    id: u64,
    node: Option<Inode>,
    who: Option<Who>,
}

impl Asked {
    pub fn new(id: u64) -> Self {
        Self { id, node: None, who: None }
    }

    /// Who asks, for the report on who had what recalled.
    pub fn by(self, uid: u32, pid: u32) -> Self {
        Self { who: Some(Who::User { uid, pid }), ..self }
    }
}

impl Fs {
    /// `epoch` differs between two runs of the daemon (a process id will do).
    pub fn new(lower: Arc<dyn Lower>, engine: Arc<Engine>, options: FsOptions, epoch: u32) -> Arc<Self> {
        Arc::new(Self {
            nodes: Nodes::new(lower.root()),
            lower,
            engine,
            calls: Calls::default(),
            room: Room::new(options.space_wait),
            files: Handles::new(epoch),
            listings: Listings::default(),
            held: Held::default(),
            delays: Delays::new(options.delay.clone()),
            gate: Gate::new(options.rules.clone()),
            options,
        })
    }

    /// The inode behind a node id, also one that the kernel knows from before this daemon.
    fn node(&self, id: u64) -> FsResult<Inode> {
        match self.nodes.get(id) {
            Some(node) => Ok(node),
            None => Ok(self.found(id)?.0),
        }
    }

    /// The inode that a request is about.
    fn asked(&self, file: &mut Asked) -> FsResult<Inode> {
        match file.node {
            Some(node) => Ok(node),
            None => Ok(*file.node.insert(self.node(file.id)?)),
        }
    }

    /// Finds an inode by the number that its node id is.
    fn found(&self, id: u64) -> FsResult<(Inode, Attr)> {
        let (node, attr) = self.lower.by_number(id)?;
        // The root's node id is not its number.
        if self.nodes.id_of(&node) == id { Ok((node, attr)) } else { Err(FsError::Stale) }
    }

    /// The node id under which the kernel knows a lower inode number.
    pub fn node_id(&self, ino: u64) -> u64 {
        if ino == self.lower.root().id.ino { ROOT } else { ino }
    }

    /// Where the index is told what happens.
    pub fn recorder(&self) -> &Recorder {
        &self.options.recorder
    }

    /// The same, to be kept.
    pub fn recorder_handle(&self) -> Arc<Recorder> {
        self.options.recorder.clone()
    }

    fn check_writable(&self) -> FsResult<()> {
        if self.options.read_only { Err(FsError::ReadOnly) } else { Ok(()) }
    }
}
