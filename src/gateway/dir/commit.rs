//! The one thread that changes the namespace and the index. All writers queue here and share its syncs.
//!
//! A batch goes through these steps, in this order:
//! 1. judge each job against the index (nothing else changes it, so the judgement holds until step 5);
//! 2. write the records, then sync the staged files: content is on stable storage before it has a name;
//! 3. rename the files to their final, never used names, unlink the removed ones;
//! 4. sync the directories: from here on a crash keeps the change;
//! 5. update the index, so that readers see only what will stay, and answer;
//! 6. unlink the replaced versions. A crash before that leaves two versions; recovery takes the higher one.
//!
//! A removal leaves the index in step 3 instead, since its file must not be looked for afterwards.
//!
//! No two jobs of a batch touch the same object or part; jobs on buckets and whole uploads run alone. If a sync fails,
//! what is on stable storage is unknown: the batch fails and the store refuses further writes (`Poisoned`).

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::super::store::{Condition, EtagMatch, ObjectInfo, PartInfo, StoreError, StoreResult, UploadId};
use super::index::Object;
use super::layout::{HeadName, part_name};
use super::record::{self, ObjectRecord};
use super::staged::StagedFile;
use super::{Shared, io_error};

/// Most jobs that share a sync.
const BATCH_MAX: usize = 256;
/// From this many files on, one `syncfs` is cheaper than syncing each: 32 × 64 KiB take 1.5 ms against 3.5 ms.
/// Below it, a `syncfs` would only pay for other programs' dirty pages.
const SYNCFS_FROM: usize = 4;
/// Removed files from this size on are moved aside and deleted by another thread, bytes.
const TRASH_FROM_BYTES: u64 = 4 << 20;

pub type Reply<T> = oneshot::Sender<StoreResult<T>>;

pub struct ObjectJob {
    pub bucket: String,
    pub record: ObjectRecord,
    pub staged: StagedFile,
    pub condition: Condition,
    pub reply: Reply<Arc<ObjectInfo>>,
}

pub struct PartJob {
    pub bucket: String,
    pub key: String,
    pub upload: UploadId,
    pub info: PartInfo,
    pub staged: StagedFile,
    pub reply: Reply<Arc<ObjectInfo>>,
}

pub struct RemoveJob {
    pub bucket: String,
    pub key: String,
    pub if_match: Option<EtagMatch>,
    pub reply: Reply<()>,
}

pub enum Job {
    Object(Box<ObjectJob>),
    Part(Box<PartJob>),
    Remove(RemoveJob),
    /// Runs alone, with nothing else in flight.
    Solo(Box<dyn FnOnce(&Shared) + Send>),
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    closed: bool,
}

/// Jobs on their way to the thread. Bounded by the requests in flight: each waits for its answer.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    filled: Condvar,
}

impl Queue {
    pub fn push(&self, job: Job) -> StoreResult<()> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(StoreError::Closed);
        }
        state.jobs.push_back(job);
        self.filled.notify_one();
        Ok(())
    }

    /// No further jobs are taken; those queued are still done.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.filled.notify_all();
    }

    /// Waits for jobs; `None` when closed and empty.
    fn next_batch(&self) -> Option<Vec<Job>> {
        let mut state = self.state.lock();
        while state.jobs.is_empty() {
            if state.closed {
                return None;
            }
            self.filled.wait(&mut state);
        }
        let mut batch = Vec::new();
        let mut touched = HashSet::new();
        while let Some(job) = state.jobs.front() {
            let fits = match job {
                Job::Solo(_) => batch.is_empty(),
                Job::Object(job) => touched.insert((job.bucket.clone(), job.record.info.key.clone(), 0)),
                Job::Remove(job) => touched.insert((job.bucket.clone(), job.key.clone(), 0)),
                Job::Part(job) => touched.insert((job.bucket.clone(), job.upload.0.clone(), job.info.number)),
            };
            if !fits || batch.len() == BATCH_MAX {
                break;
            }
            let alone = matches!(job, Job::Solo(_));
            batch.extend(state.jobs.pop_front());
            if alone {
                break;
            }
        }
        Some(batch)
    }
}

