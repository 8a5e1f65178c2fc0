//! Steering through the mount itself, for users who may not use the socket: the virtual xattrs `user.tierfs.*`.
//!
//! Each file is asked by one `setxattr`, which the kernel and the daemon permit to its owner. Sixteen threads work at
//! once, since a migration or recall lasts as long as its transfer; the queue between walk and work is bounded, so a
//! tree of any size takes the same memory.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::locate::xattr;
use super::protocol::{Failure, FileState, FileStatus, Progress, Reply, StateTotal, Summary, WirePath};
use crate::engine::IN_USE_PAUSES;

const THREADS: usize = 16;
const QUEUE_FILES: usize = 1_024;
/// Deepest directory nesting walked; the kernel's longest path allows less.
const DEPTH_MAX: usize = 4_096;

/// What a user asks for files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steer {
    Migrate,
    Recall,
    Release,
    Pin,
    Unpin,
    CancelRecall,
}

impl Steer {
    fn attribute(self) -> (&'static str, &'static [u8]) {
        match self {
            Self::Migrate => ("user.tierfs.migrate", b"1"),
            Self::Recall => ("user.tierfs.recall", b"1"),
            Self::Release => ("user.tierfs.release", b"1"),
            Self::Pin => ("user.tierfs.pin", b"1"),
            Self::Unpin => ("user.tierfs.pin", b"0"),
            Self::CancelRecall => ("user.tierfs.recall", b"cancel"),
        }
    }

    /// Whether a file in `state` is already as asked.
    fn is_done(self, state: FileState) -> bool {
        match self {
            Self::Migrate | Self::Release => matches!(state, FileState::Stub | FileState::Releasing),
            Self::Recall | Self::CancelRecall => matches!(state, FileState::Resident | FileState::Dual),
            Self::Pin | Self::Unpin => false,
        }
    }
}

/// What came of one file.
enum Outcome {
    Changed { bytes: u64 },
    Unchanged,
    Status(FileStatus),
    Failed(Failure),
}

enum Event {
    Found { bytes: u64 },
    Finished { bytes: u64, outcome: Outcome },
    Walked,
}

/// Asks `steer` of every file. Replies carry absolute paths.
pub fn steer(paths: Vec<PathBuf>, recursive: bool, steer: Steer, each: &mut dyn FnMut(Reply)) -> Summary {
    run(paths, recursive, &|path, metadata| steer_one(path, metadata, steer), each, true)
}

/// The state of every file, as far as a user may see it; only the totals unless `files`.
pub fn status(paths: Vec<PathBuf>, recursive: bool, files: bool, each: &mut dyn FnMut(Reply)) -> Summary {
    let mut filtered = |reply| match reply {
        Reply::File(_) if !files => {}
        other => each(other),
    };
    run(paths, recursive, &status_one, &mut filtered, false)
}

fn steer_one(path: &Path, metadata: &Metadata, steer: Steer) -> Outcome {
    if state_of(path).is_ok_and(|state| steer.is_done(state)) {
        return Outcome::Unchanged;
    }
    let (name, value) = steer.attribute();
    let ask = || rustix::fs::lsetxattr(path, name, value, XattrFlags::empty());
    let mut asked = ask();
    // Here rather than in the daemon, because the kernel locks the inode for as long as it is asked.
    for pause in IN_USE_PAUSES {
        if asked != Err(Errno::BUSY) {
            break;
        }
        std::thread::sleep(pause);
        asked = ask();
    }
    match asked {
        Ok(()) => Outcome::Changed { bytes: metadata.len() },
        // None runs.
        Err(Errno::INVAL) if steer == Steer::CancelRecall => Outcome::Unchanged,
        Err(errno) => Outcome::Failed(failure(path, errno)),
    }
}

fn status_one(path: &Path, metadata: &Metadata) -> Outcome {
    let state = match state_of(path) {
        Ok(state) => state,
        Err(errno) => return Outcome::Failed(failure(path, errno)),
    };
    let text =
        |name: &str| xattr(path, name).ok().and_then(|value| String::from_utf8(value).ok()).filter(|t| !t.is_empty());
    Outcome::Status(FileStatus {
        path: WirePath::from_path(path),
        state,
        size: metadata.len(),
        local: metadata.blocks() * 512,
        pinned: text("user.tierfs.pin").as_deref() == Some("1"),
        retained: text("user.tierfs.retain").as_deref() == Some("1"),
        activity: None,
        pair: text("user.tierfs.pair"),
        generation: None,
        object: None,
    })
}

