//! What `migrate`, `recall`, `release`, `pin`, `unpin` and `status` share: from the paths on the command line to
//! requests, one mount at a time, and the replies to the reporter.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;

use super::exit::{CliError, Exit};
use super::report::{Reporter, Verb};
use super::{Global, output};
use crate::control::by_xattr::{self, Steer};
use crate::control::client::{Connection, REQUEST_PATHS_MAX};
use crate::control::locate::{Located, absolute, locate, socket_of, xattr};
use crate::control::mountinfo::{self, MountEntry};
use crate::control::protocol::{Failure, RECALLS_XATTR, RecallStatus, Reply, Request, Summary, WirePath};
use crate::control::{ControlError, ControlResult};

/// The arguments of every command about files.
#[derive(Debug, Args)]
pub struct Paths {
    /// Files or, with -r, directories on a tierfs mount. A symbolic link is skipped.
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// All regular files below the directories named.
    #[arg(short, long)]
    pub recursive: bool,
}

/// What is asked, for root by the socket and for others by attributes.
pub struct Ask<'a> {
    pub verb: Verb,
    /// Makes the request for paths relative to the mount's root.
    pub request: &'a dyn Fn(Vec<WirePath>) -> Request,
    pub by_xattr: ByXattr,
}

/// How a user who is not root asks the same.
#[derive(Clone, Copy, Debug)]
pub enum ByXattr {
    Steer(Steer),
    Status {
        files: bool,
    },
    /// Not possible; the reason.
    No(&'static str),
}

/// One mount and the named paths on it.
pub struct Group {
    mount: MountEntry,
    files: Vec<Located>,
}

impl Group {
    pub fn mount(&self) -> &MountEntry {
        &self.mount
    }
}

/// Asks every mount concerned and reports. Paths that lie on no mount are failures of their own; if none lies on one,
/// nothing could be done.
pub fn run(global: &Global, paths: &Paths, ask: Ask<'_>) -> Result<Exit, CliError> {
    let mounts = mountinfo::read().map_err(ControlError::NoMountInfo)?;
    let mut groups: BTreeMap<u64, Group> = BTreeMap::new();
    let mut reporter = Reporter::new(global.json, ask.verb);
    let mut failed_only = true;
    for path in &paths.paths {
        match locate(&mounts, path) {
            Ok(file) => {
                failed_only = false;
                let group = groups
                    .entry(file.mount.id)
                    .or_insert_with(|| Group { mount: file.mount.clone(), files: Vec::new() });
                group.files.push(file);
            }
            Err(not) => {
                failed_only &= !not.skipped;
                let failure = Failure { path: WirePath::from_path(path), reason: not.reason, skipped: not.skipped };
                let counted =
                    Summary { failed: (!not.skipped).into(), skipped: not.skipped.into(), ..Summary::default() };
                reporter.reply(Reply::Failure(failure));
                reporter.add(counted);
            }
        }
    }
    if failed_only {
        let reason = if paths.paths.len() == 1 { "the path is" } else { "none of the paths is" };
        return Err(CliError::Failed(format!("nothing to do: {reason} a file on a tierfs mount (see above)")));
    }
    let root = rustix::process::geteuid().is_root();
    let mut unreachable = None;
    let mut reached = false;
    for group in groups.into_values() {
        let done = match (root, ask.by_xattr) {
            (true, _) => by_socket(&mounts, &group, &ask, &mut reporter),
            (false, ByXattr::No(reason)) => return Err(CliError::Failed(reason.into())),
            (false, way) => {
                let files = group.files.into_iter().map(|file| file.path).collect();
                by_attribute(files, paths.recursive, way, &mut reporter);
                Ok(())
            }
        };
        match done {
            Ok(()) => reached = true,
            // The other mounts get their turn; this one is told at the end.
            Err(error) => {
                if let Some(earlier) = unreachable.replace(error) {
                    output::note(&format!("tierfs: {earlier}"));
                }
            }
        }
    }
    let exit = reporter.finish(reached);
    match unreachable {
        Some(error) if !reached => Err(error.into()),
        Some(error) => {
            output::note(&format!("tierfs: {error}"));
            Ok(Exit::Partial)
        }
        None => Ok(exit),
    }
}

fn by_socket(mounts: &[MountEntry], group: &Group, ask: &Ask<'_>, reporter: &mut Reporter) -> ControlResult<()> {
    let socket = socket_of(mounts, &group.mount)?;
    for some in group.files.chunks(REQUEST_PATHS_MAX) {
        let request = (ask.request)(some.iter().map(|file| WirePath::from_path(&file.inside)).collect());
        // A transfer may be silent for as long as its file takes; Ctrl-C ends the wait and the job.
        let mut connection = Connection::open(&socket, None)?;
        let summary = connection.ask(&request, &mut |reply| {
            reporter.reply(seen_from_here(reply, &group.mount));
            Ok(())
        })?;
        reporter.add(summary);
    }
    Ok(())
}

/// The mounts that the paths lie on, which need not exist any more; without paths, all mounts, each as a whole.
pub fn on_mounts(paths: &[PathBuf]) -> Result<Vec<Group>, CliError> {
    let mounts = mountinfo::read().map_err(ControlError::NoMountInfo)?;
    let mut groups: BTreeMap<u64, Group> = BTreeMap::new();
    let mut add = |mount: &MountEntry, path: PathBuf, inside: PathBuf| {
        let group = groups.entry(mount.id).or_insert_with(|| Group { mount: mount.clone(), files: Vec::new() });
        group.files.push(Located { mount: mount.clone(), path, inside });
    };
    if paths.is_empty() {
        for mount in mounts.iter().filter(|mount| mount.is_tierfs() && mount.root == Path::new("/")) {
            add(mount, mount.mount_point.clone(), PathBuf::new());
        }
    }
    for path in paths {
        let failed = |reason: String| CliError::Failed(format!("{}: {reason}", path.display()));
        let whole = absolute(path).map_err(|error| failed(error.to_string()))?;
        let mount = mountinfo::covering(&mounts, &whole).filter(|mount| mount.is_tierfs());
        let found = mount.and_then(|mount| Some((mount, mount.inside(&whole)?)));
        let Some((mount, inside)) = found else {
            return Err(failed("not on a tierfs mount (`findmnt -t fuse.tierfs` lists them)".into()));
        };
        add(mount, whole, inside);
    }
    if groups.is_empty() {
        return Err(CliError::Failed("nothing of tierfs is mounted here".into()));
    }
    Ok(groups.into_values().collect())
}

/// Asks each mount about its paths by its socket, for root.
pub fn ask_mounts(
    global: &Global,
    groups: Vec<Group>,
    verb: Verb,
    request: &dyn Fn(Vec<WirePath>) -> Request,
) -> Result<Exit, CliError> {
    if !rustix::process::geteuid().is_root() {
        return Err(CliError::Failed("this needs root: it is about everybody's files".into()));
    }
    let mounts = mountinfo::read().map_err(ControlError::NoMountInfo)?;
    let mut reporter = Reporter::new(global.json, verb);
    let ask = Ask { verb, request, by_xattr: ByXattr::No("") };
    let mut outcome = Ok(());
    for group in &groups {
        // The other mounts get their turn.
        let asked = by_socket(&mounts, group, &ask, &mut reporter);
        outcome = outcome.and(asked);
    }
    let exit = reporter.finish(outcome.is_ok());
    outcome.map(|()| exit).map_err(CliError::from)
}

/// Asks each mount by its socket, for root, and hands on every reply; the sum of the ends.
pub fn each_reply(
    groups: Vec<Group>,
    request: &dyn Fn(Vec<WirePath>) -> Request,
    each: &mut dyn FnMut(Reply),
) -> Result<Summary, CliError> {
    if !rustix::process::geteuid().is_root() {
        return Err(CliError::Failed("this needs root: it is about everybody's files".into()));
    }
    let mounts = mountinfo::read().map_err(ControlError::NoMountInfo)?;
    let mut total = Summary::default();
    for group in &groups {
        let mut connection = Connection::open(&socket_of(&mounts, &group.mount)?, None)?;
        let paths = group.files.iter().map(|file| WirePath::from_path(&file.inside)).collect();
        let ended = connection.ask(&request(paths), &mut |reply| {
            each(seen_from_here(reply, &group.mount));
            Ok(())
        })?;
        total += ended;
    }
    Ok(total)
}

/// The recalls that the mounts show a user who is not root, of files at or below the paths of the groups.
pub fn running_seen_by_user(groups: &[Group]) -> Result<Vec<RecallStatus>, CliError> {
    let mut found = Vec::new();
    for group in groups {
        let place = &group.mount.mount_point;
        let told = xattr(place, RECALLS_XATTR)
            .map_err(|errno| CliError::Failed(format!("{}: {}", place.display(), std::io::Error::from(errno))))?;
        let recalls = told.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        let is_meant = |recall: &RecallStatus| {
            let path = recall.path.to_path();
            group.files.iter().any(|file| path.starts_with(&file.inside))
        };
        for recall in recalls.filter(is_meant) {
            if let Reply::Recall(recall) = seen_from_here(Reply::Recall(recall), &group.mount) {
                found.push(recall);
            }
        }
    }
    Ok(found)
}

/// Asks by attributes of the files themselves, for a user who is not root.
pub fn by_attribute(paths: Vec<PathBuf>, recursive: bool, way: ByXattr, reporter: &mut Reporter) {
    let mut each = |reply| reporter.reply(reply);
    let summary = match way {
        ByXattr::Steer(steer) => by_xattr::steer(paths, recursive, steer, &mut each),
        ByXattr::Status { files } => by_xattr::status(paths, recursive, files, &mut each),
        ByXattr::No(_) => Summary::default(),
    };
    reporter.add(summary);
}

/// The daemon names paths from its own root; people know them below the mount point they used.
pub(super) fn seen_from_here(reply: Reply, mount: &MountEntry) -> Reply {
    let here = |path: WirePath| {
        let inside = path.to_path();
        mount.outside(&inside).map_or(path, |outside| WirePath::from_path(&outside))
    };
    match reply {
        Reply::File(mut status) => {
            status.path = here(status.path);
            Reply::File(status)
        }
        Reply::SyncDifference(mut difference) => {
            difference.path = here(difference.path);
            Reply::SyncDifference(difference)
        }
        Reply::Sync(mut status) => {
            for refused in &mut status.refused_names {
                refused.path = here(std::mem::replace(&mut refused.path, WirePath::Text(String::new())));
            }
            Reply::Sync(status)
        }
        Reply::Choice(mut choice) => {
            choice.path = here(choice.path);
            Reply::Choice(choice)
        }
        Reply::Failure(mut failure) => {
            failure.path = here(failure.path);
            Reply::Failure(failure)
        }
        Reply::Digest(mut digest) => {
            digest.path = here(digest.path);
            Reply::Digest(digest)
        }
        Reply::Version(mut version) => {
            version.path = here(version.path);
            Reply::Version(version)
        }
        Reply::Restored { path, generation, object } => Reply::Restored { path: here(path), generation, object },
        Reply::Repaired { path } => Reply::Repaired { path: here(path) },
        Reply::Recall(mut recall) => {
            recall.path = here(recall.path);
            Reply::Recall(recall)
        }
        Reply::DeadLetter(mut failed) => {
            failed.path = here(failed.path);
            Reply::DeadLetter(failed)
        }
        Reply::Candidate(mut file) => {
            file.path = here(file.path);
            Reply::Candidate(file)
        }
        Reply::Task(mut task) => {
            task.paths = task.paths.into_iter().map(here).collect();
            Reply::Task(task)
        }
        Reply::Figures(mut figures) => {
            for recall in &mut figures.recalls {
                recall.path = here(recall.path.clone());
            }
            for task in &mut figures.tasks {
                task.paths = std::mem::take(&mut task.paths).into_iter().map(here).collect();
            }
            Reply::Figures(figures)
        }
        Reply::Why(mut why) => {
            why.path = here(why.path);
            Reply::Why(why)
        }
        other => other,
    }
}
