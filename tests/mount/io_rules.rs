//! The kernel's rules for who serves a file (passthrough or the daemon), as programs meet them: no combination of opens and mappings
//! gives an error, zeros or stale bytes, and each file is served the way it should be.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use tierfs::record::Claim;

use crate::common::run;
use crate::rig::*;

/// Large enough to be served by the daemon while it comes back.
const LARGE: usize = 24 * CHUNK;
const SMALL: usize = 4 * CHUNK;

/// What a handle is open for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Read,
    Both,
    WriteOnly,
    /// For reading, too.
    Append,
}

/// How a file is held.
#[derive(Clone, Copy, Debug)]
struct Held {
    access: Access,
    direct: bool,
    mapped: bool,
}

impl Held {
    fn all() -> impl Iterator<Item = Self> {
        use Access::*;
        let each = [Read, Both, WriteOnly, Append]
            .into_iter()
            .flat_map(|access| (0..4).map(move |bits| Self { access, direct: bits & 1 != 0, mapped: bits & 2 != 0 }));
        // Who cannot read cannot map, and by a mapping nobody appends.
        each.filter(|held| !held.mapped || matches!(held.access, Read | Both))
    }

    fn unmapped() -> impl Iterator<Item = Self> {
        Self::all().filter(|held| !held.mapped)
    }

    fn reads(self) -> bool {
        self.access != Access::WriteOnly
    }

    #[track_caller]
    fn open(self, rig: &Rig, name: &str, len: usize) -> (File, Option<Mapping>) {
        let flags = if self.direct { libc::O_DIRECT } else { 0 };
        let mut options = OpenOptions::new();
        options.read(self.reads()).write(self.access != Access::Read).append(self.access == Access::Append);
        let file = options.custom_flags(flags).open(rig.mnt(name));
        let file = file.unwrap_or_else(|error| panic!("{name}, {self:?}: {error}"));
        let map = self.mapped.then(|| self.map(&file, len));
        (file, map)
    }

    fn map(self, file: &File, len: usize) -> Mapping {
        Mapping::of(file, len, self.access == Access::Both)
    }

    /// Writes a page of `with` by such a handle, at `at` or at the end, and into `content`.
    fn put(self, file: &File, content: &mut Vec<u8>, at: usize, with: u8) {
        let data = vec![with; 8192];
        let skip = data.as_ptr().align_offset(4096);
        let page = &data[skip..skip + 4096];
        match self.access {
            Access::Read => {}
            Access::Append => {
                let mut file = file;
                std::io::Write::write_all(&mut file, page).unwrap();
                content.extend_from_slice(page);
            }
            Access::Both | Access::WriteOnly => {
                file.write_all_at(page, at as u64).unwrap();
                content[at..at + 4096].copy_from_slice(page);
            }
        }
    }
}

/// Reads a page by a handle of any kind.
fn page(file: &File, at: usize) -> Vec<u8> {
    let mut memory = vec![0u8; 3 * 4096];
    let skip = memory.as_ptr().align_offset(4096);
    file.read_exact_at(&mut memory[skip..skip + 4096], at as u64).unwrap();
    memory[skip..skip + 4096].to_vec()
}

fn check(file: &File, map: Option<&Mapping>, wanted: &[u8], what: &str) {
    for at in [0, 4096, wanted.len() - 4096] {
        assert_same(&page(file, at), &wanted[at..at + 4096], what);
    }
    if let Some(map) = map {
        assert_same(map.bytes(), wanted, &format!("{what}, mapped"));
    }
}

