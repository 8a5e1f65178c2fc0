//! Deletes files that no name leads to any more, on a thread of its own: freeing gigabytes takes the filesystem a while.
//!
//! What it is given is already out of service; if the process dies first, the next start finds and deletes it.

use std::path::PathBuf;
use std::sync::mpsc;
use std::{fs, io, thread};

/// Where to send what must go. Clones share the thread; it ends when the last is dropped.
#[derive(Clone, Debug)]
pub struct Trash {
    queue: mpsc::Sender<PathBuf>,
}

impl Trash {
    pub fn start() -> io::Result<Self> {
        // Unbounded, but each entry is one path of a file that took a request to make.
        let (queue, paths) = mpsc::channel();
        thread::Builder::new().name("gateway-trash".into()).spawn(move || {
            for path in paths {
                delete(&path);
            }
        })?;
        Ok(Self { queue })
    }

    /// Deletes a file or a whole directory, some time soon.
    pub fn discard(&self, path: PathBuf) {
        // The thread lives as long as this sender; were it dead, the next start would delete the path.
        let _ = self.queue.send(path);
    }
}

fn delete(path: &PathBuf) {
    let deleted = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    if let Err(e) = deleted
        && e.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), error = %e, "cannot delete; the next start tries again");
    }
}
