//! What users and administrators of a side do, at random, as long as a round lasts.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use crate::dice::Dice;
use crate::oracle::{File, Known};
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
        let name = format!("round{}/f{}", self.number, self.names.fetch_add(1, Ordering::SeqCst));
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

    /// A user of a side, until the round is over.
    pub fn user(&self, side: usize, dice: &mut Dice) {
        while !self.is_over() {
            let file = self.any(dice);
            match dice.below(20) {
                0..6 => self.read(side, &file),
                6..11 => self.write(side, &file, dice),
                11..14 => self.cut(side, &file, dice),
                14 | 15 => self.command(side, "migrate", &file),
                16 => self.command(side, "recall", &file),
                17 if side == 0 => self.rename(&file),
                18 if side == 0 => self.remove(&file),
                19 if side == 0 => self.create(dice),
                _ => std::thread::sleep(std::time::Duration::from_millis(dice.below(60))),
            }
        }
    }

    pub fn read(&self, side: usize, file: &File) {
        for again in [false, true] {
            let known = file.read().unwrap();
            let Some(name) = known.names[side].clone().filter(|_| !known.gone) else { return };
            let found = whole(&self.sides.sides[side].mnt(name));
            self.count("read", &found);
            let Ok(found) = found else { return };
            match known.read(side, &found) {
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

    fn command(&self, side: usize, verb: &str, file: &File) {
        let Some(name) = file.read().unwrap().names[side].clone() else { return };
        let side = &self.sides.sides[side];
        let output = side.tierfs(&[verb.as_ref(), side.mnt(name).as_os_str()]);
        let what = if output.status.success() { "" } else { ": not now" };
        self.count(&format!("{verb}{what}"), &Ok(()));
    }

    /// At the master; the slave's users have the file again when it has its new name there.
    fn rename(&self, file: &File) {
        let mut known = file.write().unwrap();
        let Some(name) = known.names[0].clone().filter(|_| !known.gone) else { return };
        let new = format!("round{}/f{}", self.number, self.names.fetch_add(1, Ordering::SeqCst));
        let master = &self.sides.sides[0];
        let result = fs::rename(master.mnt(name), master.mnt(&new));
        self.count("rename", &result);
        match result {
            Ok(()) => known.names = [Some(new), None],
            Err(error) => self.complain(format!("{new}: rename: {error}")),
        }
    }

    fn remove(&self, file: &File) {
        let mut files = self.files.write().unwrap();
        let mut known = file.write().unwrap();
        let Some(name) = known.names[0].clone().filter(|_| !known.gone && files.len() > 2) else { return };
        let result = fs::remove_file(self.sides.sides[0].mnt(&name));
        self.count("remove", &result);
        known.gone = true;
        files.retain(|other| !std::ptr::eq(&**other, file));
        if let Err(error) = result {
            self.complain(format!("{name}: remove: {error}"));
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