fn state_of(path: &Path) -> Result<FileState, Errno> {
    let value = xattr(path, "user.tierfs.state")?;
    Ok(match value.trim_ascii() {
        b"resident" => FileState::Resident,
        b"dual" => FileState::Dual,
        b"releasing" => FileState::Releasing,
        b"stub" => FileState::Stub,
        b"partial" => FileState::Partial,
        b"patched" => FileState::Patched,
        _ => FileState::Damaged,
    })
}

fn failure(path: &Path, errno: Errno) -> Failure {
    let (reason, skipped) = match errno {
        Errno::BUSY | Errno::AGAIN | Errno::TXTBSY => {
            ("the file is in use: try again when nobody has it open".into(), true)
        }
        Errno::PERM | Errno::ACCESS => ("only its owner or root may ask this".into(), false),
        Errno::OPNOTSUPP | Errno::NODATA => ("not on a tierfs mount, or not a regular file".into(), false),
        Errno::NOENT => ("it is gone".into(), true),
        Errno::NOSPC => ("no space left on the share: release or remove other files".into(), false),
        Errno::ROFS => ("the mount is read-only".into(), false),
        Errno::CANCELED => ("somebody ended its recall".into(), false),
        Errno::NOTCONN => ("the mount's daemon is dead".into(), false),
        other => (std::io::Error::from(other).to_string(), false),
    };
    Failure { path: WirePath::from_path(path), reason, skipped }
}

type Work<'w> = &'w (dyn Fn(&Path, &Metadata) -> Outcome + Sync);

fn run(paths: Vec<PathBuf>, recursive: bool, work: Work<'_>, each: &mut dyn FnMut(Reply), progress: bool) -> Summary {
    let started = Instant::now();
    let mut summary = Summary::default();
    let (file_sender, file_receiver) = sync_channel::<(PathBuf, Metadata)>(QUEUE_FILES);
    let (event_sender, event_receiver) = sync_channel::<Event>(QUEUE_FILES);
    let files = Mutex::new(file_receiver);
    std::thread::scope(|scope| {
        let walk_events = event_sender.clone();
        scope.spawn(move || {
            walk(paths, recursive, &file_sender, &walk_events);
            let _ = walk_events.send(Event::Walked);
        });
        for _ in 0..THREADS {
            let events = event_sender.clone();
            let files = &files;
            scope.spawn(move || {
                while let Some((path, metadata)) = next(files) {
                    let finished = Event::Finished { bytes: metadata.len(), outcome: work(&path, &metadata) };
                    if events.send(finished).is_err() {
                        break;
                    }
                }
            });
        }
        drop(event_sender);
        let mut so_far = Progress::default();
        let mut told = Instant::now();
        for event in event_receiver {
            match event {
                Event::Found { bytes } => {
                    so_far.files_total += 1;
                    so_far.bytes_total += bytes;
                }
                Event::Walked => so_far.walked = true,
                Event::Finished { bytes, outcome } => {
                    so_far.files_done += 1;
                    so_far.bytes_done += bytes;
                    count(&mut summary, outcome, each);
                }
            }
            if progress && told.elapsed().as_millis() >= 250 {
                told = Instant::now();
                each(Reply::Progress(so_far));
            }
        }
    });
    summary.seconds = started.elapsed().as_secs_f64();
    summary
}

fn next(files: &Mutex<Receiver<(PathBuf, Metadata)>>) -> Option<(PathBuf, Metadata)> {
    // A poisoned lock means a sibling panicked; the receiver is sound all the same.
    files.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).recv().ok()
}

fn count(summary: &mut Summary, outcome: Outcome, each: &mut dyn FnMut(Reply)) {
    match outcome {
        Outcome::Changed { bytes } => {
            summary.files += 1;
            summary.bytes += bytes;
        }
        Outcome::Unchanged => summary.unchanged += 1,
        Outcome::Status(status) => {
            let total: &mut StateTotal = summary.states.entry(status.state.to_string()).or_default();
            total.files += 1;
            total.bytes += status.size;
            total.local += status.local;
            each(Reply::File(status));
        }
        Outcome::Failed(failure) => {
            if failure.skipped {
                summary.skipped += 1;
            } else {
                summary.failed += 1;
            }
            each(Reply::Failure(failure));
        }
    }
}

