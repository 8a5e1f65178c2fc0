//! Whose files come out, and whose rights decide.

use std::ffi::OsStr;
use std::process::{Child, Command};
use std::sync::Arc;

use tierfs::ports::{Attr, Caller, FileKind, Keep, Lower, NewNode, OpenFlags, SetAttr};
use tierfs::types::Inode;

use crate::Env;
use crate::common::run;
use crate::contract::{self, BOTH, READ, ROOT, errno, os};

const USER: Caller = Caller { uid: 1000, gid: 2000, pid: 0, umask: 0o022 };

pub fn many_threads_at_once(env: Env) {
    contract::many_threads_at_once(env.share);
}

fn create(env: &Env, dir: &Inode, name: &str, mode: u32, who: &Caller) -> Attr {
    env.share.create(dir, os(name), mode, BOTH, who).expect("create").1
}

fn chmod(env: &Env, node: &Inode, mode: u32) -> Attr {
    env.share.set_attr(node, &SetAttr { mode: Some(mode), ..SetAttr::default() }).expect("chmod")
}

fn chown(env: &Env, node: &Inode, uid: u32, gid: u32) {
    env.share.set_attr(node, &SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() }).expect("chown");
}

/// The kernel above has granted it: a directory that only its owner may write is no obstacle here.
pub fn new_files_belong_to_the_requester(env: Env) {
    let sub = contract::dir(&*env.share, "sub");
    chown(&env, &sub, 1234, 1234);
    chmod(&env, &sub, 0o700);
    let owner = |attr: Attr| (attr.uid, attr.gid);
    assert_eq!(owner(create(&env, &sub, "file", 0o644, &USER)), (1000, 2000));
    let special = |kind| NewNode::Special(kind, 0);
    for (name, what) in [
        ("dir", NewNode::Directory),
        ("link", NewNode::Symlink(os("x"))),
        ("fifo", special(FileKind::Fifo)),
        ("device", special(FileKind::CharDevice)),
    ] {
        assert_eq!(owner(env.share.make(&sub, os(name), what, 0o600, &USER).expect(name).1), (1000, 2000));
    }
    let only_group = Caller { uid: 0, gid: 5, ..USER };
    assert_eq!(owner(create(&env, &sub, "of a group", 0o644, &only_group)), (0, 5));
    assert_eq!(owner(create(&env, &sub, "of root", 0o644, &ROOT)), (0, 0));
    // An open file without a permission for its own maker, as open(2) allows.
    let (_, attr, open) = env.share.create(&sub, os("locked"), 0, BOTH, &USER).expect("create");
    open.write_at(b"x", 0).expect("write");
    assert_eq!(attr.mode, 0);
}

pub fn setgid_directories_give_their_group(env: Env) {
    let sub = contract::dir(&*env.share, "sub");
    chown(&env, &sub, 1000, 3000);
    chmod(&env, &sub, 0o2775);
    let attr = create(&env, &sub, "file", 0o644, &USER);
    assert_eq!((attr.uid, attr.gid, attr.mode), (1000, 3000, 0o644));
    let (_, attr) = env.share.make(&sub, os("dir"), NewNode::Directory, 0o755, &USER).expect("mkdir");
    assert_eq!((attr.uid, attr.gid, attr.mode), (1000, 3000, 0o2755), "and directories below stay setgid");
}

pub fn umask_and_default_acls(env: Env) {
    let (plain, with_acl) = (contract::dir(&*env.share, "plain"), contract::dir(&*env.share, "acl"));
    let path = env.fs.path().join("acl");
    run("setfacl", &["-d", "-m", "u::rwx,g::rwx,o::---,u:77:rwx", path.to_str().expect("UTF-8")]);
    for umask in [0o000, 0o022, 0o077, 0o777] {
        let who = Caller { umask, ..USER };
        let name = format!("{umask:o}");
        assert_eq!(create(&env, &plain, &name, 0o666, &who).mode, 0o666 & !umask);
        // With a default ACL the umask has no say.
        assert_eq!(create(&env, &with_acl, &name, 0o666, &who).mode, 0o660);
        let (node, attr) =
            env.share.make(&with_acl, os(&format!("dir {name}")), NewNode::Directory, 0o777, &who).expect("mkdir");
        assert_eq!(attr.mode, 0o770);
        assert!(!env.share.xattr(&node, os("system.posix_acl_default")).expect("inherited").is_empty());
    }
}

