//! What files are told: which pair their next copy goes to, in chunks of which size, and what a read of their stub brings back.
//!
//! As the file itself says, else the nearest directory above it, else as the pair does. Nothing of it is in a record: what is stored already stays
//! where it is, and its record names its pair.

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::cell::Cell;
use super::error::{EngineError, EngineResult};
use super::{Engine, Target};
use crate::ports::{Lower, LowerResult, if_set};
use crate::record::ObjectRef;
use crate::types::{Inode, PairName, RecallPolicy, is_chunk_size};

/// Largest chunk that can be chosen, in bytes: more would not fit into a part of an upload ([`crate::remote::RemoteConfig::part_size`]).
pub const CHOSEN_CHUNK_MAX: u32 = 8 << 20;

/// Attributes of files and directories, below the prefix of all of tierfs'.
const RECALL: &str = "recall_policy";
const PAIR: &str = "archive_pair";
const CHUNK_SIZE: &str = "archive_chunk_size";
/// On the root alone: that there is any of the first; of the others.
const SOME_RECALL: &str = "recall_policies";
const SOME_COPY: &str = "archive_choices";

/// What trees call it, on whatever share: one that is made again may keep it by another name.
const RECALL_IN_TREES: &[u8] = b"trusted.tierfs.recall_policy";

/// Whether anything is said at all: only then is anybody asked.
#[derive(Default)]
pub(super) struct Choices {
    recall: AtomicBool,
    copy: AtomicBool,
}

/// What a file or directory itself says, or is to say; `None`: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The pair that the next copy goes to.
    pub pair: Option<PairName>,
    /// Bytes per chunk of the next copy, a power of two from 64 KiB to [`CHOSEN_CHUNK_MAX`].
    pub chunk_size: Option<u32>,
    pub recall: Option<RecallPolicy>,
}

impl Choice {
    /// Whether all that `wish` says is said already.
    pub fn has(&self, wish: &Choice) -> bool {
        (wish.pair.is_none() || wish.pair == self.pair)
            && (wish.chunk_size.is_none() || wish.chunk_size == self.chunk_size)
            && (wish.recall.is_none() || wish.recall == self.recall)
    }
}

/// What is not to be said any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forget {
    pub pair: bool,
    pub chunk_size: bool,
    pub recall: bool,
}

/// The directories above a file, looked for when the first question needs them; `None`: it is being renamed, or has no name.
type Above = OnceCell<Option<Vec<Inode>>>;

fn attribute(lower: &dyn Lower, name: &str) -> String {
    let space = if lower.features().trusted_xattrs { "trusted" } else { "user" };
    format!("{space}.tierfs.{name}")
}

/// What an inode itself says.
fn said<T: FromStr>(lower: &dyn Lower, node: &Inode, name: &str) -> LowerResult<Option<T>> {
    let stored = if_set(lower.xattr(node, OsStr::new(&attribute(lower, name))))?;
    // Of a newer tierfs, or damaged: as if it were not there.
    Ok(stored.and_then(|word| std::str::from_utf8(&word).ok()?.parse().ok()))
}

/// `some`: what tells that there is any.
fn say(lower: &dyn Lower, node: &Inode, some: &str, name: &str, word: &str) -> LowerResult<()> {
    // First, or a start would not look.
    lower.set_xattr(&lower.root(), OsStr::new(&attribute(lower, some)), b"1", 0)?;
    lower.set_xattr(node, OsStr::new(&attribute(lower, name)), word.as_bytes(), 0)
}

/// What a directory's tree tells of it: an attribute among the others, which a tierfs that does not know it sets as it is.
pub(super) fn policy_for_tree(lower: &dyn Lower, directory: &Inode) -> LowerResult<Option<(Vec<u8>, Vec<u8>)>> {
    let policy = said::<RecallPolicy>(lower, directory, RECALL)?;
    Ok(policy.map(|policy| (RECALL_IN_TREES.to_vec(), policy.as_str().as_bytes().to_vec())))
}

/// Gives a directory that is made again what its tree tells of it. `false`: the attribute is something else.
pub fn set_policy_of_tree(lower: &dyn Lower, directory: &Inode, name: &[u8], value: &[u8]) -> LowerResult<bool> {
    if name != RECALL_IN_TREES {
        return Ok(false);
    }
    match std::str::from_utf8(value).ok().and_then(|word| word.parse::<RecallPolicy>().ok()) {
        Some(policy) => say(lower, directory, SOME_RECALL, RECALL, policy.as_str()).map(|()| true),
        // Of a newer tierfs: the pair's counts.
        None => Ok(true),
    }
}

impl Engine {
    fn said<T: FromStr>(&self, node: &Inode, name: &str) -> LowerResult<Option<T>> {
        said(&*self.lower, node, name)
    }

