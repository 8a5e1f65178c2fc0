//! NFS-Ganesha on a rig's mount, and clients of it.
//!
//! It is installed and started by the commands of `docs/nfs-ganesha.md` with the files of `mount-helpers/`; only paths and ports are
//! others, so what administrators get is what is tested. [`Drop`] ends it by its process id.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::rig::*;

/// The user that clients act as: root would be squashed.
pub const USER: u32 = 1000;

/// The file `name` of `mount-helpers/`.
pub fn helper(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-helpers").join(name)
}

/// A rig, and the Ganesha that exports its mount.
pub struct Export {
    pub rig: Rig,
    nfs_port: u16,
    mount_port: u16,
    /// Ends Ganesha when its input ends: with this value, or with the test's process, however that ends.
    leash: Child,
}

impl Export {
    /// `None` where mounting is not possible (which is said).
    pub fn of(rig: Option<Rig>) -> Option<Self> {
        Self::with(rig, &[])
    }

    /// As [`Export::of`], with more changes of the template: what stands there, and what instead.
    pub fn with(rig: Option<Rig>, changes: &[(&str, String)]) -> Option<Self> {
        let rig = rig?;
        let leash = Command::new("sh")
            .args(["-c", LEASH])
            .args([rig.scratch("ganesha.pid"), rig.scratch("root/etc/ganesha/ganesha.conf")])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let export = Self { nfs_port: free_port(), mount_port: free_port(), leash, rig };
        fs::create_dir(export.place("recovery")).unwrap();
        export.compile(&["-shared", "-fPIC"], &source("rpcbind.c"), "rpcbind.so", &[]);
        export.compile(&[], &source("client.c"), "client", &["-lnfs"]);
        export.does("install");
        fs::create_dir(export.place("root/etc/tierfs")).unwrap();
        fs::write(export.place("root/etc/tierfs/ganesha.env"), export.block("settings")).unwrap();
        export.configure(changes);
        std::os::unix::fs::chown(export.rig.mountpoint(), Some(USER), Some(USER)).unwrap();
        export.does("start");
        export.answers();
        Some(export)
    }

    fn place(&self, name: &str) -> PathBuf {
        self.rig.scratch(name)
    }

    fn compile(&self, flags: &[&str], source: &Path, to: &str, libraries: &[&str]) {
        let mut gcc = Command::new("gcc");
        gcc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-o"])
            .arg(self.place(to))
            .args(flags)
            .arg(source)
            .args(libraries);
        let output = gcc.output().expect("gcc");
        assert!(output.status.success(), "{}", said(&output));
    }

    /// The commands or lines that the document shows in its block `name`, on the test's own paths.
    fn block(&self, name: &str) -> String {
        let text = include_str!("../../docs/nfs-ganesha.md");
        let begin = format!("```sh {name}\n");
        let block = text.split_once(&begin).unwrap_or_else(|| panic!("no block {name}")).1.split_once("```").unwrap().0;
        let root = self.place("root");
        let mut block = block.to_owned();
        for place in ["/usr/local/", "/etc/"] {
            block = block.replace(place, &format!("{}{place}", root.display()));
        }
        block = block.replace("/srv/share", self.rig.share().to_str().unwrap());
        block = block.replace("/mnt/tiered", self.rig.mountpoint().to_str().unwrap());
        block.replace("delay_after=2s", "delay_after=1s")
    }

    /// Changes the template as an administrator would, and to what a machine with several tests needs.
    fn configure(&self, changes: &[(&str, String)]) {
        let file = self.place("root/etc/ganesha/ganesha.conf");
        let mut text = fs::read_to_string(&file).unwrap();
        let mut fill = |what: &str, with: String| {
            assert_eq!(text.matches(what).count(), 1, "the template has {what:?} once");
            text = text.replace(what, &with);
        };
        fill("NFS_Port = 2049;", format!("NFS_Port = {}; Bind_addr = 127.0.0.1;", self.nfs_port));
        fill("MNT_Port = 20048;", format!("MNT_Port = {};", self.mount_port));
        fill("\"/mnt/tiered\"", format!("\"{}\"", self.rig.mountpoint().display()));
        fill("\"/var/lib/nfs/ganesha\"", format!("\"{}\"", self.place("recovery").display()));
        // No test waits out a grace period, nor ten seconds for a file to be closed.
        fill("Graceless = false;", "Graceless = true;".into());
        fill("LRU_Run_Interval = 10;", "LRU_Run_Interval = 1;".into());
        for (what, with) in changes {
            fill(what, with.clone());
        }
        fs::write(file, text).unwrap();
    }

