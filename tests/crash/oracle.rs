//! What may be in the files after a crash: every change that was made, and which of them was made durable.
//!
//! A process's death loses nothing but what was under way. A power loss may lose, tear or mix whatever was not synced since, and nothing else:
//! each byte is one that its place had since the last sync of the file (or a zero where the file was cut, extended or punched), each
//! name means what it meant since the last sync of its directory, or of its file. A file that is dual or a stub is one whole content it had.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// Of the filesystems below, in bytes.
const BLOCK: usize = 4096;

/// What was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    Process,
    Power,
}

/// One change of content.
#[derive(Clone)]
pub enum Change {
    /// `durable`: by a descriptor with O_SYNC, and it has returned.
    Write {
        at: usize,
        data: Vec<u8>,
        durable: bool,
    },
    Resize(usize),
    /// What was found after a process's death, of a change that was under way.
    Became(Vec<u8>),
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { at, data, durable } => {
                write!(f, "write {at}+{}{}", data.len(), if *durable { " synced" } else { "" })
            }
            Self::Resize(len) => write!(f, "resize to {len}"),
            Self::Became(all) => write!(f, "found with {} bytes", all.len()),
        }
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { at, data, .. } => {
                if content.len() < at + data.len() {
                    content.resize(at + data.len(), 0);
                }
                content[*at..at + data.len()].copy_from_slice(data);
            }
            Self::Resize(len) => content.resize(*len, 0),
            Self::Became(all) => content.clone_from(all),
        }
    }
}

/// Of what a file has, and may have.
pub struct Body {
    /// Its inode number below, once it is known.
    pub ino: Option<u64>,
    durable: Vec<u8>,
    since: Vec<Change>,
    /// Hashes of the whole contents since then, the durable one included.
    wholes: Vec<blake3::Hash>,
    now: Vec<u8>,
    pending: Option<Change>,
    /// One of its names was taken from it since, and given to no other.
    dropped: bool,
}

impl Body {
    fn new(content: Vec<u8>, ino: Option<u64>) -> Self {
        let wholes = vec![blake3::hash(&content)];
        Self { ino, durable: content.clone(), since: Vec::new(), wholes, now: content, pending: None, dropped: false }
    }

    pub fn content(&self) -> &[u8] {
        &self.now
    }

    /// Notes a change before it is made.
    pub fn begin(&mut self, change: Change) {
        debug_assert!(self.pending.is_none());
        self.pending = Some(change);
    }

    /// The change begun has been made.
    pub fn done(&mut self) {
        let change = self.pending.take().expect("a change was begun");
        change.apply(&mut self.now);
        self.wholes.push(blake3::hash(&self.now));
        self.since.push(change);
    }

    /// fsync(2) or fdatasync(2) has succeeded.
    fn synced(&mut self) {
        self.dropped = false;
        self.durable.clone_from(&self.now);
        self.since.clear();
        self.wholes = vec![blake3::hash(&self.now)];
    }

    /// Whether a file may have this content after a loss; why not. `whole`: tiering says that it is one whole content.
    pub fn allows(&self, found: &[u8], loss: Loss, whole: bool) -> Result<(), String> {
        if found == self.now {
            return Ok(());
        }
        let (base, since) = match loss {
            Loss::Process => (&self.now, &[][..]),
            Loss::Power => (&self.durable, &self.since[..]),
        };
        if whole {
            return self.allows_whole(found, loss);
        }
        let (mut size, mut least, mut most) = (base.len(), base.len(), base.len());
        // The block in which it ended may have more on the disk, of changes that an earlier loss undid. XFS shows that where the file is
        // extended beyond it and only what comes after is synced.
        let ghosts = if loss == Loss::Power { base.len().next_multiple_of(BLOCK) } else { base.len() };
        let mut right: Vec<bool> = found
            .iter()
            .enumerate()
            .map(|(at, byte)| base.get(at).map_or(*byte == 0 || at < ghosts, |was| was == byte))
            .collect();
        // Nobody has heard of the end of what is under way.
        let pending = self.pending.as_ref().map(|change| (change, false));
        for (change, done) in since.iter().map(|change| (change, true)).chain(pending) {
            match change {
                Change::Write { at, data, durable } => {
                    let surely = *durable && done;
                    size = size.max(at + data.len());
                    most = most.max(size);
                    if surely {
                        least = least.max(at + data.len());
                    }
                    for (right, (found, written)) in right.iter_mut().skip(*at).zip(found.iter().skip(*at).zip(data)) {
                        *right = (*right && !surely) || found == written;
                    }
                }
                Change::Resize(len) => {
                    (size, least, most) = (*len, least.min(*len), most.max(*len));
                    for (right, found) in right.iter_mut().zip(found).skip(*len) {
                        *right |= *found == 0;
                    }
                }
                Change::Became(all) => {
                    (size, least, most) = (all.len(), least.min(all.len()), most.max(all.len()));
                    for (at, (right, found)) in right.iter_mut().zip(found).enumerate() {
                        *right |= all.get(at).copied().unwrap_or(0) == *found;
                    }
                }
            }
        }
        if found.len() < least || found.len() > most {
            return Err(format!("it has {} bytes; {least} to {most} were possible, {size} were written", found.len()));
        }
        let wrong: Vec<usize> = right.iter().enumerate().filter(|(_, right)| !**right).map(|(at, _)| at).collect();
        let (Some(first), Some(last)) = (wrong.first(), wrong.last()) else { return Ok(()) };
        let zeros = wrong.iter().filter(|at| found[**at] == 0).count();
        Err(format!(
            "{} of {} bytes, from {first} to {last}, are none that it had since the last sync, when it had {} bytes; {zeros} of them are zero; \
             changes since: {since:?}, under way: {:?}",
            wrong.len(),
            found.len(),
            base.len(),
            self.pending
        ))
    }