/// A process that waits with the given credentials.
struct Requester(Child);

impl Requester {
    fn new(groups: &str) -> Self {
        let child = Command::new("setpriv")
            .args(["--reuid=1000", "--regid=2000", groups, "sleep", "60"])
            .spawn()
            .expect("setpriv (package util-linux)");
        let requester = Self(child);
        let path = format!("/proc/{}/status", requester.0.id());
        // setpriv has changed everything once it has become the program.
        while !std::fs::read_to_string(&path).expect("runs").starts_with("Name:\tsleep\n") {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        requester
    }

    fn caller(&self) -> Caller {
        Caller { pid: self.0.id(), ..USER }
    }
}

impl Drop for Requester {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In a setgid directory of another group, only a member may make a setgid program.
pub fn setgid_programs_need_the_group(env: Env) {
    let sub = contract::dir(&*env.share, "sub");
    chown(&env, &sub, 1000, 3000);
    chmod(&env, &sub, 0o2777);
    let (member, stranger) = (Requester::new("--groups=3000,4000"), Requester::new("--clear-groups"));
    let mode = |name, who: &Caller| create(&env, &sub, name, 0o2755, who).mode;
    assert_eq!(mode("member", &member.caller()), 0o2755);
    assert_eq!(mode("stranger", &stranger.caller()), 0o755);
    assert_eq!(mode("unknown", &USER), 0o755);
    assert_eq!(mode("liar", &Caller { uid: 1001, ..member.caller() }), 0o755, "the process is somebody else");
    assert_eq!(mode("root", &ROOT), 0o2755);
    assert_eq!(create(&env, &sub, "no program", 0o2644, &stranger.caller()).mode, 0o2644, "not executable: kept");
}

/// `open(O_CREAT)` of a file that another made first: nobody but the lower kernel has checked this one.
pub fn an_existing_file_is_opened_as_the_requester(env: Env) {
    let root = env.share.root();
    let node = contract::file(&*env.share, "file", b"secret");
    chown(&env, &node, 1234, 3000);
    chmod(&env, &node, 0o640);
    let member = Requester::new("--groups=3000");
    let open = |flags, who: &Caller| env.share.create(&root, os("file"), 0o644, flags, who).map(|_| ());
    assert_eq!(errno(open(READ, &USER)), libc::EACCES);
    assert_eq!(errno(open(BOTH, &member.caller())), libc::EACCES);
    assert_eq!(errno(open(OpenFlags { truncate: true, ..BOTH }, &USER)), libc::EACCES);
    assert_eq!(contract::content(&*env.share, &node), b"secret");
    open(READ, &member.caller()).expect("by the group");
    open(BOTH, &Caller { uid: 1234, ..USER }).expect("the owner");
    open(BOTH, &ROOT).expect("root");
}

fn thread_status() -> Vec<String> {
    let status = std::fs::read_to_string("/proc/thread-self/status").expect("status");
    let fields = ["Umask:", "Uid:", "Gid:", "Groups:", "CapEff:", "CapPrm:"];
    status.lines().filter(|line| fields.iter().any(|field| line.starts_with(field))).map(str::to_owned).collect()
}

pub fn the_thread_is_itself_again(env: Env) {
    tierfs::lower::drop_privileges().expect("drop");
    let before = thread_status();
    let root = env.share.root();
    let requester = Requester::new("--groups=3000");
    for who in [Caller { umask: 0o077, ..USER }, Caller { umask: 0, ..requester.caller() }, ROOT] {
        for mode in [0o644, 0o2755] {
            for name in ["one", "two", "one"] {
                let exclusive = OpenFlags { exclusive: true, ..BOTH };
                // Successes, and failures of every kind.
                let _ = env.share.create(&root, os(name), mode, BOTH, &who);
                let _ = env.share.create(&root, os(name), mode, exclusive, &who);
                let _ = env.share.make(&root, os(name), NewNode::Directory, mode, &who);
                let _ = env.share.make(&root, os("no/name"), NewNode::Directory, mode, &who);
                let _ = env.share.make(&root, os("x"), NewNode::Special(FileKind::Symlink, 0), mode, &who);
                assert_eq!(thread_status(), before, "{who:?}");
            }
        }
    }
    let impossible = Caller { uid: u32::MAX, ..USER };
    assert_eq!(errno(env.share.create(&root, os("three"), 0o644, BOTH, &impossible).map(|_| ())), libc::EPERM);
    assert_eq!(thread_status(), before);
}

/// Runs on a thread that has given up the capabilities the daemon gives up.
fn as_daemon(env: &Env, case: impl FnOnce(&dyn Lower) + Send) {
    let share = Arc::clone(&env.share);
    std::thread::scope(|scope| {
        let daemon = scope.spawn(move || {
            tierfs::lower::drop_privileges().expect("drop");
            case(&*share);
        });
        daemon.join().expect("daemon thread");
    });
}

pub fn chmod_setgid_is_kept(env: Env) {
    let (node, sub) = (contract::file(&*env.share, "file", b""), contract::dir(&*env.share, "sub"));
    chown(&env, &node, 1000, 3000);
    chown(&env, &sub, 1000, 3000);
    as_daemon(&env, |lower| {
        for (node, mode) in [(&node, 0o2755), (&node, 0o6711), (&sub, 0o2775), (&node, 0o4755)] {
            let before = thread_status();
            let changes = SetAttr { mode: Some(mode), ..SetAttr::default() };
            assert_eq!(lower.set_attr(node, &changes).expect("chmod").mode, mode);
            assert_eq!(thread_status(), before);
        }
    });
}

pub fn an_acl_takes_setgid_from_those_outside_the_group(env: Env) {
    let (sub, file) = (contract::dir(&*env.share, "sub"), contract::file(&*env.share, "file", b""));
    let model = contract::dir(&*env.share, "model");
    run("setfacl", &["-m", "u:77:rwx", env.fs.path().join("model").to_str().expect("UTF-8")]);
    let acl = env.share.xattr(&model, OsStr::new("system.posix_acl_access")).expect("acl");
    let owner = Caller { uid: 1000, gid: 1000, pid: 0, umask: 0 };
    let member = Caller { gid: 3000, ..owner };
    for (who, kept) in [(owner, 0), (member, 0o2000), (contract::ROOT, 0o2000)] {
        for node in [&sub, &file] {
            chown(&env, node, 1000, 3000);
            chmod(&env, node, 0o2775);
            as_daemon(&env, |lower| {
                let before = thread_status();
                lower.set_acl(node, &acl, 0, &who).expect("set the acl");
                assert_eq!(lower.stat(node).expect("stat").mode & 0o2000, kept, "{who:?}");
                assert_eq!(thread_status(), before);
            });
        }
    }
}

/// Recall writes a program's content and release punches it: neither is a change of content that should cost its privileges.
pub fn tiering_keeps_privileges(env: Env) {
    let (capability, copy) = (OsStr::new("security.capability"), OsStr::new("trusted.tierfs.capability"));
    let value = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let node = contract::file(&*env.share, "program", b"content");
    chmod(&env, &node, 0o6755);
    env.share.set_xattr(&node, capability, &value, 0).expect("set");
    let has = |name| env.share.xattr(&node, name).ok();
    let change = |keep| {
        as_daemon(&env, |lower| {
            let file = lower.open(&node, OpenFlags { keep, ..BOTH }).expect("open");
            file.write_at(b"content", 0).expect("write");
            file.punch_all().expect("punch");
        });
    };
    change(Keep::Own);
    assert_eq!(env.share.stat(&node).expect("stat").mode, 0o6755);
    assert_eq!((has(capability).as_deref(), has(copy)), (Some(&value[..]), None));
    // Back before the file closes, and by a copy, too, which is no write.
    as_daemon(&env, |lower| {
        let from = lower.open(&contract::file(lower, "from", b"CONTENT"), BOTH).expect("open");
        let file = lower.open(&node, OpenFlags { keep: Keep::OwnAndLeft, ..BOTH }).expect("open");
        for _ in 0..2 {
            file.punch_all().expect("punch");
            from.copy_to(0, &*file, 0, 7).expect("copy");
            assert_eq!(has(capability), None, "the kernel takes it");
            file.put_back_privileges().expect("put back");
            assert_eq!((has(capability).as_deref(), has(copy)), (Some(&value[..]), None));
        }
        let copied = lower.open(&node, OpenFlags { keep: Keep::Own, ..BOTH }).expect("open");
        from.copy_to(0, &*copied, 0, 7).expect("copy");
        drop(copied);
        assert_eq!((has(capability).as_deref(), has(copy)), (Some(&value[..]), None));
        assert_eq!(env.share.stat(&node).expect("stat").mode, 0o6755);
    });
    // Somebody died in between.
    let die = || {
        env.share.set_xattr(&node, copy, &value, 0).expect("set");
        let _ = env.share.remove_xattr(&node, capability);
    };
    die();
    change(Keep::OwnAndLeft);
    assert_eq!((has(capability).as_deref(), has(copy)), (Some(&value[..]), None));
    die();
    change(Keep::Own);
    assert_eq!((has(capability), has(copy)), (None, None), "what belonged to older content came back");
}

pub fn writes_clear_setuid(env: Env) {
    type Change = fn(&dyn Lower, &Inode);
    let changes: [(&str, Change); 5] = [
        ("write", |lower, node| lower.open(node, BOTH).expect("open").write_at(b"x", 0).expect("write")),
        ("truncate", |lower, node| lower.open(node, BOTH).expect("open").set_len(1).expect("truncate")),
        ("fallocate", |lower, node| lower.open(node, BOTH).expect("open").allocate(0, 0, 99).expect("fallocate")),
        ("setattr", |lower, node| {
            lower.set_attr(node, &SetAttr { size: Some(1), ..SetAttr::default() }).expect("truncate");
        }),
        ("O_TRUNC", |lower, node| {
            lower.open(node, OpenFlags { truncate: true, ..BOTH }).expect("open");
        }),
    ];
    for (name, change) in changes {
        let fresh = || {
            let node = contract::file(&*env.share, "program", b"#!");
            chown(&env, &node, 1000, 2000);
            assert_eq!(chmod(&env, &node, 0o6755).mode, 0o6755);
            node
        };
        let node = fresh();
        change(&*env.share, &node);
        assert_ne!(env.share.stat(&node).expect("stat").mode, 0o755, "{name}: with CAP_FSETID nothing is cleared");
        let node = fresh();
        as_daemon(&env, |lower| change(lower, &node));
        assert_eq!(env.share.stat(&node).expect("stat").mode, 0o755, "{name}");
    }
}

#[test]
fn quotas_count_for_the_requester() {
    if !crate::can_mount() {
        return;
    }
    let fs = crate::LoopFs::new("xfs", 320 << 20);
    let path = fs.path();
    fs.unmount();
    if !fs.try_mount(",usrquota") {
        eprintln!("SKIPPED: this kernel has no quotas on XFS");
        return;
    }
    run("xfs_quota", &["-x", "-c", "limit -u ihard=5 1000", path.to_str().expect("UTF-8")]);
    let env = Env { share: Arc::new(tierfs::lower::Share::open(&path).expect("share")), fs };
    as_daemon(&env, |lower| {
        let root = lower.root();
        let create = |name: String, who: &Caller| lower.create(&root, os(&name), 0o644, BOTH, who).map(|_| ());
        for n in 0..5 {
            create(format!("mine {n}"), &USER).expect("within the quota");
        }
        assert_eq!(errno(create("one too many".into(), &USER)), libc::EDQUOT);
        for n in 0..10 {
            create(format!("another's {n}"), &Caller { uid: 1001, ..USER }).expect("no quota");
        }
    });
}