    /// Runs the document's block `name`, which must succeed; what it said.
    #[track_caller]
    pub fn does(&self, name: &str) -> String {
        let output = self.sh(&self.block(name));
        assert!(output.status.success(), "{name}: {}\n{}", said(&output), self.log());
        said(&output)
    }

    /// `sh -e -c commands` as on the administrator's machine.
    pub fn sh(&self, commands: &str) -> Output {
        let tierfs = Path::new(env!("CARGO_BIN_EXE_tierfs")).parent().unwrap();
        let installed = self.place("root/usr/local/sbin");
        let mut sh = Command::new("sh");
        self.rig.dress(&mut sh);
        let path = std::env::var("PATH").unwrap_or_default();
        sh.args(["-e", "-c", commands])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("PATH", format!("{}:{}:{path}:/usr/sbin:/sbin", installed.display(), tierfs.display()))
            .env("TIERFS_GANESHA_ENV", self.place("root/etc/tierfs/ganesha.env"))
            .env("GANESHA_CONF", self.place("root/etc/ganesha/ganesha.conf"))
            .env("GANESHA_LOG", self.place("ganesha.log"))
            .env("GANESHA_PID", self.place("ganesha.pid"))
            .env("FSID_LIB", self.place("root/usr/local/lib/tierfs-fsid.so"))
            .env("LD_PRELOAD", self.place("rpcbind.so"))
            .stdin(Stdio::null());
        sh.output().unwrap()
    }

    /// Waits until both ports answer.
    pub fn answers(&self) {
        for port in [self.nfs_port, self.mount_port] {
            wait_for("Ganesha's port", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        }
    }

    /// Stops Ganesha and unmounts.
    pub fn down(&mut self) {
        let output = self.sh("tierfs-ganesha stop");
        assert!(output.status.success(), "{}", said(&output));
        assert!(self.process().is_none(), "Ganesha's end");
        self.rig.daemon = None;
    }

    /// Mounts and starts Ganesha.
    pub fn up(&mut self) {
        let said = self.does("start");
        self.mounted_anew(&said);
    }

    /// All of it as the document says.
    pub fn remount(&mut self) {
        let said = self.does("remount");
        self.mounted_anew(&said);
    }

    fn mounted_anew(&mut self, said: &str) {
        let daemon = said.split("process ").nth(1).and_then(|rest| rest.split(')').next()).unwrap_or_default();
        self.rig.daemon = Some(daemon.parse().unwrap_or_else(|_| panic!("no process id in {said:?}")));
        self.answers();
    }

    pub fn process(&self) -> Option<i32> {
        let pid = fs::read_to_string(self.place("ganesha.pid")).ok()?.trim().parse().ok()?;
        alive(pid).then_some(pid)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.place("ganesha.log")).unwrap_or_default()
    }

    /// A client of its own connection, as [`USER`].
    pub fn client(&self, version: u32) -> Client {
        self.client_as(version, USER)
    }

    pub fn client_as(&self, version: u32, user: u32) -> Client {
        let ports = format!("version={version}&nfsport={}&mountport={}", self.nfs_port, self.mount_port);
        let mut process = Command::new(self.place("client"))
            .arg(format!("nfs://127.0.0.1/tiered?{ports}"))
            .arg(user.to_string())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let ask = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().unwrap());
        let scratch = self.place(&format!("read-{}", process.id()));
        let mut client = Client { process, ask, answers, scratch, version };
        client.answer().unwrap_or_else(|(_, why)| panic!("NFSv{version} mount: {why}\n{}", self.log()));
        client
    }

    /// Releases a file once Ganesha has closed it.
    #[track_caller]
    pub fn migrate(&self, name: &str) {
        wait_for("the release", || {
            let _ = self.rig.try_on(&["migrate"], &[name]);
            self.rig.state(name) == "stub"
        });
    }
}

impl Export {
    /// Ends Ganesha alone, as a crash would.
    pub fn end_ganesha(&self) {
        let Some(pid) = self.process() else { return };
        let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        while alive(pid) {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- Ganesha's log ---\n{}", self.log());
        }
        self.end_ganesha();
        drop(self.leash.stdin.take());
        let _ = self.leash.wait();
    }
}

