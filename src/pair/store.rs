//! The directory of pairs: `<config-dir>/pairs.d/NAME.toml`, one file a pair.
//!
//! A reader sees an old file or a new one, never half of one: files are written beside their place, synced, renamed,
//! and the directory is synced. Changes are serialised by a lock file, so two `pair add` cannot both pass the checks.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{MetaSyncRole, Pair, PairError, PairResult, file};
use crate::types::PairName;

/// Most files looked at in `pairs.d`.
const PAIRS_MAX: usize = 1_000;

/// What is known of the files whose records name a pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimCheck {
    /// No file's content hangs on the pair.
    Free,
    /// Some do, `files` at least; `example` is one of them.
    Claimed { files: u64, example: PathBuf },
    /// A mount runs with the pair: it could make stubs at any moment.
    Mounted { mountpoint: PathBuf, pid: u32 },
}

/// The pairs of one configuration directory.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

/// One file of the directory: its pair, or what is wrong with it.
#[derive(Debug)]
pub struct Entry {
    pub path: PathBuf,
    pub pair: PairResult<Pair>,
}

impl Store {
    /// The pairs below `config_dir` (usually `/etc/tierfs`). Nothing is created or read yet.
    pub fn open(config_dir: &Path) -> Self {
        Self { directory: config_dir.join("pairs.d") }
    }

    /// The directory that holds the files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the file of a pair is or would be.
    pub fn path_of(&self, name: &PairName) -> PathBuf {
        self.directory.join(format!("{name}.toml"))
    }

    /// Every pair file, sorted by name, the broken ones with their error. A missing directory holds no pairs.
    pub fn entries(&self) -> PairResult<Vec<Entry>> {
        let listing = match fs::read_dir(&self.directory) {
            Ok(listing) => listing,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(PairError::io("list", &self.directory)(error)),
        };
        let mut paths = Vec::new();
        for entry in listing {
            let path = entry.map_err(PairError::io("list", &self.directory))?.path();
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if path.extension().is_some_and(|ext| ext == "toml") && !hidden {
                paths.push(path);
            }
            if paths.len() > PAIRS_MAX {
                let reason =
                    format!("more than {PAIRS_MAX} pairs in {}: remove what is not used", self.directory.display());
                return Err(PairError::Value(reason));
            }
        }
        paths.sort();
        Ok(paths.into_iter().map(|path| Entry { pair: read(&path), path }).collect())
    }

    /// All pairs, sorted by name; the first broken file is an error.
    pub fn load_all(&self) -> PairResult<Vec<Pair>> {
        self.entries()?.into_iter().map(|entry| entry.pair).collect()
    }

    /// One pair. Other files, broken ones too, play no part.
    pub fn load(&self, name: &PairName) -> PairResult<Pair> {
        match read(&self.path_of(name)) {
            Err(PairError::Io { error, .. }) if error.kind() == ErrorKind::NotFound => {
                let known: Vec<_> = self
                    .entries()
                    .unwrap_or_default()
                    .iter()
                    .filter_map(|entry| Some(entry.path.file_stem()?.to_str()?.to_owned()))
                    .collect();
                let known = if known.is_empty() {
                    "there are none yet, `tierfs pair add` makes one".into()
                } else {
                    format!("there is {}", known.join(", "))
                };
                Err(PairError::Unknown { name: name.clone(), directory: self.directory.clone(), known })
            }
            other => other,
        }
    }

    /// The pair of a share. `None`: no pair names it. A broken file is an error only when no sound one names the share,
    /// since it may be the one that was meant.
    pub fn for_share(&self, share: &Path) -> PairResult<Option<Pair>> {
        let mut found = Vec::new();
        let mut broken = None;
        for entry in self.entries()? {
            match entry.pair {
                Ok(pair) if same_place(&pair.local_share, share) => found.push(pair),
                Ok(_) => {}
                Err(error) => broken = broken.or(Some(error)),
            }
        }
        match (found.len(), broken) {
            (0, Some(error)) => Err(error),
            (0 | 1, _) => Ok(found.pop()),
            _ => {
                let names = found.iter().map(|pair| pair.name.as_str()).collect::<Vec<_>>().join(", ");
                Err(PairError::Ambiguous { share: share.to_owned(), names })
            }
        }
    }

    /// Stores a new pair. Refused: a name that is taken; the four identifiers of another pair; a second master (R3);
    /// and, unless `force`, a second pair for the same share or the same remote place.
    pub fn add(&self, pair: &Pair, force: bool) -> PairResult<()> {
        let _lock = self.lock()?;
        self.check(pair, force)?;
        self.write(pair)
    }

    /// Whether [`Store::add`] would accept the pair just now.
    pub fn check(&self, pair: &Pair, force: bool) -> PairResult<()> {
        if fs::symlink_metadata(self.path_of(&pair.name)).is_ok() {
            return Err(PairError::Exists { name: pair.name.clone() });
        }
        for other in self.load_all()? {
            conflict(pair, &other, force)?;
        }
        Ok(())
    }

    /// Changes a pair. `change` gets the stored one and gives the new one; the four identifiers must stay, because stored
    /// stubs carry them. A change of role is refused unless `claims` finds nothing that hangs on the pair.
    pub fn edit(
        &self,
        name: &PairName,
        change: impl FnOnce(Pair) -> PairResult<Pair>,
        claims: &dyn Fn(&Pair) -> PairResult<ClaimCheck>,
    ) -> PairResult<Pair> {
        let _lock = self.lock()?;
        let old = self.load(name)?;
        let new = change(old.clone())?;
        if new.name != old.name || !new.same_identifiers(&old) {
            return Err(PairError::Conflict {
                name: name.clone(),
                reason: "an edit cannot change its name or its four identifiers, which stubs carry: add a new pair"
                    .into(),
            });
        }
        if new.role != old.role {
            free(&old, claims(&old)?)?;
        }
        for other in self.load_all()?.iter().filter(|other| other.name != *name) {
            conflict(&new, other, true)?;
        }
        self.write(&new)?;
        Ok(new)
    }

