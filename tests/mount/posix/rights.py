# Who may do what: ACLs, setgid and sticky directories, umask, set-id bits, capabilities, times.
PLAIN = acl((USER_OBJ, 6), (USER, 6, B), (GROUP_OBJ, 4), (MASK, 6), (OTHER, 0))

# ACLs: what they show as, what they allow, how chmod changes them.
make("acl", 0o640, A, A)
say("acl/set", ok(os.setxattr, "acl", ACCESS, PLAIN), "ok")
say("acl/mode", mode("acl"), "0o660")
for user, groups in ((A, ()), (B, ()), (C, ()), (C, (A,))):
    for flags in (os.R_OK, os.W_OK):
        say(f"acl/access {user} {groups} {flags}", as_user(user, os.access, "acl", flags, groups=groups))
say("acl/B reads", as_user(B, lambda: len(content("acl"))), SIZE)
say("acl/C reads", as_user(C, lambda: len(content("acl"))), "EACCES")
say("acl/B writes", as_user(B, written, "acl"), 1)
say("acl/others set", as_user(B, os.setxattr, "acl", ACCESS, PLAIN, result=ok), "EPERM")
say("acl/chmod", ok(os.chmod, "acl", 0o604), "ok")
say("acl/after chmod", acl_of("acl"))
# No group bits: the kernel does not look at the ACL, and B is one of the others.
say("acl/B reads after chmod", as_user(B, lambda: len(content("acl"))), SIZE)
os.chmod("acl", 0o640)
say("acl/B reads with mask r", as_user(B, lambda: len(content("acl"))), SIZE)
say("acl/B writes with mask r", as_user(B, written, "acl"), "EACCES")
say("acl/no mask", ok(os.setxattr, "acl", ACCESS, acl((USER_OBJ, 6), (USER, 6, B), (GROUP_OBJ, 4), (OTHER, 0))), "EINVAL")
say("acl/rubbish", ok(os.setxattr, "acl", ACCESS, b"rubbish"))
say("acl/default on a file", ok(os.setxattr, "acl", DEFAULT, PLAIN))
say("acl/minimal", ok(os.setxattr, "acl", ACCESS, acl((USER_OBJ, 6), (GROUP_OBJ, 4), (OTHER, 4))), "ok")
say("acl/minimal is a mode", (mode("acl"), acl_of("acl")))
os.setxattr("acl", ACCESS, PLAIN)
say("acl/removed", ok(os.removexattr, "acl", ACCESS), "ok")
say("acl/after removal", (mode("acl"), acl_of("acl")))
say("acl/removed again", ok(os.removexattr, "acl", ACCESS))
os.setxattr("acl", ACCESS, PLAIN)
os.link("acl", "acl-2")
say("acl/of another name", acl_of("acl-2"))
say("acl/listed", sorted(os.listxattr("acl")))

# Default ACLs: inherited by all that is made, and then the umask does not count.
os.mkdir("inherit")
os.chmod("inherit", 0o777)
os.setxattr("inherit", DEFAULT, acl((USER_OBJ, 7), (USER, 7, C), (GROUP_OBJ, 5), (MASK, 7), (OTHER, 0)))


def make_some(directory, mask):
    os.umask(mask)
    os.close(os.open(f"{directory}/file", os.O_CREAT | os.O_WRONLY, 0o666))
    os.close(os.open(f"{directory}/tight", os.O_CREAT | os.O_WRONLY, 0o600))
    os.mkdir(f"{directory}/dir", 0o777)
    os.mkfifo(f"{directory}/fifo", 0o666)
    os.symlink("nowhere", f"{directory}/link")
    os.mknod(f"{directory}/node", stat.S_IFREG | 0o666)


as_user(A, make_some, "inherit", 0o077)
for name in ("file", "tight", "dir", "fifo", "link", "node"):
    path = f"inherit/{name}"
    st = os.lstat(path)
    say(f"inherit/{name}", (mode(path), st.st_uid, st.st_gid))
    if name != "link":
        say(f"inherit/{name} acl", (acl_of(path), acl_of(path, DEFAULT)))
os.mkdir("inherit/dir/sub")
say("inherit/two deep", (acl_of("inherit/dir/sub"), acl_of("inherit/dir/sub", DEFAULT)))
for mask in (0o000, 0o022, 0o077, 0o777):
    os.mkdir(f"umask-{mask:o}")
    os.chmod(f"umask-{mask:o}", 0o777)
    as_user(A, make_some, f"umask-{mask:o}", mask)
    say(f"umask {mask:o}", [(n, mode(f"umask-{mask:o}/{n}")) for n in ("file", "tight", "dir", "fifo", "node")])