    fn say(&self, node: &Inode, some: &str, name: &str, word: Option<&str>) -> EngineResult<()> {
        let failed = EngineError::lower(node.id);
        let Some(word) = word else {
            return match self.lower.remove_xattr(node, OsStr::new(&attribute(&*self.lower, name))) {
                Err(error) if error.errno() == libc::ENODATA => Ok(()),
                removed => removed.map_err(failed),
            };
        };
        say(&*self.lower, node, some, name, word).map_err(failed)?;
        let flag = if some == SOME_RECALL { &self.choices.recall } else { &self.choices.copy };
        flag.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// What a directory itself says of recalls; `None`: nothing.
    pub fn directory_policy(&self, directory: &Inode) -> EngineResult<Option<RecallPolicy>> {
        self.said(directory, RECALL).map_err(EngineError::lower(directory.id))
    }

    /// Has a file or a directory, for all below that say nothing else, say it. `None`: it says nothing any more.
    pub fn set_directory_policy(&self, node: &Inode, policy: Option<RecallPolicy>) -> EngineResult<()> {
        self.say(node, SOME_RECALL, RECALL, policy.map(RecallPolicy::as_str))
    }

    /// All that a file or directory itself says.
    pub fn choice(&self, node: &Inode) -> EngineResult<Choice> {
        let read = || -> LowerResult<Choice> {
            Ok(Choice {
                pair: self.said(node, PAIR)?,
                chunk_size: self.said(node, CHUNK_SIZE)?,
                recall: self.said(node, RECALL)?,
            })
        };
        read().map_err(EngineError::lower(node.id))
    }

    /// Has a file, or a directory for all below that say nothing else, say what `wish` does, beside what it says already. Returns whether it
    /// did not before. Refused: a pair that the mount does not have.
    pub fn choose(&self, node: &Inode, wish: &Choice) -> EngineResult<bool> {
        if self.lower.features().read_only {
            return Err(EngineError::ReadOnly);
        }
        if let Some(pair) = &wish.pair {
            self.chosen_target(node, pair)?;
        }
        if self.choice(node)?.has(wish) {
            return Ok(false);
        }
        if let Some(pair) = &wish.pair {
            self.say(node, SOME_COPY, PAIR, Some(pair.as_str()))?;
        }
        if let Some(size) = wish.chunk_size {
            self.say(node, SOME_COPY, CHUNK_SIZE, Some(&size.to_string()))?;
        }
        if let Some(recall) = wish.recall {
            self.set_directory_policy(node, Some(recall))?;
        }
        Ok(true)
    }

    /// Has a file or directory say nothing any more of some things.
    pub fn unchoose(&self, node: &Inode, what: Forget) -> EngineResult<()> {
        let all = [
            (PAIR, SOME_COPY, what.pair),
            (CHUNK_SIZE, SOME_COPY, what.chunk_size),
            (RECALL, SOME_RECALL, what.recall),
        ];
        let mut named = all.into_iter().filter(|(.., named)| *named);
        named.try_for_each(|(name, some, _)| self.say(node, some, name, None))
    }

    /// Looks whether anybody says anything.
    pub(super) fn find_choices(&self) {
        let any = |name| self.lower.xattr(&self.lower.root(), OsStr::new(&attribute(&*self.lower, name))).is_ok();
        self.choices.recall.store(any(SOME_RECALL), Ordering::SeqCst);
        self.choices.copy.store(any(SOME_COPY), Ordering::SeqCst);
    }

    /// From the root down.
    fn directories_above(&self, node: &Inode) -> Option<Vec<Inode>> {
        let path = self.lower.path_of(node).ok()??;
        let mut above = vec![self.lower.root()];
        for part in path.parent()?.iter() {
            let below = self.lower.lookup(above.last()?, part).ok()?.0;
            above.push(below);
        }
        Some(above)
    }

    /// What the file, or the nearest directory above it, says.
    fn nearest<T: FromStr>(&self, node: &Inode, above: &Above, name: &str) -> Option<T> {
        if let Ok(Some(own)) = self.said(node, name) {
            return Some(own);
        }
        let mut found = None;
        for directory in above.get_or_init(|| self.directories_above(node)).as_ref()? {
            found = self.said(directory, name).ok()?.or(found);
        }
        found
    }

    /// What a read of this file brings back.
    pub(super) fn recall_policy(&self, node: &Inode, object: &ObjectRef) -> RecallPolicy {
        let any = self.choices.recall.load(Ordering::SeqCst);
        let chosen = any.then(|| self.nearest(node, &Above::new(), RECALL)).flatten();
        let of_pair = || self.target_of(node.id, object).map(|target| target.recall).unwrap_or_default();
        chosen.unwrap_or_else(of_pair)
    }

    /// Whether a read of a part of this file, of which some is away, brings all of it back for good.
    pub fn brings_all(&self, cell: &Cell) -> bool {
        let (object, running) = {
            let inner = cell.lock();
            (inner.record.object.clone(), inner.recall.as_ref().map(|recall| recall.policy()))
        };
        let policy = running.or_else(|| object.map(|object| self.recall_policy(&cell.node, &object)));
        let all = matches!(policy, Some(RecallPolicy::Progressive | RecallPolicy::Full));
        all && !self.lower.features().read_only
    }

    fn chosen_target(&self, node: &Inode, pair: &PairName) -> EngineResult<Arc<Target>> {
        let not_mounted = || {
            let mounted = self.pair_names().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            EngineError::NotMounted { file: node.id, pair: pair.clone(), mounted }
        };
        self.target_named(pair).ok_or_else(not_mounted)
    }

    /// The pair that the file's next copy goes to, as it is for that. A pair that was chosen and is not mounted is an error: the copy must not
    /// be where it was not wanted.
    pub(super) fn target_for(&self, node: &Inode) -> EngineResult<Arc<Target>> {
        let usual = self.target()?;
        if !self.choices.copy.load(Ordering::SeqCst) || usual.peer {
            return Ok(usual);
        }
        let above = Above::new();
        let target = match self.nearest::<PairName>(node, &above, PAIR) {
            Some(pair) => self.chosen_target(node, &pair)?,
            None => usual,
        };
        Ok(match self.nearest::<u32>(node, &above, CHUNK_SIZE).filter(|size| is_choosable(*size)) {
            Some(size) => Arc::new(Target { chunk_size: Some(size), ..(*target).clone() }),
            None => target,
        })
    }
}

/// Whether a chunk size can be chosen.
pub fn is_choosable(size: u32) -> bool {
    is_chunk_size(size) && size <= CHOSEN_CHUNK_MAX
}