    /// Removes a pair that no stub names (R8): `claims` finds out.
    pub fn remove(&self, name: &PairName, claims: &dyn Fn(&Pair) -> PairResult<ClaimCheck>) -> PairResult<Pair> {
        let _lock = self.lock()?;
        let pair = self.load(name)?;
        free(&pair, claims(&pair)?)?;
        let path = self.path_of(name);
        fs::remove_file(&path).map_err(PairError::io("remove", &path))?;
        sync_directory(&self.directory)?;
        Ok(pair)
    }

    fn write(&self, pair: &Pair) -> PairResult<()> {
        let path = self.path_of(&pair.name);
        let text = file::format(pair)?;
        // Checked as a reader will check it: what could not be read back must not get in.
        if file::parse(&pair.name, &path, &text)? != *pair {
            return Err(PairError::Value(format!(
                "pair {} would not read back as it was given: report this",
                pair.name
            )));
        }
        write_atomically(&path, text.as_bytes())
    }

    /// Held by whoever changes the directory; freed when dropped, also by the kernel when the process dies.
    fn lock(&self) -> PairResult<File> {
        make_directory(&self.directory)?;
        let path = self.directory.join(".lock");
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(PairError::io("open", &path))?;
        file.lock().map_err(PairError::io("lock", &path))?;
        Ok(file)
    }
}

/// Whether `new` may stand beside `other`. `force` allows what is only unwise.
fn conflict(new: &Pair, other: &Pair, force: bool) -> PairResult<()> {
    let refuse = |reason: String| Err(PairError::Conflict { name: new.name.clone(), reason });
    if new.same_identifiers(other) {
        return refuse(format!("pair {} has the same four identifiers: edit or remove that one", other.name));
    }
    let both_master = new.meta_sync == Some(MetaSyncRole::Master) && other.meta_sync == Some(MetaSyncRole::Master);
    if both_master && new.is_other_half(other) {
        return refuse(format!(
            "pair {} is the other half of it and is the metadata master already: give one of them --meta-sync slave",
            other.name
        ));
    }
    if !force && same_place(&new.local_share, &other.local_share) {
        return refuse(format!(
            "pair {} is for the same share {}: --force adds it nevertheless (each mount then needs --pair)",
            other.name,
            other.local_share.display()
        ));
    }
    let same_remote = new.bucket == other.bucket
        && new.prefix == other.prefix
        && new.endpoints.iter().any(|endpoint| other.endpoints.contains(endpoint));
    if !force && same_remote {
        return refuse(format!(
            "pair {} keeps its objects at the same place {}: use another prefix (--force shares it nevertheless)",
            other.name,
            other.remote_share()
        ));
    }
    Ok(())
}

fn free(pair: &Pair, check: ClaimCheck) -> PairResult<()> {
    let reason = match check {
        ClaimCheck::Free => return Ok(()),
        ClaimCheck::Claimed { files, example } => format!(
            "at least {files} files of {} have content only it can bring back, {} among them: `tierfs recall -r` them first",
            pair.local_share.display(),
            example.display()
        ),
        ClaimCheck::Mounted { mountpoint, pid } => format!(
            "the mount at {} (process {pid}) runs with it: recall its stubs, then `tierfs umount {}` first",
            mountpoint.display(),
            mountpoint.display()
        ),
    };
    Err(PairError::InUse { name: pair.name.clone(), reason })
}

/// The same directory, by what the kernel says where both exist, else by the text.
fn same_place(a: &Path, b: &Path) -> bool {
    match (fs::canonicalize(a), fs::canonicalize(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

fn read(path: &Path) -> PairResult<Pair> {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let name: PairName = stem.parse().map_err(|error: crate::types::BadName| PairError::FileName {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    let file = File::open(path).map_err(PairError::io("open", path))?;
    let mut text = String::new();
    file.take(file::FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(PairError::io("read", path))?;
    if text.len() as u64 > file::FILE_BYTES_MAX {
        return Err(PairError::FileName {
            path: path.to_owned(),
            reason: format!("a pair's file has at most {} KiB", file::FILE_BYTES_MAX >> 10),
        });
    }
    file::parse(&name, path, &text)
}

fn make_directory(directory: &Path) -> PairResult<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(PairError::io("create", directory))
}

fn sync_directory(directory: &Path) -> PairResult<()> {
    File::open(directory).and_then(|dir| dir.sync_all()).map_err(PairError::io("sync", directory))
}

/// Replaces `path` as one durable step: temporary file, fsync, rename, fsync of the directory. Mode 0600; missing
/// directories are made with mode 0700.
pub(super) fn write_atomically(path: &Path, bytes: &[u8]) -> PairResult<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    make_directory(directory)?;
    let mut temporary = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(directory)
        .map_err(PairError::io("create a file in", directory))?;
    temporary.write_all(bytes).map_err(PairError::io("write", path))?;
    // The content must be durable before its name points to it, or a crash could leave an empty pair.
    temporary.as_file().sync_all().map_err(PairError::io("sync", path))?;
    temporary.persist(path).map_err(|error| PairError::io("write", path)(error.error))?;
    sync_directory(directory)
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