/// Body of the thread.
pub fn run(shared: &Shared) {
    while let Some(mut batch) = shared.queue.next_batch() {
        if shared.poisoned.load(Ordering::Acquire) {
            batch.into_iter().for_each(|job| refuse(job, StoreError::Poisoned));
            continue;
        }
        if let [Job::Solo(_)] = batch[..] {
            if let Some(Job::Solo(work)) = batch.pop() {
                work(shared);
            }
            continue;
        }
        commit(shared, batch);
    }
}

fn refuse(job: Job, error: StoreError) {
    // A client that went away does not wait for its answer: not an error here.
    match job {
        Job::Object(job) => drop(job.reply.send(Err(error))),
        Job::Part(job) => drop(job.reply.send(Err(error))),
        Job::Remove(job) => drop(job.reply.send(Err(error))),
        // Its reply channel closes with it, which the caller reads as `Closed`.
        Job::Solo(work) => drop(work),
    }
}

/// A job that has passed step 3, and what is left to do for it.
enum Done {
    Object { job: Box<ObjectJob>, version: u64, replaced: Option<Arc<Object>> },
    Part { job: Box<PartJob>, dir: PathBuf, replaced: Option<u64> },
    Remove { job: RemoveJob },
}

fn commit(shared: &Shared, batch: Vec<Job>) {
    // Step 1 and the records.
    let mut jobs = Vec::with_capacity(batch.len());
    for mut job in batch {
        match judge(shared, &mut job) {
            Ok(true) => jobs.push(job),
            Ok(false) => {
                if let Job::Remove(job) = job {
                    drop(job.reply.send(Ok(())));
                }
            }
            Err(e) => refuse(job, e),
        }
    }
    if jobs.is_empty() {
        return;
    }
    // Step 2.
    if let Err(e) = sync_staged(shared, &mut jobs) {
        // The staged files are discarded, so nothing about them matters; but the pages of others may be lost too.
        return poison(shared, "sync of staged files", &e, jobs);
    }
    // Step 3.
    let mut dirs = BTreeSet::new();
    let mut done = Vec::with_capacity(jobs.len());
    for job in jobs {
        match job {
            Job::Object(job) => match name_object(shared, job, &mut dirs) {
                Ok(named) => done.push(named),
                Err((job, e)) => refuse(Job::Object(job), e),
            },
            Job::Part(job) => match name_part(shared, job, &mut dirs) {
                Ok(named) => done.push(named),
                Err((job, e)) => refuse(Job::Part(job), e),
            },
            Job::Remove(job) => match unname(shared, &job, &mut dirs) {
                Ok(()) => done.push(Done::Remove { job }),
                Err(e) => refuse(Job::Remove(job), e),
            },
            Job::Solo(_) => {}
        }
    }
    // Step 4.
    if let Err(e) = sync_dirs(shared, &dirs) {
        let jobs = done.into_iter().map(|done| match done {
            Done::Object { job, .. } => Job::Object(job),
            Done::Part { job, .. } => Job::Part(job),
            Done::Remove { job } => Job::Remove(job),
        });
        return poison(shared, "sync of directories", &e, jobs.collect());
    }
    // Steps 5 and 6.
    done.into_iter().for_each(|done| finish(shared, done));
}