# Setgid lost by those who are not in the group, whether by ACL or by chmod.
for kind in ("file", "program", "dir"):
    for who, groups in ((A, ()), (A, (3000,)), (0, ())):
        path = f"sgid-{kind}-{who}-{len(groups)}"
        bits = 0o2645 if kind == "file" else 0o2775
        if kind == "dir":
            os.mkdir(path)
            os.chown(path, A, 3000)
            os.chmod(path, bits)
        else:
            make(path, bits, A, 3000)
        label = f"sgid/{kind} by {who} {groups}"
        say(f"{label} acl", as_user(who, os.setxattr, path, ACCESS, PLAIN, groups=groups, result=ok), "ok")
        say(f"{label} after acl", (mode(path), mode(path, below=True)))
        os.chmod(path, bits)
        say(f"{label} chmod", as_user(who, os.chmod, path, 0o2777, groups=groups, result=ok), "ok")
        say(f"{label} after chmod", (mode(path), mode(path, below=True)))
say("sgid/acl natively clears", mode("sgid-program-2001-0"), "0o777")

# Setgid directories give their group, and the bit to directories.
os.mkdir("setgid")
os.chown("setgid", 0, 3000)
os.chmod("setgid", 0o2777)
as_user(A, make_some, "setgid", 0o022)
for name in ("file", "tight", "dir", "fifo", "link", "node"):
    st = os.lstat(f"setgid/{name}")
    say(f"setgid/{name}", (oct(st.st_mode & 0o7777), st.st_uid, st.st_gid))
say("setgid/natively", os.lstat("setgid/dir").st_gid, 3000)
for groups in ((), (3000,)):
    for bits in (0o2755, 0o2745, 0o6755):
        path = f"setgid/new-{len(groups)}-{bits:o}"
        as_user(A, os.close, -1)
        as_user(A, lambda: os.close(os.open(path, os.O_CREAT | os.O_WRONLY, bits)), groups=groups)
        say(f"{path}", mode(path))

# Sticky directories.
os.mkdir("sticky")
os.chown("sticky", C, C)
os.chmod("sticky", 0o1777)
for name in ("a", "b", "c", "d"):
    make(f"sticky/{name}", 0o666, A, A)
say("sticky/B unlinks", as_user(B, os.unlink, "sticky/a", result=ok), "EPERM")
say("sticky/B renames", as_user(B, os.rename, "sticky/a", "sticky/x", result=ok), "EPERM")
as_user(B, lambda: os.close(os.open("sticky/mine", os.O_CREAT | os.O_WRONLY)))
say("sticky/B renames over", as_user(B, os.rename, "sticky/mine", "sticky/a", result=ok), "EPERM")
say("sticky/A unlinks", as_user(A, os.unlink, "sticky/a", result=ok), "ok")
say("sticky/its owner unlinks", as_user(C, os.unlink, "sticky/b", result=ok), "ok")
say("sticky/root unlinks", ok(os.unlink, "sticky/c"), "ok")

# Set-id bits go when somebody changes the content or the owner.
def mapped(path):
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 4096) as memory:
        memory[0:1] = b"m"
        memory.flush()
    os.close(fd)


def falloc(path):
    fd = os.open(path, os.O_RDWR)
    os.posix_fallocate(fd, 0, SIZE + 10_000)
    os.close(fd)


def ftruncated(path):
    fd = os.open(path, os.O_RDWR)
    os.ftruncate(fd, 1000)
    os.close(fd)


CHANGES = {
    "write": written,
    "append": lambda path: written(path, flags=os.O_WRONLY | os.O_APPEND),
    "write nothing": lambda path: written(path, b""),
    "truncate": lambda path: os.truncate(path, 1000),
    "truncate to 0": lambda path: os.truncate(path, 0),
    "ftruncate": ftruncated,
    "O_TRUNC": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
    "fallocate": falloc,
    "open": lambda path: os.close(os.open(path, os.O_RDWR)),
    "mmap": mapped,
}
for change, call in CHANGES.items():
    for bits in (0o4777, 0o2777, 0o2767, 0o6777) if STATE == "resident" else (0o2767, 0o6777):
        path = make(f"suid-{change}-{bits:o}".replace(" ", "-"), bits, A, 3000)
        as_user(B, call, path)
        say(f"suid/{change} {bits:o} by another", (mode(path), mode(path, below=True)))
for change in ("write", "truncate", "truncate to 0", "O_TRUNC", "fallocate"):
    path = make(f"root-{change}".replace(" ", "-"), 0o6777, A, 3000)
    CHANGES[change](path)
    say(f"suid/{change} by root", mode(path), "0o6777")
