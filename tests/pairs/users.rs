//! What users and administrators of a side do, at random, as long as a round lasts.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use crate::dice::Dice;
use crate::oracle::{File, Known};
use crate::s3::{Not, S3};
use crate::sides::Sides;
use crate::tools::*;

/// Bytes that a file has at most: a few chunks of 64 KiB.
const LEN_MAX: u64 = 300 << 10;

/// A round as all its threads see it.
pub struct Round<'a> {
    pub sides: &'a Sides,
    pub number: u64,
    pub files: RwLock<Vec<Arc<File>>>,
    pub names: AtomicU64,
    pub over: AtomicBool,
    pub wrong: Mutex<Vec<String>>,
    /// How often what was done, or failed with which errno. A call may fail while the link does, with any; when it is healed, none may.
    pub counts: Mutex<BTreeMap<String, u64>>,
}

impl Round<'_> {
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    pub fn complain(&self, what: String) {
        // In case that what follows does not end.
        eprintln!("{what}");
        self.wrong.lock().unwrap().push(what);
        self.over.store(true, Ordering::SeqCst);
    }

    fn count<T>(&self, what: &str, result: &io::Result<T>) {
        let how = match result {
            Ok(_) => what.to_owned(),
            Err(error) => format!("{what}: errno {}", error.raw_os_error().unwrap_or_default()),
        };
        *self.counts.lock().unwrap().entry(how).or_default() += 1;
    }

    fn any(&self, dice: &mut Dice) -> Arc<File> {
        let files = self.files.read().unwrap();
        files[dice.below(files.len() as u64) as usize].clone()
    }

    /// A file with content, made at the master; it gets its stub at the slave when the link allows.
    pub fn create(&self, dice: &mut Dice) {
        let name = self.new_name();
        let len = match dice.below(4) {
            0 => dice.below(3_000),
            _ => dice.below(LEN_MAX),
        };
        let content = dice.bytes(len as usize + 1);
        let made = fs::File::create(self.sides.sides[0].mnt(&name)).and_then(|file| {
            file.write_all_at(&content, 0)?;
            file.sync_all()
        });
        self.count("create", &made);
        match made {
            Ok(()) => self.files.write().unwrap().push(Arc::new(RwLock::new(Known::new(name, content)))),
            Err(error) => self.complain(format!("{name}: {error}: nothing is in the way of the master's new file")),
        }
    }

    /// A user of a side, by its mount and by its gateway, until the round is over.
    pub fn user(&self, side: usize, dice: &mut Dice) {
        let s3 = S3::new(&self.sides.link, side);
        while !self.is_over() {
            let file = self.any(dice);
            match dice.below(28) {
                0..6 => self.read(side, &file),
                6..11 => self.write(side, &file, dice),
                11..14 => self.cut(side, &file, dice),
                14 | 15 => self.command(side, "migrate", &file),
                16 => self.command(side, "recall", &file),
                17 if side == 0 => self.rename(&file),
                18 if side == 0 => self.remove(&file),
                19 if side == 0 => self.create(dice),
                20..23 => self.put(side, &s3, &file, dice),
                23 | 24 => self.get(side, &s3, &file),
                25 => self.delete(side, &s3, &file),
                26 if side == 0 => self.rename_by_s3(&s3, &file),
                27 if side == 0 => self.create_by_s3(&s3, dice),
                _ => std::thread::sleep(std::time::Duration::from_millis(dice.below(60))),
            }
        }
    }

    pub fn read(&self, side: usize, file: &File) {
        for again in [false, true] {
            let known = file.read().unwrap();
            let Some(name) = known.names[side].clone().filter(|_| !known.gone) else { return };
            let floor = known.floor(side);
            let found = whole(&self.sides.sides[side].mnt(name));
            self.count("read", &found);
            let Ok(found) = found else { return };
            match known.read(side, floor, &found) {
                Ok(()) => return,
                // Several requests of one reader may see several generations, each whole; then once more.
                Err(why) if again => self.complain(format!("{side}: {why}")),
                Err(_) => self.count("read: not of one generation", &Ok(())),
            }
        }
    }

    fn write(&self, side: usize, file: &File, dice: &mut Dice) {
        let Some(name) = file.read().unwrap().names[side].clone() else { return };
        // Both sides may be at it at once.
        let opened = fs::OpenOptions::new().write(true).open(self.sides.sides[side].mnt(&name));
        self.count("open for writing", &opened);
        if opened.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EIO)) {
            let log = self.sides.sides[side].log();
            let last = log.lines().rev().take(30).collect::<Vec<_>>();
            eprintln!("EIO of {name} at {side}:\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        let Ok(opened) = opened else { return };
        let mut known = file.write().unwrap();
        if known.gone {
            return;
        }
        let mut content = known.newest().to_vec();
        let offset = dice.below(content.len() as u64 + 1) as usize;
        let len = 1 + dice.below(30_000) as usize;
        let data = dice.bytes(len);
        if content.len() < offset + data.len() {
            content.resize(offset + data.len(), 0);
        }
        content[offset..offset + data.len()].copy_from_slice(&data);
        known.tried(content);
        let result = opened.write_all_at(&data, offset as u64).and_then(|()| opened.sync_all());
        self.count("write and fsync", &result);
        drop(opened);
        match result {
            Ok(()) => known.done(side),
            Err(error) => self.complain(format!("{:?}: a write to a file that is open here: {error}", known.names)),
        }
    }

    fn cut(&self, side: usize, file: &File, dice: &mut Dice) {
        let mut known = file.write().unwrap();
        let Some(name) = known.names[side].clone().filter(|_| !known.gone) else { return };
        let path = self.sides.sides[side].mnt(name);
        let mut content = known.newest().to_vec();
        let len = match dice.below(3) {
            0 => 0,
            _ => dice.below(LEN_MAX),
        };
        content.resize(len as usize, 0);
        known.tried(content);
        let result = match (len, dice.below(2)) {
            (0, 0) => fs::OpenOptions::new().write(true).truncate(true).open(path).and_then(|file| file.sync_all()),
            _ => truncate(&path, len),
        };
        self.count("truncate", &result);
        // Whoever is told that it failed must not find it cut later.
        match result {
            Ok(()) => known.done(side),
            Err(_) => known.refused(),
        }
    }

    fn count_s3<T>(&self, what: &str, result: &Result<T, Not>) {
        let how = match result {
            Ok(_) => what.to_owned(),
            Err(not) => format!("{what}: {}", not.code()),
        };
        *self.counts.lock().unwrap().entry(how).or_default() += 1;
        if let Err(Not::Unknown(why)) = result {
            self.complain(format!("{what}: the gateway of this side is there, and does not answer: {why}"));
        }
    }

    /// New content for all of a file, in one request or in parts.
    fn put(&self, side: usize, s3: &S3, file: &File, dice: &mut Dice) {
        let mut known = file.write().unwrap();
        // One that the other side does not know yet is replaced as by `mv`: who has it open for writing goes on with the old one, and the oracle does not know.
        let paired = known.names[1].is_some();
        let Some(name) = known.names[side].clone().filter(|_| paired && !known.gone) else { return };
        let len = if dice.below(6) == 0 { 0 } else { 1 + dice.below(LEN_MAX) as usize };
        let content = dice.bytes(len);
        known.tried(content.clone());
        let (what, result) = match dice.below(3) {
            0 => ("put in parts", s3.put_in_parts(&name, &content)),
            _ => ("put", s3.put(&name, &content)),
        };
        self.count_s3(what, &result);
        match result {
            Ok(()) => known.done(side),
            // Whoever is told that it failed must not find it done later.
            Err(Not::Refused(_)) => known.refused(),
            Err(Not::Unknown(_)) => {}
        }
    }

    fn get(&self, side: usize, s3: &S3, file: &File) {
        let known = file.read().unwrap();
        let Some(name) = known.names[side].clone().filter(|_| !known.gone) else { return };
        let floor = known.floor(side);
        let found = s3.get(&name);
        // A body that is cut short is an answer, too: the content cannot be had any more.
        if let Err(Not::Unknown(_)) = found {
            *self.counts.lock().unwrap().entry("get: cut short".into()).or_default() += 1;
            return;
        }
        self.count_s3("get", &found);
        if let Ok(found) = found
            && let Err(why) = known.read(side, floor, &found)
        {
            self.complain(format!("{side}, by S3: {why}"));
        }
    }

    /// At the master it is a removal as any; the slave's gateway refuses it.
    fn delete(&self, side: usize, s3: &S3, file: &File) {
        if side == 0 {
            return self.removed(file, "delete", |name| s3.delete(name).map_err(|not| format!("{not:?}")));
        }
        let known = file.read().unwrap();
        let Some(name) = known.names[1].clone().filter(|_| !known.gone) else { return };
        let result = s3.delete(&name);
        self.count_s3("delete at the slave", &result);
        if !matches!(&result, Err(Not::Refused(code)) if code == "KeyInTheWay") {
            self.complain(format!("{name}: a name of the master's was deleted at the slave: {result:?}"));
        }
    }

    fn rename_by_s3(&self, s3: &S3, file: &File) {
        self.renamed(file, "rename by S3", |from, to| s3.rename(from, to).map_err(|not| format!("{not:?}")));
    }

    fn create_by_s3(&self, s3: &S3, dice: &mut Dice) {
        let name = self.new_name();
        let len = 1 + dice.below(LEN_MAX) as usize;
        let content = dice.bytes(len);
        let made = s3.put(&name, &content);
        self.count_s3("create by S3", &made);
        match made {
            Ok(()) => self.files.write().unwrap().push(Arc::new(RwLock::new(Known::new(name, content)))),
            Err(not) => self.complain(format!("{name}: {not:?}: nothing is in the way of the master's new file")),
        }
    }

    fn new_name(&self) -> String {
        format!("round{}/f{}", self.number, self.names.fetch_add(1, Ordering::SeqCst))
    }

    fn command(&self, side: usize, verb: &str, file: &File) {
        let Some(name) = file.read().unwrap().names[side].clone() else { return };
        let side = &self.sides.sides[side];
        let output = side.tierfs(&[verb.as_ref(), side.mnt(name).as_os_str()]);
        let what = if output.status.success() { "" } else { ": not now" };
        self.count(&format!("{verb}{what}"), &Ok(()));
    }

    fn rename(&self, file: &File) {
        let master = &self.sides.sides[0];
        self.renamed(file, "rename", |from, to| {
            fs::rename(master.mnt(from), master.mnt(to)).map_err(|error| error.to_string())
        });
    }

    /// At the master; the slave's users have the file again when it has its new name there.
    fn renamed(&self, file: &File, what: &str, rename: impl FnOnce(&str, &str) -> Result<(), String>) {
        let mut known = file.write().unwrap();
        let Some(name) = known.names[0].clone().filter(|_| !known.gone) else { return };
        let new = self.new_name();
        match rename(&name, &new) {
            Ok(()) => {
                self.count(what, &Ok(()));
                known.names = [Some(new), None];
            }
            Err(error) => self.complain(format!("{new}: {what}: {error}")),
        }
    }

    fn remove(&self, file: &File) {
        let master = &self.sides.sides[0];
        self.removed(file, "remove", |name| fs::remove_file(master.mnt(name)).map_err(|error| error.to_string()));
    }

    fn removed(&self, file: &File, what: &str, remove: impl FnOnce(&str) -> Result<(), String>) {
        let mut files = self.files.write().unwrap();
        let mut known = file.write().unwrap();
        let Some(name) = known.names[0].clone().filter(|_| !known.gone && files.len() > 2) else { return };
        let result = remove(&name);
        known.gone = true;
        files.retain(|other| !std::ptr::eq(&**other, file));
        match result {
            Ok(()) => self.count(what, &Ok(())),
            Err(error) => self.complain(format!("{name}: {what}: {error}")),
        }
    }

    /// Notes which files the slave has under their present names.
    pub fn meet(&self) {
        for file in self.files.read().unwrap().clone() {
            let name = match file.try_read() {
                Ok(known) if known.names[1].is_none() && !known.gone => known.names[0].clone(),
                _ => continue,
            };
            let Some(name) = name else { continue };
            let [east, west] = [0, 1].map(|side| self.sides.sides[side].peer(&name));
            if east.zip(west).is_some_and(|(east, west)| east.id == west.id)
                && let Ok(mut known) = file.try_write()
                && known.names[0].as_ref() == Some(&name)
            {
                known.names[1] = Some(name);
            }
        }
    }
}

/// All of a file, in as few requests as the kernel makes of one read.
pub fn whole(path: &std::path::Path) -> io::Result<Vec<u8>> {
    let mut file = fs::File::open(path)?;
    let mut content = vec![0; 1 << 20];
    let mut len = 0;
    loop {
        match file.read(&mut content[len..])? {
            0 => break,
            got => len += got,
        }
    }
    content.truncate(len);
    Ok(content)
}