/// Whether the job may happen; `Ok(false)` means that it is done already.
fn judge(shared: &Shared, job: &mut Job) -> StoreResult<bool> {
    let index = shared.index.read();
    match job {
        Job::Object(job) => {
            let key = &job.record.info.key;
            let current = index.bucket(&job.bucket)?.objects.get(key);
            job.condition.check(key, current.map(|object| object.info.etag.as_str()))?;
            drop(index);
            job.staged.record(&job.record)?;
        }
        Job::Part(job) => {
            index.upload(&job.bucket, &job.key, &job.upload)?;
            drop(index);
            job.staged.record(&job.info)?;
        }
        Job::Remove(job) => {
            let Some(current) = index.bucket(&job.bucket)?.objects.get(&job.key) else {
                return match job.if_match {
                    None => Ok(false),
                    Some(_) => Err(StoreError::NoSuchKey(job.key.clone())),
                };
            };
            if job.if_match.as_ref().is_some_and(|wanted| !wanted.matches(&current.info.etag)) {
                return Err(StoreError::ConditionFailed);
            }
        }
        Job::Solo(_) => {}
    }
    Ok(true)
}

fn sync_staged(shared: &Shared, jobs: &mut [Job]) -> io::Result<()> {
    let staged = jobs.iter_mut().filter_map(|job| match job {
        Job::Object(job) => Some(&mut job.staged),
        Job::Part(job) => Some(&mut job.staged),
        Job::Remove(_) | Job::Solo(_) => None,
    });
    let mut volatile: Vec<_> = staged.filter(|staged| !staged.synced).collect();
    if volatile.len() >= SYNCFS_FROM {
        return rustix::fs::syncfs(&shared.root).map_err(Into::into);
    }
    volatile.iter_mut().try_for_each(|staged| staged.sync())
}

fn sync_dirs(shared: &Shared, dirs: &BTreeSet<PathBuf>) -> io::Result<()> {
    if dirs.len() >= SYNCFS_FROM {
        return rustix::fs::syncfs(&shared.root).map_err(Into::into);
    }
    dirs.iter().try_for_each(|dir| sync_dir(dir))
}

pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Answers `jobs` with the failure and stops all further writes.
fn poison(shared: &Shared, what: &'static str, error: &io::Error, jobs: Vec<Job>) {
    shared.poison(what, error);
    for job in jobs {
        let source = error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
        refuse(job, io_error(what, shared.layout.root(), source));
    }
}

fn name_object(
    shared: &Shared,
    mut job: Box<ObjectJob>,
    dirs: &mut BTreeSet<PathBuf>,
) -> Result<Done, (Box<ObjectJob>, StoreError)> {
    let version = shared.next_version();
    match publish_head(shared, &job.bucket, &job.record.info.key, version, &mut job.staged, dirs) {
        Ok(()) => {
            let index = shared.index.read();
            let replaced =
                index.buckets.get(&job.bucket).and_then(|bucket| bucket.objects.get(&job.record.info.key)).cloned();
            drop(index);
            Ok(Done::Object { job, version, replaced })
        }
        Err(e) => Err((job, e)),
    }
}

/// Moves a staged file to its name among the objects, and notes which directories to sync.
pub fn publish_head(
    shared: &Shared,
    bucket: &str,
    key: &str,
    version: u64,
    staged: &mut StagedFile,
    dirs: &mut BTreeSet<PathBuf>,
) -> StoreResult<()> {
    let name = HeadName::new(key, version);
    let fan = shared.layout.fan(bucket, name.fan());
    if !shared.index.read().bucket(bucket)?.fans.contains(&name.fan()) {
        match fs::create_dir(&fan) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(io_error("mkdir", &fan, e)),
            _ => dirs.insert(shared.layout.objects(bucket)),
        };
        shared.index.write().bucket_mut(bucket)?.fans.insert(name.fan());
    }
    let head = shared.layout.head(bucket, &name);
    staged.publish(&head).map_err(|e| io_error("rename to", &head, e))?;
    dirs.insert(fan);
    Ok(())
}