/// A file that only the daemon can serve: some of it is away (`partial`), and some of the rest newer than its object (`patched`).
fn in_parts(rig: &Rig, name: &str, state: &str, content: &mut [u8]) {
    rig.migrate(name);
    let at = LARGE - 2 * CHUNK;
    let file = OpenOptions::new().read(true).write(state == "patched").open(rig.mnt(name)).unwrap();
    assert_same(&page(&file, at), &content[at..at + 4096], name);
    if state == "patched" {
        file.write_all_at(&[b'p'; 5000], 12_000).unwrap();
        content[12_000..17_000].fill(b'p');
    }
    drop(file);
    let until = std::time::Instant::now() + SOON;
    while rig.state(name) != state {
        assert!(std::time::Instant::now() < until, "{name} is {}, not {state}", rig.state(name));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Rule 3's table, as this filesystem answers it: whatever holds the file and whatever comes, both see the content.
fn every_pair_of_opens(rig: &Rig, states: &[&str]) {
    let cases: Vec<_> = Held::all().flat_map(|held| Held::unmapped().map(move |comes| (held, comes))).collect();
    for state in states {
        let len = if ["large", "partial", "patched"].contains(state) { LARGE } else { SMALL };
        let names: Vec<_> = (0..cases.len()).map(|n| format!("{state}-{n}")).collect();
        let mut contents: Vec<_> = names.iter().map(|name| rig.write(name, len)).collect();
        let all: Vec<_> = names.iter().map(String::as_str).collect();
        match *state {
            "resident" => {}
            "dual" => drop(rig.on(&["migrate", "--archive-only"], &all)),
            "partial" | "patched" => {
                names.iter().zip(&mut contents).for_each(|(name, content)| in_parts(rig, name, state, content));
            }
            _ => drop(rig.on(&["migrate"], &all)),
        }
        for ((name, (held, comes)), mut wanted) in names.iter().zip(&cases).zip(contents) {
            let what = format!("{} {state}, held {held:?}, comes {comes:?}", rig.kind);
            let (first, first_map) = held.open(rig, name, len);
            if held.mapped || (held.direct && held.reads()) {
                check(&first, first_map.as_ref(), &wanted, &what);
            }
            let (second, _) = comes.open(rig, name, len);
            let readers: Vec<_> =
                [(held, &first), (comes, &second)].into_iter().filter(|(how, _)| how.reads()).collect();
            for (_, file) in readers.iter().rev() {
                check(file, None, &wanted, &what);
            }
            if let Some(map) = &first_map {
                assert_same(map.bytes(), &wanted, &format!("{what}, mapped"));
            }
            // Both may map only now, after the other came.
            let mut maps: Vec<_> = readers.iter().map(|(how, file)| how.map(file, len)).collect();
            maps.extend(first_map);
            for map in &maps {
                assert_same(map.bytes(), &wanted, &what);
            }
            // What one writes the others see.
            for (how, file, at) in [(comes, &second, 4096), (held, &first, 8192)] {
                how.put(file, &mut wanted, at, b'w' + (at / 8192) as u8);
                for (_, file) in &readers {
                    check(file, None, &wanted, &what);
                    assert_same(&page(file, at), &wanted[at..at + 4096], &what);
                }
                for map in &maps {
                    assert_same(&map.bytes()[at..at + 4096], &wanted[at..at + 4096], &what);
                }
            }
            // Mappings outlive their handles.
            drop((first, second));
            for map in &maps {
                assert_same(map.bytes(), &wanted[..len], &what);
            }
            drop(maps);
            assert_eq!(fs::metadata(rig.mnt(name)).unwrap().len(), wanted.len() as u64, "{what}");
            rig.same(name, &wanted);
        }
    }
}

const WHOLE: [&str; 4] = ["resident", "dual", "small", "large"];
const IN_PARTS: [&str; 2] = ["partial", "patched"];

#[test]
fn every_pair_of_opens_is_served_on_ext4() {
    let Some(rig) = (Setup { size: 1 << 30, ..Setup::default() }).build() else { return };
    every_pair_of_opens(&rig, &WHOLE);
}

#[test]
fn every_pair_of_opens_is_served_on_xfs() {
    let Some(rig) = (Setup { size: 1 << 30, ..Setup::xfs() }).build() else { return };
    every_pair_of_opens(&rig, &WHOLE);
}

fn every_pair_of_opens_of_files_in_parts(setup: Setup) {
    // Who reads that many files is taken for one who reads everything, and of such reads nothing stays.
    let setup = Setup { size: 1 << 30, mount: vec!["-o", "recall_scan=off"], ..setup };
    let Some(rig) = setup.build() else { return };
    every_pair_of_opens(&rig, &IN_PARTS);
}

#[test]
fn every_pair_of_opens_of_files_in_parts_is_served_on_ext4() {
    every_pair_of_opens_of_files_in_parts(Setup::default());
}

#[test]
fn every_pair_of_opens_of_files_in_parts_is_served_on_xfs() {
    every_pair_of_opens_of_files_in_parts(Setup::xfs());
}

/// Loaded into the daemon: a filesystem below that knows no leases.
const NO_LEASES: &str = r#"
    #define _GNU_SOURCE
    #include <dlfcn.h>
    #include <errno.h>
    #include <fcntl.h>
    #include <stdarg.h>
    int fcntl(int fd, int command, ...) {
        va_list list;
        va_start(list, command);
        void *argument = va_arg(list, void *);
        va_end(list);
        if (command == F_SETLEASE) {
            errno = EINVAL;
            return -1;
        }
        return ((int (*)(int, int, ...))dlsym(RTLD_NEXT, "fcntl"))(fd, command, argument);
    }
"#;

/// Without leases nobody could tell a file that is mapped by the kernel's passthrough from a free one: the daemon serves all, and knows who has what.
#[test]
fn without_leases_nothing_passes_through_and_every_pair_is_served() {
    let setup = Setup { mounted: false, size: 1 << 30, ..Setup::default() };
    let Some(mut rig) = setup.build() else { return };
    let (source, library) = (rig.scratch("leases.c"), rig.scratch("leases.so"));
    fs::write(&source, NO_LEASES).unwrap();
    run("cc", &["-O1", "-shared", "-fPIC", "-o", library.to_str().unwrap(), source.to_str().unwrap(), "-ldl"]);
    let (share, mountpoint) = (rig.share(), rig.mountpoint());
    let mut mount = rig.command(&["--json", "mount", "-o", "save_names=off"]);
    let output = mount.args([&share, &mountpoint]).env("LD_PRELOAD", &library).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    rig.daemon = Some(told["pid"].as_i64().unwrap() as i32);
    assert!(rig.log().contains("no leases on this filesystem"), "{}", rig.log());
    rig.write("served", LARGE);
    assert!(daemon_serves(&rig, &direct(&rig, "served"), LARGE), "resident, and passed through");
    every_pair_of_opens(&rig, &WHOLE);
    // A mapping pins its file all the same, for the kernel tells of a close only when the last mapping is gone.
    for held in Held::all().filter(|held| held.mapped) {
        pinned_by_a_mapping(&rig, held);
    }
}

/// Reads that the daemon was asked for so far: what passes through is not among them.
fn reads(rig: &Rig) -> u64 {
    rig.info()["requests"]["read"].as_u64().unwrap_or(0)
}

/// Whether the daemon reads what is read here.
fn daemon_serves(rig: &Rig, file: &File, len: usize) -> bool {
    let before = reads(rig);
    let mut found = vec![0u8; len + 4096];
    let skip = found.as_ptr().align_offset(4096);
    file.read_exact_at(&mut found[skip..skip + len], 0).unwrap();
    reads(rig) > before
}

fn direct(rig: &Rig, name: &str) -> File {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(rig.mnt(name)).unwrap()
}

/// One mode an inode at a time: changed only when nobody has it open.
#[test]
fn a_stub_stays_with_the_daemon_until_its_last_close_and_then_passes_through() {
    for setup in [Setup::default(), Setup::xfs()] {
        let Some(rig) = setup.build() else { return };
        rig.quiet();
        rig.write("large", LARGE);
        rig.write("small", SMALL);
        assert!(!daemon_serves(&rig, &direct(&rig, "large"), LARGE), "resident");
        rig.on(&["migrate"], &["large", "small"]);
        let first = direct(&rig, "large");
        assert!(daemon_serves(&rig, &first, LARGE), "a stub");
        wait_for("the end of the recall", || rig.state("large") == "dual");
        let second = direct(&rig, "large");
        let writer =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(rig.mnt("large")).unwrap();
        assert!(daemon_serves(&rig, &second, LARGE) && daemon_serves(&rig, &writer, LARGE), "while the first is open");
        drop(first);
        assert!(daemon_serves(&rig, &second, LARGE), "while any is open");
        drop((second, writer));
        wait_for("the closes to be noticed", || !daemon_serves(&rig, &direct(&rig, "large"), LARGE));
        // A small stub comes back inside its open. Its recall becomes durable a little later.
        assert_same(&page(&direct(&rig, "small"), 0), &noise("small", SMALL)[..4096], "small");
        wait_for("passthrough", || !daemon_serves(&rig, &direct(&rig, "small"), SMALL));
    }
}

/// All passthrough handles of an inode share one backing, which the daemon keeps once.
#[test]
fn fifty_handles_share_one_backing() {
    let Some(rig) = Rig::new() else { return };
    let content = rig.write("a", SMALL);
    let handles: Vec<_> = (0..50)
        .map(|n| OpenOptions::new().read(true).write(n % 2 == 1).append(n % 4 == 3).open(rig.mnt("a")).unwrap())
        .collect();
    assert_eq!(descriptors(&rig, "a"), 1, "the daemon's, for one file");
    for file in &handles {
        assert_same(&page(file, 8192), &content[8192..12_288], "each handle");
    }
    handles[1].write_all_at(b"seen by all", 0).unwrap();
    for file in &handles {
        assert_eq!(&page(file, 0)[..11], b"seen by all");
    }
    for file in &handles {
        drop(File::open(rig.mnt("a")).unwrap());
        assert!(!daemon_serves(&rig, file, 4 * 4096));
    }
}

/// A release asks the kernel for a lease, which knows of mappings that outlive their handles.
#[test]
fn a_mapping_pins_a_closed_file_and_nothing_else_does() {
    for setup in [Setup::default(), Setup::xfs()] {
        let Some(rig) = setup.build() else { return };
        for held in Held::all().filter(|held| held.mapped) {
            pinned_by_a_mapping(&rig, held);
        }
    }
}

fn pinned_by_a_mapping(rig: &Rig, held: Held) {
    let name = format!("{held:?}").replace(' ', "");
    let content = rig.write(&name, SMALL);
    rig.on(&["migrate", "--archive-only"], &[&name]);
    let (file, map) = held.open(rig, &name, SMALL);
    drop(file);
    let map = map.unwrap();
    code(&rig.try_on(&["release"], &[&name]), 1);
    code(&rig.try_on(&["migrate"], &[&name]), 1);
    assert_same(map.bytes(), &content, &name);
    assert!(rig.allocated(&name) >= SMALL as u64);
    drop(map);
    wait_for("the release", || rig.try_on(&["migrate"], &[&name]).status.success());
    assert_eq!((rig.state(&name).as_str(), rig.allocated(&name) <= 4096), ("stub", true));
    rig.same(&name, &content);
}

/// Writes through passthrough are invisible to the daemon: the record must not claim equality when the open is answered.
#[test]
fn an_open_for_writing_makes_the_record_resident_before_its_answer() {
    let Some(mut rig) = Rig::new() else { return };
    for (n, flags) in [libc::O_WRONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_APPEND].into_iter().enumerate() {
        let name = format!("a{n}");
        let mut wanted = rig.write(&name, SMALL);
        rig.on(&["migrate", "--archive-only"], &[&name]);
        assert_eq!(rig.record(&name).unwrap().claim, Claim::Dual);
        let read = flags & libc::O_ACCMODE == libc::O_RDWR;
        let file = OpenOptions::new().read(read).write(true).custom_flags(flags & libc::O_APPEND).open(rig.mnt(&name));
        assert!(rig.record(&name).is_none_or(|record| record.claim == Claim::Resident), "{flags:#o}");
        // Nothing more is needed of the daemon: what is written now outlives it.
        let mut file = file.unwrap();
        rig.kill();
        if flags & libc::O_APPEND != 0 {
            std::io::Write::write_all(&mut file, b"written without a daemon").unwrap();
            wanted.extend_from_slice(b"written without a daemon");
        } else {
            file.write_all_at(b"written without a daemon", 5).unwrap();
            wanted[5..29].copy_from_slice(b"written without a daemon");
        }
        drop(file);
        rig.crash();
        rig.mount();
        assert_eq!(rig.state(&name), "resident");
        rig.same(&name, &wanted);
        rig.migrate(&name);
        rig.same(&name, &wanted);
    }
}

/// An open that fails still counts: the next ones find the file in order.
#[test]
fn a_failed_open_leaves_no_trace() {
    let Some(mut rig) = Rig::new() else { return };
    let content = rig.write("large", LARGE);
    fs::set_permissions(rig.mnt("large"), std::os::unix::fs::PermissionsExt::from_mode(0o4755)).unwrap();
    rig.migrate("large");
    rig.quiet();
    rig.stop_server();
    // Opening a large stub for reading asks nobody; for writing, one with set-id bits needs all of it.
    let reader = File::open(rig.mnt("large")).unwrap();
    assert_eq!(errno(OpenOptions::new().write(true).open(rig.mnt("large"))), Some(libc::ETIMEDOUT));
    assert!(reader.as_raw_fd() > 0);
    rig.start_server();
    check(&reader, None, &content, "after the endpoint came back");
    drop(reader);
    rig.on(&["recall"], &["large"]);
    wait_for("passthrough", || !daemon_serves(&rig, &direct(&rig, "large"), LARGE));
    rig.migrate("large");
    rig.same("large", &content);
}

/// Pages that the kernel cached from the daemon do not outlive a change made by passthrough, and the other way round.
#[test]
fn no_page_survives_a_change_of_mode() {
    for setup in [Setup::default(), Setup::xfs()] {
        let Some(rig) = setup.build() else { return };
        let mut wanted = rig.write("a", LARGE);
        for round in 0..6u8 {
            wait_for("the release", || rig.try_on(&["migrate"], &["a"]).status.success());
            // Cached from the daemon.
            rig.same("a", &wanted);
            wait_for("the end of the recall", || rig.state("a") == "dual");
            // Changed by passthrough.
            let file = OpenOptions::new().read(true).write(true).open(rig.mnt("a")).unwrap();
            let at = usize::from(round) * 3 * 4096 + 100;
            file.write_all_at(&[round | 0x40; 5000], at as u64).unwrap();
            wanted[at..at + 5000].fill(round | 0x40);
            let mut map = Mapping::of(&file, wanted.len(), true);
            map.set(at + 200_000, &[round | 0x60; 5000]);
            wanted[at + 200_000..at + 205_000].fill(round | 0x60);
            drop((file, map));
            rig.same("a", &wanted);
        }
    }
}

/// A stub that is mapped and read becomes whole, and resident, under who has it open: no fault, no zeros, and who opens it after them is
/// served by the kernel.
#[test]
fn a_stub_becomes_whole_under_who_has_it_mapped() {
    for setup in [Setup::default(), Setup::xfs()] {
        let Some(rig) = setup.build() else { return };
        rig.quiet();
        for written in [false, true] {
            let name = if written { "written" } else { "read" };
            let mut content = rig.write(name, 30 * LARGE);
            rig.migrate(name);
            let first = OpenOptions::new().read(true).write(written).open(rig.mnt(name)).unwrap();
            let mut map = Mapping::of(&first, content.len(), written);
            let second = direct(&rig, name);
            let half = content.len() / 2;
            // Some pages come one by one.
            for at in [half - 4096, 12_288, LARGE + 40_960] {
                assert_same(&map.bytes()[at..at + 4096], &content[at..at + 4096], name);
            }
            if written {
                map.set(half + 5000, b"mapped");
                map.sync();
                content[half + 5000..half + 5006].copy_from_slice(b"mapped");
            }
            let state = rig.state(name);
            assert!(["partial", "stub", "patched"].contains(&state.as_str()), "{state}");
            // The rest comes in the meantime.
            let mut recall = rig.command(&["recall", rig.mnt(name).to_str().unwrap()]).spawn().unwrap();
            assert_same(map.bytes(), &content, "while it comes");
            for at in (0..content.len()).step_by(LARGE).rev() {
                assert_same(&page(&second, at), &content[at..at + 4096], "read while it comes");
            }
            assert!(recall.wait().unwrap().success());
            let whole = if written { "resident" } else { "dual" };
            wait_for("the end of the recall", || rig.state(name) == whole);
            check(&first, Some(&map), &content, "whole");
            check(&second, None, &content, "whole");
            let third = direct(&rig, name);
            check(&third, None, &content, "opened beside them");
            drop((first, second, third));
            check(&direct(&rig, name), Some(&map), &content, "the mapping alone");
            drop(map);
            wait_for("passthrough", || !daemon_serves(&rig, &direct(&rig, name), LARGE));
            rig.same(name, &content);
        }
    }
}

/// Of an open that is refused because a program runs from the file, nothing may be left. The kernel refuses by itself where the file is opened for
/// writing, but for reading with `O_TRUNC` only after it had FUSE cut the file.
#[test]
fn a_running_program_is_not_cut() {
    let Some(rig) = Setup::default().build() else { return };
    let program = fs::read("/bin/sleep").unwrap();
    fs::write(rig.mnt("program"), &program).unwrap();
    fs::set_permissions(rig.mnt("program"), fs::Permissions::from_mode(0o755)).unwrap();
    let cut = |flags: i32| {
        let path = std::ffi::CString::new(rig.mnt("program").into_os_string().into_encoded_bytes()).unwrap();
        rustix::fs::open(path, rustix::fs::OFlags::from_bits_retain(flags as u32), rustix::fs::Mode::empty())
    };
    for round in 0..20 {
        let mut running = std::process::Command::new(rig.mnt("program")).arg("100").spawn().unwrap();
        for flags in [libc::O_RDONLY | libc::O_TRUNC, libc::O_WRONLY | libc::O_TRUNC, libc::O_RDWR] {
            assert_eq!(cut(flags).unwrap_err().raw_os_error(), libc::ETXTBSY, "round {round}, {flags:#o}");
            assert_same(&fs::read(rig.low("program")).unwrap(), &program, "while it runs");
        }
        assert!(running.try_wait().unwrap().is_none(), "round {round}: it has died");
        running.kill().unwrap();
        running.wait().unwrap();
    }
    // Nobody runs it any more.
    wait_for("an open that cuts", || cut(libc::O_RDONLY | libc::O_TRUNC).is_ok());
    assert_eq!(fs::metadata(rig.low("program")).unwrap().len(), 0);
}

/// How many descriptors of the daemon can read or write a file in the share's root, which may be removed by now: not those that only name it
/// (`O_PATH`).
pub fn descriptors(rig: &Rig, name: &str) -> usize {
    let proc = PathBuf::from(format!("/proc/{}", rig.daemon.unwrap()));
    // The daemon has the share mounted by itself, so paths begin there.
    let (path, removed) = (format!("/{name}"), format!("/{name} (deleted)"));
    let is_it = |link: &fs::DirEntry| {
        fs::read_link(link.path()).is_ok_and(|to| to == Path::new(&path) || to == Path::new(&removed))
    };
    let can = |link: &fs::DirEntry| {
        let info = fs::read_to_string(proc.join("fdinfo").join(link.file_name())).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        flags.is_some_and(|flags| u32::from_str_radix(flags.trim(), 8).unwrap() & OFlags::PATH.bits() == 0)
    };
    fs::read_dir(proc.join("fd")).unwrap().flatten().filter(|link| is_it(link) && can(link)).count()
}