    fn allows_whole(&self, found: &[u8], loss: Loss) -> Result<(), String> {
        let hash = blake3::hash(found);
        let known = match loss {
            Loss::Process => &self.wholes[self.wholes.len() - 1..],
            Loss::Power => &self.wholes[..],
        };
        let pending = self.pending.as_ref().map(|change| {
            let mut after = self.now.clone();
            change.apply(&mut after);
            blake3::hash(&after)
        });
        if known.contains(&hash) || pending == Some(hash) {
            return Ok(());
        }
        Err(format!("its {} bytes are none of the {} whole contents it may have had", found.len(), known.len()))
    }

    /// What was found is what there is from now on.
    fn adopt(&mut self, found: Vec<u8>, ino: u64, loss: Loss) {
        self.ino = Some(ino);
        self.pending = None;
        if loss == Loss::Power {
            *self = Self::new(found, Some(ino));
        } else if found != self.now {
            self.begin(Change::Became(found));
            self.done();
        }
    }
}

/// Names a body among those of a tree.
pub type BodyId = usize;

/// What a name means, and may mean.
#[derive(Clone, Default)]
struct Name {
    durable: Option<BodyId>,
    since: Vec<Option<BodyId>>,
    pending: Vec<Option<BodyId>>,
}

impl Name {
    fn now(&self) -> Option<BodyId> {
        self.since.last().copied().unwrap_or(self.durable)
    }

    fn synced(&mut self) {
        self.durable = self.now();
        self.since.clear();
    }

    fn became(&mut self, found: Option<BodyId>, loss: Loss) {
        self.pending.clear();
        match loss {
            Loss::Power => *self = Self { durable: found, ..Self::default() },
            Loss::Process if self.now() != found => self.since.push(found),
            Loss::Process => {}
        }
    }

    fn may_be(&self, loss: Loss) -> Vec<Option<BodyId>> {
        let mut all = match loss {
            Loss::Process => vec![self.now()],
            Loss::Power => [&[self.durable], &self.since[..]].concat(),
        };
        all.extend(&self.pending);
        all
    }
}

/// What one look at a name showed.
pub struct Found {
    pub ino: u64,
    pub content: Vec<u8>,
    /// `user.tierfs.state`, asked for before the content.
    pub state: String,
}

/// Files of one owner: names relative to the mount, and what is behind them.
#[derive(Default)]
pub struct Tree {
    names: BTreeMap<PathBuf, Name>,
    bodies: Vec<Body>,
}

/// What a comparison showed, where nothing was wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Names whose file has lost changes, or which are back or gone.
    pub lost: u64,
    /// Files that have one content's bytes beside another's.
    pub mixed: u64,
}

impl Tree {
    /// The body that a name means now.
    pub fn at(&self, name: &Path) -> Option<BodyId> {
        self.names.get(name).and_then(Name::now)
    }

    pub fn body(&mut self, id: BodyId) -> &mut Body {
        &mut self.bodies[id]
    }

    pub fn names(&self) -> impl Iterator<Item = &PathBuf> {
        self.names.keys()
    }

    pub fn new_body(&mut self) -> BodyId {
        self.bodies.push(Body::new(Vec::new(), None));
        self.bodies.len() - 1
    }

    /// Notes what names will mean before they are changed.
    pub fn begin(&mut self, changes: &[(&Path, Option<BodyId>)]) {
        for (name, body) in changes {
            let name = self.names.entry(name.to_path_buf()).or_default();
            if let Some(old) = name.now().filter(|old| changes.iter().all(|(_, new)| *new != Some(*old))) {
                self.bodies[old].dropped = true;
            }
            name.pending.push(*body);
        }
    }

    /// All name changes begun have been made.
    pub fn done(&mut self) {
        for name in self.names.values_mut() {
            name.since.append(&mut name.pending);
        }
    }

