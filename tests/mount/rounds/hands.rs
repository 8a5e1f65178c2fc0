//! Who acts on the file: this process, or another one that does as it is told.

use std::collections::{BTreeSet, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::rig::*;

pub const BLOCK: usize = 4096;

/// How something failed, in words for the report.
pub type Outcome<T> = Result<T, String>;
/// The distinct words of a block.
pub type Words = BTreeSet<u64>;

/// How to map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    Shared,
    Writable,
    Private,
}

/// Opens, maps, reads and writes one file. Handles and mappings go by numbers of the caller's choice.
pub trait Hands: Send {
    fn open(&mut self, handle: u32, flags: i32) -> Outcome<()>;
    fn close(&mut self, handle: u32) -> Outcome<()>;
    fn read(&mut self, handle: u32, block: usize) -> Outcome<Words>;
    fn write(&mut self, handle: u32, block: usize, word: u64) -> Outcome<()>;
    fn append(&mut self, handle: u32, word: u64) -> Outcome<()>;
    fn map(&mut self, map: u32, handle: u32, blocks: usize, kind: MapKind) -> Outcome<()>;
    fn peek(&mut self, map: u32, block: usize) -> Outcome<Words>;
    fn poke(&mut self, map: u32, block: usize, word: u64) -> Outcome<()>;
    fn unmap(&mut self, map: u32) -> Outcome<()>;
}

fn words(data: &[u8]) -> Words {
    data.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
}

/// This process.
pub struct Here {
    path: PathBuf,
    files: HashMap<u32, File>,
    maps: HashMap<u32, Mapping>,
    memory: Vec<u8>,
}

impl Here {
    pub fn new(path: &Path) -> Self {
        Self { path: path.into(), files: HashMap::new(), maps: HashMap::new(), memory: vec![0; 2 * BLOCK] }
    }

    /// A block of memory aligned for direct I/O.
    fn buffer(memory: &mut [u8]) -> &mut [u8] {
        let skip = memory.as_ptr().align_offset(BLOCK);
        &mut memory[skip..skip + BLOCK]
    }

    fn fill(memory: &mut [u8], word: u64) -> &[u8] {
        let buffer = Self::buffer(memory);
        buffer.chunks_exact_mut(8).for_each(|at| at.copy_from_slice(&word.to_le_bytes()));
        buffer
    }
}

fn text(error: std::io::Error) -> String {
    error.to_string()
}

impl Hands for Here {
    fn open(&mut self, handle: u32, flags: i32) -> Outcome<()> {
        let access = flags & libc::O_ACCMODE;
        let file = OpenOptions::new()
            .read(access != libc::O_WRONLY)
            .write(access != libc::O_RDONLY)
            .custom_flags(flags & !libc::O_ACCMODE)
            .open(&self.path);
        self.files.insert(handle, file.map_err(text)?);
        Ok(())
    }

    fn close(&mut self, handle: u32) -> Outcome<()> {
        self.files.remove(&handle).map(drop).ok_or("no such handle".into())
    }

    fn read(&mut self, handle: u32, block: usize) -> Outcome<Words> {
        let buffer = Self::buffer(&mut self.memory);
        match self.files[&handle].read_at(buffer, (block * BLOCK) as u64).map_err(text)? {
            BLOCK => Ok(words(buffer)),
            short => Err(format!("{short} bytes")),
        }
    }

    fn write(&mut self, handle: u32, block: usize, word: u64) -> Outcome<()> {
        let data = Self::fill(&mut self.memory, word);
        self.files[&handle].write_all_at(data, (block * BLOCK) as u64).map_err(text)
    }

    fn append(&mut self, handle: u32, word: u64) -> Outcome<()> {
        let data = Self::fill(&mut self.memory, word);
        self.files.get_mut(&handle).ok_or("no such handle")?.write_all(data).map_err(text)
    }

    fn map(&mut self, map: u32, handle: u32, blocks: usize, kind: MapKind) -> Outcome<()> {
        let file = &self.files[&handle];
        self.maps.insert(map, Mapping::of(file, blocks * BLOCK, kind == MapKind::Writable));
        Ok(())
    }

    fn peek(&mut self, map: u32, block: usize) -> Outcome<Words> {
        let mut copy = vec![0; BLOCK];
        self.maps[&map].copy_out(block * BLOCK, &mut copy);
        Ok(words(&copy))
    }

    fn poke(&mut self, map: u32, block: usize, word: u64) -> Outcome<()> {
        let data = Self::fill(&mut self.memory, word);
        self.maps.get_mut(&map).ok_or("no such mapping")?.set(block * BLOCK, data);
        Ok(())
    }

    fn unmap(&mut self, map: u32) -> Outcome<()> {
        self.maps.remove(&map).map(drop).ok_or("no such mapping".into())
    }
}

/// Another process: `hands.py`.
pub struct Elsewhere {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Elsewhere {
    pub fn new(path: &Path) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", include_str!("hands.py")]).arg(path).arg(BLOCK.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, to, from }
    }

    fn tell(&mut self, command: std::fmt::Arguments) -> Outcome<String> {
        let mut answer = String::new();
        let told = writeln!(self.to, "{command}").and_then(|()| self.from.read_line(&mut answer));
        match told {
            // A read of a mapping that fails is a SIGBUS.
            Err(_) | Ok(0) => Err(format!("the process died: {:?}", self.child.wait())),
            Ok(_) if answer.starts_with("ok") => Ok(answer[2..].trim().to_owned()),
            Ok(_) => Err(match answer.trim().strip_prefix("error ").and_then(|number| number.parse().ok()) {
                Some(errno) => text(std::io::Error::from_raw_os_error(errno)),
                None => answer.trim().to_owned(),
            }),
        }
    }

    fn words(&mut self, command: std::fmt::Arguments) -> Outcome<Words> {
        Ok(self.tell(command)?.split(' ').map(|word| word.parse().unwrap()).collect())
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Hands for Elsewhere {
    fn open(&mut self, handle: u32, flags: i32) -> Outcome<()> {
        self.tell(format_args!("open {handle} {flags}")).map(drop)
    }

    fn close(&mut self, handle: u32) -> Outcome<()> {
        self.tell(format_args!("close {handle}")).map(drop)
    }

    fn read(&mut self, handle: u32, block: usize) -> Outcome<Words> {
        self.words(format_args!("read {handle} {block}"))
    }

    fn write(&mut self, handle: u32, block: usize, word: u64) -> Outcome<()> {
        self.tell(format_args!("write {handle} {block} {word}")).map(drop)
    }

    fn append(&mut self, handle: u32, word: u64) -> Outcome<()> {
        self.tell(format_args!("append {handle} {word}")).map(drop)
    }

    fn map(&mut self, map: u32, handle: u32, blocks: usize, kind: MapKind) -> Outcome<()> {
        let kind = match kind {
            MapKind::Shared => "r",
            MapKind::Writable => "w",
            MapKind::Private => "p",
        };
        self.tell(format_args!("map {map} {handle} {blocks} {kind}")).map(drop)
    }

    fn peek(&mut self, map: u32, block: usize) -> Outcome<Words> {
        self.words(format_args!("peek {map} {block}"))
    }

    fn poke(&mut self, map: u32, block: usize, word: u64) -> Outcome<()> {
        self.tell(format_args!("poke {map} {block} {word}")).map(drop)
    }

    fn unmap(&mut self, map: u32) -> Outcome<()> {
        self.tell(format_args!("unmap {map}")).map(drop)
    }
}