/// Only what runs by this test's configuration: the process id may be another's by then.
const LEASH: &str = r#"trap '' TERM INT; read -r line; pid=$(cat "$0" 2>/dev/null) && grep -qF "$1" "/proc/$pid/cmdline" && kill -9 "$pid""#;

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nfs").join(name)
}

/// A port that is free now, and that the kernel gives to nobody by itself (ip_local_port_range begins at 32768).
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let seed = std::process::id().wrapping_mul(7919);
    (0..1000)
        .map(|_| 10_000 + (seed.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000) as u16)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}

/// `client.c` at work: what it was told in case of success, errno and text otherwise.
pub struct Client {
    process: Child,
    /// Until the end of input, at which the client closes its files.
    ask: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    scratch: PathBuf,
    pub version: u32,
}

pub type Answer = Result<String, (i32, String)>;

impl Client {
    pub fn send(&mut self, command: &str) {
        writeln!(self.ask.as_ref().unwrap(), "{command}").unwrap();
    }

    pub fn answer(&mut self) -> Answer {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let line = line.trim_end();
        if let Some(rest) = line.strip_prefix("ok") {
            return Ok(rest.trim_start().to_owned());
        }
        let (errno, text) = line.strip_prefix("err ").and_then(|rest| rest.split_once(' ')).unwrap_or(("0", line));
        Err((errno.parse().unwrap_or(0), text.to_owned()))
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub fn tries(&mut self, command: &str) -> Answer {
        self.send(command);
        self.answer()
    }

    /// A command that must succeed.
    #[track_caller]
    pub fn does(&mut self, command: &str) -> String {
        self.tries(command).unwrap_or_else(|why| panic!("NFSv{}: {command}: {why:?}", self.version))
    }

    /// A command that must fail with this error.
    #[track_caller]
    pub fn refuses(&mut self, command: &str, errno: i32) {
        match self.tries(command) {
            Err((found, _)) if found == errno => {}
            other => panic!("NFSv{}: {command}: {other:?}, not errno {errno}", self.version),
        }
    }

    /// What `stat` or `fstat` says of `field`.
    #[track_caller]
    pub fn field(&mut self, command: &str, field: &str) -> String {
        let told = self.does(command);
        let value = told.split(' ').find_map(|pair| pair.strip_prefix(field)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("{field} in {told}")).to_owned()
    }

    /// Up to `len` bytes through the handle in `slot`.
    pub fn reads(&mut self, slot: u32, offset: u64, len: usize) -> Result<Vec<u8>, (i32, String)> {
        self.saves(&format!("pread {slot}"), offset, len)
    }

    /// NFSv4: up to `len` bytes by the handle that `handle` took, with nothing open.
    pub fn reads_by_handle(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, (i32, String)> {
        self.saves("hread", offset, len)
    }

    fn saves(&mut self, command: &str, offset: u64, len: usize) -> Result<Vec<u8>, (i32, String)> {
        let file = self.scratch.clone();
        self.tries(&format!("{command} {offset} {len} {}", file.display()))?;
        let data = fs::read(&file).unwrap();
        let _ = fs::remove_file(&file);
        Ok(data)
    }

    /// As [`Client::reads`], again for as long as the server says "later".
    #[track_caller]
    pub fn reads_patiently(&mut self, slot: u32, offset: u64, len: usize) -> Vec<u8> {
        self.patiently(|client| client.reads(slot, offset, len))
    }

    /// Asks again for as long as the server says "later".
    #[track_caller]
    pub fn patiently(&mut self, ask: impl Fn(&mut Self) -> Result<Vec<u8>, (i32, String)>) -> Vec<u8> {
        let mut data = None;
        wait_for("a read", || match ask(self) {
            Ok(found) => {
                data = Some(found);
                true
            }
            Err((libc::EAGAIN, _)) => false,
            Err(why) => panic!("NFSv{}: {why:?}", self.version),
        });
        data.unwrap()
    }

    /// A new file with this content.
    #[track_caller]
    pub fn puts(&mut self, name: &str, content: &[u8]) {
        fs::write(&self.scratch, content).unwrap();
        let put = format!("put {} /{name}", self.scratch.display());
        assert_eq!(self.does(&put), content.len().to_string());
    }

    #[track_caller]
    pub fn lists(&mut self, name: &str) -> Vec<String> {
        let mut names: Vec<String> =
            self.does(&format!("list /{name}")).split_whitespace().map(str::to_owned).collect();
        names.sort();
        names
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        drop(self.ask.take());
        let patience = Instant::now() + Duration::from_secs(5);
        while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_file(&self.scratch);
    }
}