/// Sends every regular file to `files`. Within directories other kinds are passed over in silence; a named path that
/// is not a regular file, or a directory without `recursive`, is told. Other filesystems are not entered.
fn walk(paths: Vec<PathBuf>, recursive: bool, files: &SyncSender<(PathBuf, Metadata)>, events: &SyncSender<Event>) {
    let fail = |path: &Path, reason: String, skipped: bool| {
        let outcome = Outcome::Failed(Failure { path: WirePath::from_path(path), reason, skipped });
        let _ = events.send(Event::Finished { bytes: 0, outcome });
    };
    let send = |path: PathBuf, metadata: Metadata| {
        let _ = events.send(Event::Found { bytes: metadata.len() });
        let _ = files.send((path, metadata));
    };
    for top in paths {
        let metadata = match std::fs::symlink_metadata(&top) {
            Ok(metadata) => metadata,
            Err(error) => {
                fail(&top, error.to_string(), false);
                continue;
            }
        };
        if metadata.is_file() {
            send(top, metadata);
        } else if !metadata.is_dir() {
            fail(&top, "not a regular file".into(), true);
        } else if !recursive {
            fail(&top, "a directory: say -r for all files below it".into(), false);
        } else {
            // One open listing a level, so the depth bounds descriptors and memory, not the number of entries.
            let mut levels = vec![(top.clone(), std::fs::read_dir(&top))];
            while let Some((directory, listing)) = levels.last_mut() {
                let entry = match listing {
                    Ok(entries) => entries.next(),
                    Err(error) => {
                        fail(directory, error.to_string(), false);
                        None
                    }
                };
                let Some(entry) = entry else {
                    levels.pop();
                    continue;
                };
                let below = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)));
                match below {
                    Ok((path, below)) if below.is_file() => send(path, below),
                    Ok((path, below)) if below.is_dir() && below.dev() == metadata.dev() => {
                        if levels.len() >= DEPTH_MAX {
                            fail(&path, "nested too deep".into(), false);
                        } else {
                            let listing = std::fs::read_dir(&path);
                            levels.push((path, listing));
                        }
                    }
                    Ok(_) => {}
                    // Gone between listing and looking: nothing to do for it.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => fail(directory, error.to_string(), false),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plain directory has no virtual attributes: every file is refused, each is told once, links are passed over.
    #[test]
    fn a_tree_is_walked_once_and_every_file_is_accounted_for() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..50 {
            let sub = dir.path().join(format!("d{}", n % 5)).join("deep");
            std::fs::create_dir_all(&sub).unwrap();
            std::fs::write(sub.join(format!("f{n}")), vec![b'x'; n]).unwrap();
        }
        std::os::unix::fs::symlink("d0", dir.path().join("link")).unwrap();
        let mut failures = Vec::new();
        let summary = status(vec![dir.path().to_owned()], true, true, &mut |reply| match reply {
            Reply::Failure(failure) => failures.push(failure.path.to_path()),
            other => panic!("{other:?}"),
        });
        failures.sort();
        failures.dedup();
        assert_eq!((failures.len(), summary.failed, summary.files), (50, 50, 0));
    }

    /// Real user xattrs on a plain file stand in for the virtual ones.
    #[test]
    fn states_and_steering_go_by_attribute() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, b"12345").unwrap();
        if rustix::fs::setxattr(&file, "user.tierfs.state", b"stub", XattrFlags::empty()).is_err() {
            eprintln!("skipped: {} keeps no user xattrs", dir.path().display());
            return;
        }
        let mut replies = Vec::new();
        let summary = status(vec![file.clone()], false, true, &mut |reply| replies.push(reply));
        assert_eq!(summary.states["stub"].files, 1);
        assert!(matches!(&replies[..], [Reply::File(status)] if status.state == FileState::Stub && status.size == 5));
        let mut quiet = |_| {};
        assert_eq!(steer(vec![file.clone()], false, Steer::Migrate, &mut quiet).unchanged, 1);
        assert!(xattr(&file, "user.tierfs.migrate").is_err());
        let summary = steer(vec![file.clone()], false, Steer::Recall, &mut quiet);
        assert_eq!((summary.files, summary.bytes), (1, 5));
        assert_eq!(xattr(&file, "user.tierfs.recall").unwrap(), b"1");
        steer(vec![file.clone()], false, Steer::Unpin, &mut quiet);
        assert_eq!(xattr(&file, "user.tierfs.pin").unwrap(), b"0");
    }

    #[test]
    fn directories_need_recursive() {
        let dir = tempfile::tempdir().unwrap();
        let summary = steer(vec![dir.path().to_owned()], false, Steer::Pin, &mut |_| {});
        assert_eq!(summary.failed, 1);
    }
}
