//! What follows from an answer: what is done with, what is told again, what must be told first, what is gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::look::Told;
use super::send::{Going, Sender};
use super::wire::{Answer, Refused};
use super::{SyncError, SyncResult};
use crate::capture::{Item, Turn};
use crate::types::{FileId, Inode, PairFileId};

/// How often a name that was refused is told again.
const REFUSED_EVERY: Duration = Duration::from_secs(15);
/// How often the slave is told again that an inode is gone.
const GONE_EVERY: Duration = Duration::from_secs(15);
/// Names refused that are kept for the report.
const REFUSED_MAX: usize = 10_000;

impl Sender {
    /// What the answer wants, and which of the changes are done with. An error leaves all of it to be done once more.
    pub(super) async fn read(self: &Arc<Self>, told: &Told, answer: &Answer, taken: &[Turn]) -> SyncResult<()> {
        let Answer { unknown, made, nameless, refused, .. } = answer;
        let (mut refused_turns, mut done) = (Vec::new(), Vec::new());
        {
            let mut going = self.going.lock();
            for turn in taken.iter().cloned() {
                let why = match &turn.1 {
                    Item::Name(dir, name) => {
                        let name = std::os::unix::ffi::OsStrExt::as_bytes(&**name);
                        going.refused.remove(&(*dir, name.to_vec()));
                        refused.iter().find(|no| no.name == name && told.dir(no.dir).is_some_and(|of| of.id == *dir))
                    }
                    _ => None,
                };
                if why.is_some() { refused_turns.push(turn) } else { done.push(turn) }
            }
            self.note_refused(&mut going, told, refused);
        }
        let (this, unknown, made) = (self.clone(), unknown.clone(), made.clone());
        let dirs: Vec<Inode> = unknown.iter().filter_map(|id| told.dir(*id)).collect();
        let fresh = told.fresh.clone();
        // Those of listings: told by name from now on.
        let others: Vec<(Inode, Vec<u8>)> = refused
            .iter()
            .filter_map(|no| Some((told.dir(no.dir)?, no.name.clone())))
            .filter(|(dir, name)| {
                let later = self.later.lock();
                !later.iter().map(|(_, turn)| turn).chain(&refused_turns).any(|turn| is_name(turn, dir.id, name))
            })
            .collect();
        let again = tokio::task::spawn_blocking(move || -> SyncResult<()> {
            for dir in dirs {
                this.looker.climb(&dir)?;
            }
            for (dir, name) in others {
                let name = std::os::unix::ffi::OsStringExt::from_vec(name);
                this.options.capture.look_at(Item::Name(dir.id, name), &dir)?;
            }
            for (id, origin) in made {
                if !fresh.contains(&id)
                    && let Ok((node, _)) = this.options.lower.by_number(origin.ino)
                    && node.id == origin
                {
                    this.options.capture.look_at(Item::Listing(node.id), &node)?;
                }
            }
            Ok(())
        });
        again.await.map_err(|_| SyncError::Stopped)??;
        self.nameless(nameless.clone()).await?;
        let due = Instant::now() + REFUSED_EVERY;
        self.later.lock().extend(refused_turns.into_iter().map(|turn| (due, turn)));
        // Last: what follows from the answer has its marks by now.
        self.options.capture.confirm(done);
        Ok(())
    }

    pub(super) fn note_refused(&self, going: &mut Going, told: &Told, refused: &[Refused]) {
        for Refused { dir, name, why, conflict } in refused {
            let Some(dir) = told.dir(*dir) else { continue };
            if going.refused.len() < REFUSED_MAX {
                going.refused.insert((dir.id, name.clone()), (why.clone(), *conflict));
            }
        }
        for (dir, name, why) in told.left.iter().take(REFUSED_MAX) {
            going.refused.insert((*dir, name.clone()), (why.clone(), false));
        }
    }

    /// Looks again at what had no name at the slave, and had one here: nobody need say anything of it any more.
    pub(super) async fn look_again(self: &Arc<Self>) -> SyncResult<()> {
        let due: Vec<(PairFileId, FileId)> = {
            let mut named = self.named.lock();
            let due = named
                .iter()
                .filter(|(_, (at, _))| at.elapsed() >= GONE_EVERY)
                .map(|(id, (_, of))| (*id, *of))
                .collect();
            named.retain(|_, (at, _)| at.elapsed() < GONE_EVERY);
            due
        };
        self.gone.lock().retain(|id, _| !due.iter().any(|(of, _)| of == id));
        self.nameless(due).await
    }

    /// Finds out what became of inodes that have no name at the slave.
    pub(super) async fn nameless(self: &Arc<Self>, nameless: Vec<(PairFileId, FileId)>) -> SyncResult<()> {
        if nameless.is_empty() {
            return Ok(());
        }
        let this = self.clone();
        let looked = tokio::task::spawn_blocking(move || -> SyncResult<()> {
            for (id, origin) in nameless {
                let asked = this.gone.lock().get(&id).is_some_and(|(at, _)| at.elapsed() < GONE_EVERY);
                if asked {
                    continue;
                }
                let named = this.looker.is_named(id, origin)?;
                // One that has a name is looked at again after a while: it may lose it before the slave has heard of it.
                if named {
                    this.named.lock().insert(id, (Instant::now(), origin));
                }
                this.gone.lock().insert(id, (Instant::now(), named));
            }
            let mut gone = this.gone.lock();
            gone.retain(|_, (at, told)| !*told || at.elapsed() < 2 * GONE_EVERY);
            Ok(())
        });
        looked.await.map_err(|_| SyncError::Stopped)??;
        self.options.capture.wake().notify_one();
        Ok(())
    }
}

/// Whether it is this name that is to be told again.
fn is_name((_, item): &Turn, of: FileId, name: &[u8]) -> bool {
    match item {
        Item::Name(dir, known) => *dir == of && std::os::unix::ffi::OsStrExt::as_bytes(&**known) == name,
        _ => false,
    }
}
