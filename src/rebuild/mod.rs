//! Rebuild: a whole share of stubs from its buckets alone.
//!
//! The newest complete trees tell names and attributes; the listing of objects tells which content is there, and what was archived
//! after the trees were stored. Content that is nowhere is told, never made up. Running again goes on where it was, and changes
//! nothing that is done: what has its name is complete (see [`make`]).
//!
//! Files get new inodes, while the keys of their objects tell the old ones: nobody may conclude from a key's inode that nothing names it.

mod found;
mod listing;
mod make;
mod walk;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::ports::{Lower, LowerError, Remote, RemoteError, if_set};
use crate::record::PairRef;
use crate::remote::packs::Packed;
use crate::tree::TreeError;
use crate::types::{FileId, ObjectKey};
use listing::Objects;
use make::Maker;

/// On a root that a rebuild was begun in: how far it came, for people.
const BEGUN_XATTR: &str = "trusted.tierfs.rebuild";
/// Where objects go of which no tree knows a file, and which have no free place of their own.
pub const FOUND_DIR: &str = "lost+found.tierfs";

/// Why a rebuild cannot begin, or go on.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    #[error("{0}")]
    Remote(RemoteError),
    #[error("the share: {0}")]
    Lower(LowerError),
    #[error("{key}: {why}")]
    Tree { key: ObjectKey, why: TreeError },
    #[error(
        "there are no names of a share in the bucket: none were ever stored (`tierfs save-names`), or the pair has another prefix"
    )]
    NoTrees,
    #[error("the directory is not empty, and no rebuild was begun in it: name an empty one")]
    NotEmpty,
    #[error("the directory's filesystem has no trusted attributes for records: use ext4 or xfs, as root")]
    Untrusted,
    #[error("it was interrupted")]
    Interrupted,
}

pub type Result<T> = std::result::Result<T, RebuildError>;

/// Something to be told of one file.
#[derive(Clone, Debug)]
pub enum Event {
    /// Its content is not in the bucket; there is nothing of that name now.
    Missing {
        path: PathBuf,
        why: String,
    },
    /// Made from an object that is newer than what is known of its names.
    Newer {
        path: PathBuf,
    },
    /// No tree knew it; here it is.
    Found {
        path: PathBuf,
        object: ObjectKey,
    },
    Failed {
        path: PathBuf,
        why: String,
    },
}

/// How far it is, and in the end, what came of it.
#[derive(Debug, Default)]
pub struct Totals {
    pub directories: AtomicU64,
    /// Regular files made, names of files made before not counted.
    pub files: AtomicU64,
    pub bytes: AtomicU64,
    /// Further names of files.
    pub links: AtomicU64,
    /// Symbolic links, fifos, sockets, devices.
    pub special: AtomicU64,
    /// Were there already.
    pub unchanged: AtomicU64,
    pub missing: AtomicU64,
    pub newer: AtomicU64,
    pub found: AtomicU64,
    pub failed: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A pair to rebuild from.
pub struct Source {
    pub remote: Arc<dyn Remote>,
    /// What the new records say of the pair.
    pub pair: PairRef,
    /// What keys start with.
    pub prefix: String,
}

/// What to rebuild from, and into what.
pub struct Options {
    /// The directory, open as a share.
    pub lower: Arc<dyn Lower>,
    /// All pairs that the share had; each may have names and contents.
    pub sources: Vec<Source>,
    /// Which share, by its former root, where the bucket has had several; the latest unless said.
    pub share: Option<FileId>,
    /// Look only.
    pub dry_run: bool,
    pub tell: Box<dyn Fn(Event) + Send + Sync>,
}

/// One rebuild.
pub struct Rebuild {
    options: Options,
    pub totals: Totals,
    maker: Maker,
    objects: Mutex<Objects>,
}

impl Rebuild {
    pub fn new(options: Options) -> Arc<Self> {
        let packed = |source: Source| Source { remote: Packed::over(source.remote), ..source };
        let options = Options { sources: options.sources.into_iter().map(packed).collect(), ..options };
        let maker = Maker::new(options.lower.clone());
        Arc::new(Self { options, totals: Totals::default(), maker, objects: Mutex::default() })
    }

    /// Does it all. Returns how long the making took, without the listing of the bucket, in seconds.
    pub async fn run(self: &Arc<Self>) -> Result<f64> {
        let sources = &self.options.sources;
        let trees = listing::trees(sources, self.options.share).await?;
        let objects = Objects::list(sources).await?;
        tracing::info!(share = %trees.share, directories = trees.newest.len(), files = objects.files(), "the buckets are listed");
        *self.objects.lock() = objects;
        let begun = Instant::now();
        if !self.options.dry_run {
            let this = self.clone();
            blocking(move || this.begin()).await??;
        }
        let walked = self.walk(&trees).await?;
        self.take_up(walked, &trees).await?;
        Ok(begun.elapsed().as_secs_f64())
    }

    /// The directory is empty or one that was begun; says what it becomes, durably.
    fn begin(&self) -> Result<()> {
        let lower = &*self.options.lower;
        let root = lower.root();
        if !lower.features().trusted_xattrs {
            return Err(RebuildError::Untrusted);
        }
        let begun = if_set(lower.xattr(&root, OsStr::new(BEGUN_XATTR))).map_err(RebuildError::Lower)?.is_some();
        if begun {
            return self.recall_origins();
        }
        let mut empty = true;
        let listing = lower.open_dir(&root).map_err(RebuildError::Lower)?;
        let entries = listing.each(0, &mut |entry| {
            empty &= [".", "..", "lost+found"].iter().any(|usual| entry.name == *usual);
            false
        });
        entries.map_err(RebuildError::Lower)?;
        if !empty {
            return Err(RebuildError::NotEmpty);
        }
        lower.set_xattr(&root, OsStr::new(BEGUN_XATTR), b"begun", 0).map_err(RebuildError::Lower)?;
        lower.sync_node(&root).map_err(RebuildError::Lower)
    }

    /// Names of one file stay names of one file, whichever run makes them.
    fn recall_origins(&self) -> Result<()> {
        use crate::catalog::walk::{Next, Step, resolve, walk};
        let lower = &*self.options.lower;
        let root = resolve(lower, Path::new("")).map_err(RebuildError::Lower)?;
        let mut failed = None;
        walk(lower, root, &mut |step| {
            let looked = match step {
                // What was not complete goes.
                Step::File(file) if make::is_aside(&file.path) => Ok(()),
                Step::File(file) => self.maker.recall_origin(&file.node),
                Step::Failed(_, error) => Err(error),
            };
            failed = looked.err();
            if failed.is_some() { Next::Stop } else { Next::Continue }
        });
        failed.map_or(Ok(()), |error| Err(RebuildError::Lower(error)))
    }

    fn fail(&self, path: &Path, why: impl std::fmt::Display) {
        count(&self.totals.failed);
        (self.options.tell)(Event::Failed { path: path.into(), why: why.to_string() });
    }

    fn miss(&self, path: &Path, why: &str) {
        count(&self.totals.missing);
        (self.options.tell)(Event::Missing { path: path.into(), why: why.into() });
    }
}

/// Runs blocking local work off the async workers.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|_| RebuildError::Interrupted)
}