    /// fsync(2) of a file: its content, and the names it has now. `data_only`: fdatasync(2).
    pub fn synced(&mut self, body: BodyId, data_only: bool) {
        self.bodies[body].synced();
        if !data_only {
            self.names_synced(body);
        }
    }

    /// A write by a descriptor with O_SYNC brings the file's names along.
    pub fn names_synced(&mut self, body: BodyId) {
        self.names.values_mut().filter(|name| name.now() == Some(body)).for_each(Name::synced);
    }

    /// fsync(2) of a directory.
    pub fn directory_synced(&mut self, directory: &Path) {
        let inside = self.names.iter_mut().filter(|(path, _)| path.parent() == Some(directory));
        inside.for_each(|(_, name)| name.synced());
    }

    /// Compares what was found, by name, with what may be there after a loss, and goes on from it.
    pub fn check(&mut self, found: BTreeMap<PathBuf, Option<Found>>, loss: Loss) -> Result<Seen, String> {
        let (mut seen, mut told) = (Seen::default(), String::new());
        let mut bodies: BTreeMap<u64, BodyId> = BTreeMap::new();
        let sure = |name: &Name| if loss == Loss::Power { name.durable } else { name.now() };
        let owed: Vec<(PathBuf, BodyId)> =
            self.names.iter().filter_map(|(p, name)| Some((p.clone(), sure(name)?))).collect();
        let owed: Vec<_> = owed
            .into_iter()
            .filter(|(_, id)| !self.bodies[*id].dropped)
            .map(|(path, id)| (path, id, self.bodies[id].ino))
            .collect();
        for (path, found) in found {
            let name = self.names.get(&path).cloned().unwrap_or_default();
            let may_be = name.may_be(loss);
            let bytes = found.as_ref().map(|found| (found.ino, found.content.len(), found.state.clone()));
            let inodes: Vec<_> = may_be.iter().map(|id| id.and_then(|id| self.bodies[id].ino)).collect();
            told.push_str(&format!("\n  {}: {bytes:?}, of inodes {inodes:?}", path.display()));
            let Some(found) = found else {
                if !may_be.contains(&None) {
                    return Err(format!("{} is gone", path.display()));
                }
                seen.lost += u64::from(name.now().is_some());
                self.names.entry(path).or_default().became(None, loss);
                continue;
            };
            let whole = ["dual", "stub", "partial"].contains(&found.state.as_str());
            let mut why = Vec::new();
            let fits = may_be.iter().rev().flatten().copied().find(|id| {
                let body = &self.bodies[*id];
                let verdict = match body.ino.filter(|ino| *ino != found.ino) {
                    Some(ino) => Err(format!("another file (inode {ino}) could be there")),
                    None => body.allows(&found.content, loss, whole),
                };
                verdict.map_err(|error| why.push(error)).is_ok()
            });
            let Some(id) = fits else {
                return Err(format!(
                    "{} (inode {}, {}): {}",
                    path.display(),
                    found.ino,
                    found.state,
                    if why.is_empty() { "it should not be there".to_owned() } else { why.join("; or ") }
                ));
            };
            let body = &self.bodies[id];
            seen.lost += u64::from(name.now() != Some(id) || found.content != body.now);
            seen.mixed += u64::from(!body.wholes.contains(&blake3::hash(&found.content)));
            self.names.entry(path).or_default().became(Some(id), loss);
            if bodies.insert(found.ino, id).is_none() {
                self.bodies[id].adopt(found.content, found.ino, loss);
            }
        }
        // By its inode, for another body may have had that before, and allow what was found as well.
        let is_there =
            |id: BodyId, ino: Option<u64>| bodies.iter().any(|(found, as_id)| *as_id == id || Some(*found) == ino);
        match owed.iter().find(|(_, id, ino)| !is_there(*id, *ino)) {
            Some((path, _, ino)) => Err(format!(
                "the file of {} (inode {ino:?}) is gone, though it was only renamed; found: {told}",
                path.display(),
            )),
            None => Ok(seen),
        }
    }

    /// Everything counts as durable: no power loss will ever ask what was before.
    pub fn settle(&mut self) {
        self.names.values_mut().for_each(Name::synced);
        self.bodies.iter_mut().for_each(Body::synced);
        self.tidy();
    }