fn name_part(
    shared: &Shared,
    mut job: Box<PartJob>,
    dirs: &mut BTreeSet<PathBuf>,
) -> Result<Done, (Box<PartJob>, StoreError)> {
    let dir = shared.layout.upload(&job.bucket, &job.upload);
    let path = dir.join(part_name(job.info.number, job.info.version));
    if let Err(e) = job.staged.publish(&path) {
        return Err((job, io_error("rename to", &path, e)));
    }
    dirs.insert(dir.clone());
    let index = shared.index.read();
    let replaced = index.upload(&job.bucket, &job.key, &job.upload).ok();
    let replaced = replaced.and_then(|upload| upload.parts.get(&job.info.number)).map(|part| part.version);
    drop(index);
    Ok(Done::Part { job, dir, replaced })
}

fn unname(shared: &Shared, job: &RemoveJob, dirs: &mut BTreeSet<PathBuf>) -> StoreResult<()> {
    let Some(object) = shared.index.write().bucket_mut(&job.bucket)?.objects.remove(&job.key) else { return Ok(()) };
    let name = HeadName::new(&job.key, object.version);
    if let Err(e) = unlink_head(shared, &job.bucket, &name, &object) {
        // Still there: the index says so again.
        shared.index.write().bucket_mut(&job.bucket)?.objects.insert(job.key.clone(), object);
        return Err(e);
    }
    dirs.insert(shared.layout.fan(&job.bucket, name.fan()));
    Ok(())
}

/// Takes an object's file out of service, and lets its part files go.
fn unlink_head(shared: &Shared, bucket: &str, name: &HeadName, object: &Object) -> StoreResult<()> {
    let head = shared.layout.head(bucket, name);
    if object.info.size >= TRASH_FROM_BYTES && object.extents.is_none() {
        let aside = shared.layout.trash().join(format!("{:016x}", shared.next_version()));
        fs::rename(&head, &aside).map_err(|e| io_error("rename", &head, e))?;
        shared.trash.discard(aside);
    } else {
        fs::remove_file(&head).map_err(|e| io_error("unlink", &head, e))?;
    }
    // Without its file a sidecar is garbage, which the next start would clear away too.
    let _ = fs::remove_file(record::sidecar_of(&head));
    if let Some(extents) = &object.extents {
        extents.doom();
    }
    Ok(())
}

fn finish(shared: &Shared, done: Done) {
    match done {
        Done::Object { job, version, replaced } => {
            let info = Arc::new(job.record.info);
            let object = Object { info: info.clone(), version, extents: None };
            put_in_service(shared, &job.bucket, object, replaced);
            drop(job.reply.send(Ok(info)));
        }
        Done::Part { job, dir, replaced } => {
            let (number, etag, size) = (job.info.number, job.info.etag.clone(), job.info.size);
            let info = ObjectInfo {
                key: job.key,
                size,
                etag,
                modified: job.info.modified,
                attributes: Default::default(),
                tags: Vec::new(),
                checksum: job.info.checksum.clone(),
                part_sizes: Vec::new(),
                upload: Some(job.upload.clone()),
            };
            if let Ok(bucket) = shared.index.write().bucket_mut(&job.bucket)
                && let Some(upload) = bucket.uploads.get_mut(&job.upload)
            {
                upload.parts.insert(number, job.info);
            }
            if let Some(version) = replaced {
                shared.trash.discard(dir.join(part_name(number, version)));
            }
            drop(job.reply.send(Ok(Arc::new(info))));
        }
        Done::Remove { job } => drop(job.reply.send(Ok(()))),
    }
}

/// Steps 5 and 6 for a published object.
pub fn put_in_service(shared: &Shared, bucket: &str, object: Object, replaced: Option<Arc<Object>>) {
    let key = object.info.key.clone();
    if let Ok(bucket) = shared.index.write().bucket_mut(bucket) {
        bucket.objects.insert(key.clone(), Arc::new(object));
    }
    if let Some(old) = replaced
        && let Err(e) = unlink_head(shared, bucket, &HeadName::new(&key, old.version), &old)
    {
        // Were it left, a removal of the new version would bring this one back at the next start.
        shared.poison("unlink of a replaced version", &e);
    }
}