for change in ("write", "truncate"):
    path = make(f"own-{change}", 0o6777, A, 3000)
    as_user(A, CHANGES[change], path, groups=(3000,))
    say(f"suid/{change} by its owner", mode(path), "0o777")
for bits in (0o4755, 0o2755, 0o2745, 0o6755):
    path = make(f"chown-{bits:o}", bits, A, A)
    say(f"chown/{bits:o}", as_user(A, os.chown, path, -1, 3000, groups=(3000,), result=ok), "ok")
    say(f"chown/{bits:o} after", (mode(path), mode(path, below=True)))
    path = make(f"chown-root-{bits:o}", bits, A, A)
    os.chown(path, B, B)
    say(f"chown/{bits:o} by root after", mode(path))
os.mkdir("chown-dir")
os.chmod("chown-dir", 0o6755)
os.chown("chown-dir", A, A)
say("chown/dir", mode("chown-dir"))
make("give", 0o644, A, A)
say("chown/away", as_user(A, os.chown, "give", B, -1, result=ok), "EPERM")
say("chown/to a foreign group", as_user(A, os.chown, "give", -1, 3000, result=ok), "EPERM")
say("chown/nothing", as_user(B, os.chown, "give", -1, -1, result=ok))

# Capabilities of programs go with a change of the content, by root too.
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
for change in ("write", "truncate", "O_TRUNC", "open", "chown", "chmod"):
    for who in (A, 0):
        path = make(f"cap-{change}-{who}", 0o777, A, A)
        os.setxattr(path, "security.capability", CAPABILITY)
        say(f"cap/{change} {who} before", ok(os.getxattr, path, "security.capability"), "ok")
        other = {"chown": lambda p: os.chown(p, -1, A), "chmod": lambda p: os.chmod(p, 0o755)}
        as_user(who, CHANGES.get(change) or other[change], path)
        say(f"cap/{change} {who}", ok(os.getxattr, path, "security.capability"), None if change != "write" else "ENODATA")
make("cap-user", 0o777, A, A)
say("cap/set by a user", as_user(A, os.setxattr, "cap-user", "security.capability", CAPABILITY, result=ok), "EPERM")

# Times: who may set which.
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2


def utimens(path, atime, mtime, flags=0):
    times = (ctypes.c_long * 4)(*atime, *mtime)
    syscall(280, -100, path.encode(), times, flags)


make("times", 0o666, A, A)
now, omit, then = (0, UTIME_NOW), (0, UTIME_OMIT), (1_000_000_000, 987_654_321)
for label, pair in {"now": (now, now), "then": (then, then), "omit": (omit, omit), "then+omit": (then, omit),
                    "now+omit": (now, omit), "omit+now": (omit, now), "now+then": (now, then)}.items():
    utimens("times", (5, 5), (6, 6))
    for user in (A, B, C):
        if user == C:
            os.chmod("times", 0o644)
        say(f"times/{label} by {user}", as_user(user, utimens, "times", *pair, result=ok))
        st = os.stat("times")
        seen = [t if t < 10**18 + 10**9 else "recent" for t in (st.st_atime_ns, st.st_mtime_ns)]
        say(f"times/{label} by {user} after", seen)
    os.chmod("times", 0o666)
say("times/bad nanoseconds", ok(utimens, "times", (0, 10**9), (0, 0)), "EINVAL")
os.symlink("times", "times-link")
say("times/of a link", ok(utimens, "times-link", then, then, 0x100), "ok")
say("times/link and file", (os.lstat("times-link").st_mtime_ns, os.stat("times").st_mtime_ns == then[0]))

# faccessat, fchmodat2, groups.
make("group-only", 0o070, A, 3000)
for user, groups in ((A, ()), (A, (3000,)), (B, (3000,)), (B, (4000, 3000)), (B, (4000,))):
    for label, call in (("access", lambda: os.access("group-only", os.R_OK | os.W_OK)),
                        ("effective", lambda: os.access("group-only", os.R_OK, effective_ids=True)),
                        ("read", lambda: len(content("group-only")))):
        say(f"groups/{label} {user} {groups}", as_user(user, call, groups=groups))
say("groups/root executes", (os.access("group-only", os.X_OK), os.access("give", os.X_OK)), (True, False))
os.symlink("give", "chmod-link")
say("fchmodat2/file", ok(syscall, 452, -100, b"give", 0o600, 0), "ok")
say("fchmodat2/link", ok(syscall, 452, -100, b"chmod-link", 0o600, 0x100))
fd = os.open("give", os.O_PATH)
say("fchmodat2/path", ok(syscall, 452, fd, b"", 0o604, 0x1000), "ok")
say("fchmodat2/after", mode("give"), "0o604")
os.close(fd)