    /// Forgets bodies that no name can mean any more.
    fn tidy(&mut self) {
        let used: Vec<BodyId> = self.names.values().flat_map(|name| name.may_be(Loss::Power)).flatten().collect();
        for (id, body) in self.bodies.iter_mut().enumerate() {
            if !used.contains(&id) {
                *body = Body::new(Vec::new(), None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is durable, what was changed since; what may be found, what may not.
    type Case<'a> = (&'a [u8], &'a [Change], &'a [&'a [u8]], &'a [&'a [u8]]);

    fn body(durable: &[u8], changes: &[Change]) -> Body {
        let mut body = Body::new(durable.to_vec(), Some(7));
        for change in changes {
            body.begin(change.clone());
            body.done();
        }
        body
    }

    fn write(at: usize, data: &[u8]) -> Change {
        Change::Write { at, data: data.to_vec(), durable: false }
    }

    fn durable_write(at: usize, data: &[u8]) -> Change {
        Change::Write { at, data: data.to_vec(), durable: true }
    }

    #[test]
    fn what_a_power_loss_may_leave() {
        let cases: [Case; 9] = [
            (b"abc", &[], &[b"abc"], &[b"", b"ab", b"ab\0", b"abcd", b"\0\0\0"]),
            (b"abc", &[write(1, b"X")], &[b"abc", b"aXc"], &[b"a\0c", b"aX"]),
            (b"abc", &[write(2, b"XY")], &[b"abc", b"abXY", b"abX", b"abc\0"], &[b"ab", b"ab\0Y", b"abcYZ"]),
            (b"abc", &[Change::Resize(1)], &[b"abc", b"a", b"ab", b"a\0c"], &[b"", b"xbc"]),
            (b"abc", &[Change::Resize(0), write(0, b"XYZ")], &[b"", b"XY", b"\0\0Z", b"aYZ"], &[b"QYZ", b"XYZZ"]),
            (b"abc", &[durable_write(1, b"X")], &[b"aXc"], &[b"abc", b"aX", b"XXc"]),
            (b"abc", &[write(0, b"P"), durable_write(3, b"X")], &[b"PbcX", b"abcX"], &[b"abc", b"Pbc", b"abc\0"]),
            (b"abc", &[durable_write(5, b"X")], &[b"abc\0\0X", b"abcggX"], &[b"abc", b"abc\0\0\0"]),
            (b"abc", &[durable_write(1, b"X"), write(1, b"Y")], &[b"aXc", b"aYc"], &[b"abc"]),
        ];
        for (durable, changes, may, may_not) in cases {
            let body = body(durable, changes);
            for found in may {
                body.allows(found, Loss::Power, false).unwrap_or_else(|why| panic!("{changes:?} {found:?}: {why}"));
            }
            for found in may_not {
                assert!(body.allows(found, Loss::Power, false).is_err(), "{changes:?} {found:?}");
            }
        }
    }

    #[test]
    fn what_a_dead_process_and_what_tiering_may_leave() {
        let mut body = body(b"abc", &[write(0, b"X"), write(1, b"Y")]);
        assert!(body.allows(b"XYc", Loss::Process, true).is_ok());
        assert!(body.allows(b"Xbc", Loss::Process, false).is_err(), "it was told that the write is made");
        assert!(body.allows(b"Xbc", Loss::Power, true).is_ok(), "a copy of an earlier moment");
        assert!(body.allows(b"aYc", Loss::Power, true).is_err(), "a mixture is no copy of any moment");
        assert!(body.allows(b"aYc", Loss::Power, false).is_ok());
        body.begin(write(2, b"Z"));
        assert!(body.allows(b"XYZ", Loss::Process, false).is_ok());
        assert!(body.allows(b"XYQ", Loss::Process, false).is_err());
        body.adopt(b"XYZ".to_vec(), 7, Loss::Process);
        assert!(body.allows(b"abc", Loss::Power, false).is_ok(), "nothing was synced yet");
        body.synced();
        assert!(body.allows(b"abc", Loss::Power, false).is_err());
    }

    #[test]
    fn names_are_kept_from_their_last_sync_on() {
        let (dir, a, b) = (Path::new("d"), Path::new("d/a"), Path::new("d/b"));
        let found = |content: &[u8]| Some(Found { ino: 7, content: content.to_vec(), state: "resident".into() });
        let tree = |synced: bool| {
            let mut tree = Tree::default();
            let id = tree.new_body();
            tree.begin(&[(a, Some(id))]);
            tree.done();
            tree.synced(id, false);
            tree.begin(&[(a, None), (b, Some(id))]);
            tree.done();
            if synced {
                tree.directory_synced(dir);
            }
            tree
        };
        let check = |synced, at_a, at_b, loss| {
            tree(synced).check([(a.into(), at_a), (b.into(), at_b)].into(), loss).map(|seen| seen.lost)
        };
        assert_eq!(check(false, None, found(b""), Loss::Power), Ok(0));
        assert_eq!(check(false, found(b""), None, Loss::Power), Ok(2));
        assert!(check(true, found(b""), None, Loss::Power).is_err());
        assert!(check(false, found(b""), None, Loss::Process).is_err());
        assert!(check(false, None, found(b"x"), Loss::Power).is_err());
        assert!(check(false, None, None, Loss::Power).is_err(), "a rename loses no file");
    }
}
