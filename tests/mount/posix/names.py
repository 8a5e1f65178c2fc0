# Names, links, special files, extended attributes, times, statfs, inotify.
import select

# Odd and long names.
for label, name in {"255": b"n" * 255, "256": b"n" * 256, "not UTF-8": b"\xff\xfe\x80", "newline": b"a\nb", "dots": b"...",
                    "utf-8 255": ("ü" * 127).encode(), "blank": b" ", "slash": b"nobody/here", "empty": b""}.items():
    say(f"name/{label}", ok(lambda: os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))))
    say(f"name/{label} mkdir", ok(os.mkdir, name + b"d" if len(name) < 255 else b"d" + name[1:]))
say("name/listed", sorted(os.listdir(b".")) == sorted(os.listdir(BELOW.encode())), True)
say("name/path too long", ok(os.stat, "/".join(["x" * 250] * 20)), "ENAMETOOLONG")

# rename(2) and its flags.
def renameat2(a, b, flags):
    syscall(316, -100, a.encode(), -100, b.encode(), flags)


os.mkdir("r")
os.chdir("r")
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
for name in ("f1", "f2", "f3"):
    make(name, size=1000)
for name in ("d1", "d2", "full", "full/in"):
    os.mkdir(name)
os.symlink("f1", "l1")
for label, a, b, flags in (
    ("missing", "none", "x", 0), ("noreplace", "f1", "f2", NOREPLACE), ("noreplace free", "f3", "f4", NOREPLACE),
    ("exchange", "f1", "d1", EXCHANGE), ("exchange back", "f1", "d1", EXCHANGE), ("exchange missing", "f1", "none", EXCHANGE),
    ("both flags", "f1", "f2", NOREPLACE | EXCHANGE), ("rubbish", "f1", "f2", 64), ("file over dir", "f1", "d1", 0),
    ("dir over file", "d1", "f1", 0), ("dir over dir", "d1", "d2", 0), ("dir over full", "d2", "full", 0),
    ("into itself", "full", "full/in/x", 0), ("over its parent", "full/in", "full", 0), ("dot", "full/.", "x", 0),
    ("dotdot", "full/..", "x", 0), ("slash", "f1", "x/", 0), ("same", "f1", "f1", 0), ("whiteout", "f4", "f5", WHITEOUT),
    ("link", "l1", "l2", 0), ("over link", "f2", "l2", 0),
):
    say(f"rename/{label}", ok(renameat2, a, b, flags))
say("rename/whiteout leaves", stat.S_ISCHR(os.lstat("f4").st_mode) and os.lstat("f4").st_rdev == 0, True)
say("rename/end", sorted((n, oct(os.lstat(n).st_mode), os.lstat(n).st_nlink) for n in os.listdir(".")))
os.link("f1", "f1-hard")
say("rename/hard links of one file", (ok(os.rename, "f1", "f1-hard"), sorted(n for n in os.listdir(".") if n.startswith("f1"))))
os.chdir("..")

# ".." follows a directory.
os.makedirs("p/q/r")
os.makedirs("s")
inside = os.open("p/q/r", os.O_RDONLY | os.O_DIRECTORY)
os.rename("p/q", "s/q")
say("dotdot/after a rename", os.stat("..", dir_fd=inside).st_ino == os.stat("s/q").st_ino, True)
say("dotdot/two up", os.stat("../..", dir_fd=inside).st_ino == os.stat("s").st_ino, True)
say("dotdot/listed", os.path.samefile("s/q/..", "s"), True)
say("dotdot/link counts", [os.stat(d).st_nlink for d in ("p", "s", "s/q", "s/q/r")], [2, 3, 3, 2])
back = os.open(".", os.O_RDONLY)
os.fchdir(inside)
say("dotdot/getcwd", os.getcwd().endswith("s/q/r"), True)
os.rmdir("../r")
say("dotdot/removed", (attempt(os.getcwd), ok(os.mkdir, "x"), os.listdir("."), ok(os.stat, ".")))
os.fchdir(back)

# Links.
make("one", size=100)
os.link("one", "two")
os.mkdir("elsewhere")
os.link("two", "elsewhere/three")
ids = {os.stat(n).st_ino for n in ("one", "two", "elsewhere/three")}
say("links/ids", (len(ids), os.stat("one").st_nlink), (1, 3))
os.unlink("one")
say("links/left", (os.stat("two").st_nlink, len(content("elsewhere/three"))), (2, 100))
say("links/of a directory", ok(os.link, "elsewhere", "dirlink"), "EPERM")
say("links/exists", ok(os.link, "two", "elsewhere/three"), "EEXIST")
for length in (1, 59, 60, 1000, 4095):
    target = ("t" * 200 + "/") * 30
    say(f"links/symlink of {length}", ok(os.symlink, target[:length], f"link-{length}"))
    if os.path.lexists(f"link-{length}"):
        say(f"links/symlink of {length} reads", (os.readlink(f"link-{length}") == target[:length], os.lstat(f"link-{length}").st_size))
say("links/symlink too long", ok(os.symlink, "t" * 4096, "link-4096"), "ENAMETOOLONG")
say("links/symlink empty", ok(os.symlink, "", "link-0"), "ENOENT")
os.symlink("loop-b", "loop-a")
os.symlink("loop-a", "loop-b")
say("links/loop", ok(os.stat, "loop-a"), "ELOOP")
os.symlink("../" * 3 + "etc/hostname", "out")
say("links/symlink mode", mode("out"), "0o777")
os.link("out", "out-2", follow_symlinks=False)
say("links/of a symlink", (os.lstat("out").st_nlink, os.readlink("out-2")), (2, "../../../etc/hostname"))
fd = os.open("two", os.O_RDONLY)
say("links/from a descriptor", ok(syscall, 265, -100, f"/proc/self/fd/{fd}".encode(), -100, b"by-fd", 0x400), "ok")
say("links/back to life", (os.stat("by-fd").st_nlink), 3)

# open(2) and its refusals.
for label, path, flags in (
    ("O_CREAT on a directory", "elsewhere", os.O_CREAT | os.O_WRONLY), ("O_EXCL on a link", "loop-a", os.O_CREAT | os.O_EXCL),
    ("O_NOFOLLOW", "link-1", os.O_NOFOLLOW), ("O_NOFOLLOW O_PATH", "link-1", os.O_NOFOLLOW | os.O_PATH),
    ("O_DIRECTORY on a file", "two", os.O_DIRECTORY), ("slash after a file", "two/", os.O_RDONLY),
    ("slash after a new file", "new/", os.O_CREAT | os.O_WRONLY), ("write a directory", "elsewhere", os.O_RDWR),
    ("through a file", "two/x", os.O_RDONLY), ("O_CREAT through a dangling link", "link-59", os.O_CREAT | os.O_WRONLY),
    ("O_CREAT|O_DIRECTORY", "newdir", os.O_CREAT | os.O_DIRECTORY),
):
    say(f"open/{label}", ok(os.open, path, flags))
path = os.open("two", os.O_PATH)
again = os.open(f"/proc/self/fd/{path}", os.O_RDWR)
say("open/again by /proc", (os.pwrite(again, b"again", 0), content("two")[:5]), (5, b"again"))
say("open/O_PATH fstat", os.fstat(path).st_ino == os.stat("two").st_ino, True)
say("open/O_PATH chmod", ok(os.fchmod, path, 0o600), "EBADF")
say("open/link of /proc", os.readlink(f"/proc/self/fd/{again}").endswith("/two"), True)
os.rename("two", "deux")
say("open/link of /proc follows", os.readlink(f"/proc/self/fd/{again}").endswith("/deux"), True)
os.unlink("deux")
os.unlink("elsewhere/three")
os.unlink("by-fd")
say("open/link of /proc after unlink", os.readlink(f"/proc/self/fd/{again}").endswith("/deux (deleted)"), True)
revived = attempt(os.open, f"/proc/self/fd/{again}", os.O_RDWR)
say("open/unlinked again by /proc", isinstance(revived, int) and os.pread(revived, 5, 0), b"again")
say("open/unlinked cannot be linked", ok(syscall, 265, -100, f"/proc/self/fd/{again}".encode(), -100, b"zombie", 0x400), "ENOENT")
say("open/unlinked", (os.fstat(again).st_nlink, ok(os.fchmod, again, 0o640), ok(os.ftruncate, again, 7),
                      ok(os.utime, again, (1, 2)), os.fstat(again).st_size), (0, "ok", "ok", "ok", 7))
say("open/unlinked xattr", (ok(os.setxattr, again, "user.x", b"1"), attempt(os.getxattr, again, "user.x")), ("ok", b"1"))

# Special files work.
os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
os.mknod("zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
say("special/null", (written("null", b"gone"), content("null")), (4, b""))
fd = os.open("zero", os.O_RDONLY)
say("special/zero", os.read(fd, 5), bytes(5))
say("special/large numbers", ok(os.mknod, "big", stat.S_IFBLK | 0o600, os.makedev(511, 200_000)), "ok")
say("special/large numbers seen", (os.major(os.stat("big").st_rdev), os.minor(os.stat("big").st_rdev)), (511, 200_000))
say("special/by a user", as_user(A, os.mknod, "x", stat.S_IFCHR, 0, result=ok))
os.mkfifo("fifo")
pid = os.fork()
if pid == 0:
    with open("fifo", "wb") as out:
        out.write(b"through the pipe")
    os._exit(0)
say("special/fifo", content("fifo"), b"through the pipe")
os.waitpid(pid, 0)
say("special/fifo without a reader", ok(os.open, "fifo", os.O_WRONLY | os.O_NONBLOCK), "ENXIO")
server = socket.socket(socket.AF_UNIX)
server.bind("socket")
server.listen()
client = socket.socket(socket.AF_UNIX)
say("special/socket", ok(client.connect, "socket"), "ok")
client.send(b"hello")
say("special/socket speaks", server.accept()[0].recv(5), b"hello")
say("special/socket opened", ok(os.open, "socket", os.O_RDWR), "ENXIO")
say("special/socket again", ok(socket.socket(socket.AF_UNIX).bind, "socket"), "EADDRINUSE")

# Extended attributes.
make("attrs", size=10)
os.chmod("attrs", 0o666)
for size in (0, 1, 255, 3000):
    say(f"xattr/{size}", (ok(os.setxattr, "attrs", f"user.size{size}", b"v" * size), attempt(os.getxattr, "attrs", f"user.size{size}") == b"v" * size), ("ok", True))
for size in (65536, 65537):
    make(f"attrs-{size}", size=10)
    say(f"xattr/{size}", ok(os.setxattr, f"attrs-{size}", "user.big", b"v" * size))
say("xattr/long name", [ok(os.setxattr, "attrs", "user." + "n" * n, b"") for n in (250, 251)])
for name in ("user.", "user", "nonsense.x", "security.x", "trusted.x", "system.x", "os2.x", ""):
    say(f"xattr/set {name}", ok(os.setxattr, "attrs", name, b"1"))
    say(f"xattr/get {name}", ok(os.getxattr, "attrs", name))
    say(f"xattr/set {name} by a user", as_user(A, os.setxattr, "attrs", name, b"2", result=ok))
    say(f"xattr/get {name} by a user", as_user(A, os.getxattr, "attrs", name, result=ok))
say("xattr/create", ok(os.setxattr, "attrs", "user.size1", b"", os.XATTR_CREATE), "EEXIST")
say("xattr/replace", ok(os.setxattr, "attrs", "user.none", b"", os.XATTR_REPLACE), "ENODATA")
say("xattr/remove", (ok(os.removexattr, "attrs", "user.size1"), ok(os.removexattr, "attrs", "user.size1")), ("ok", "ENODATA"))
say("xattr/list", sorted(os.listxattr("attrs")))
say("xattr/list by a user", as_user(A, lambda: sorted(os.listxattr("attrs"))))
small = ctypes.create_string_buffer(2)
say("xattr/too small", (attempt(syscall, 191, b"attrs", b"user.size255", small, 2), attempt(syscall, 194, b"attrs", small, 2)), ("ERANGE", "ERANGE"))
for name in ("loop-a", "fifo", "null"):
    for attribute in ("user.x", "trusted.x"):
        say(f"xattr/{attribute} of {name}", ok(os.setxattr, name, attribute, b"1", follow_symlinks=False))
os.mkdir("attrs-dir")
say("xattr/directory", (ok(os.setxattr, "attrs-dir", "user.x", b"1"), attempt(os.getxattr, "attrs-dir", "user.x")), ("ok", b"1"))
os.mkdir("attrs-sticky")
os.chmod("attrs-sticky", 0o1777)
say("xattr/sticky directory by a user", as_user(A, os.setxattr, "attrs-sticky", "user.x", b"1", result=ok), "EPERM")
os.chmod("attrs", 0o444)
say("xattr/user without write permission", as_user(A, os.setxattr, "attrs", "user.y", b"1", result=ok), "EACCES")

# Times: after 2106, before 1970, at the filesystem's ends.
for seconds, nanos in ((0, 0), (1, 1), (2**31 - 1, 999_999_999), (2**31, 5), (4_300_000_000, 123_456_789), (2**33, 7), (-1, 0),
                       (-86_400, 0), (-(2**31), 0), (10**11, 0), (-(10**11), 0)):
    times = (ctypes.c_long * 4)(seconds, nanos, seconds, nanos)
    syscall(280, -100, b"attrs", times, 0)
    st = os.stat("attrs")
    say(f"time/{seconds}.{nanos}", (st.st_mtime_ns, st.st_atime_ns))
    say(f"time/{seconds}.{nanos} below", os.stat(os.path.join(BELOW, "attrs")).st_mtime_ns)

# statfs, limits.
vfs = os.statvfs(".")
say("statfs", (vfs.f_bsize, vfs.f_frsize, vfs.f_blocks, vfs.f_files, vfs.f_namemax, vfs.f_bavail <= vfs.f_bfree))
say("limits", [os.pathconf(".", n) for n in ("PC_NAME_MAX", "PC_PATH_MAX", "PC_PIPE_BUF")])

# Directories: listings that stop and go on.
os.mkdir("many")
for n in range(300):
    os.close(os.open(f"many/{n:04}", os.O_CREAT | os.O_WRONLY))
listed = []
with os.scandir("many") as entries:
    for entry in entries:
        listed.append(entry.name)
        if len(listed) % 2:
            os.unlink(f"many/{entry.name}")
say("list/while unlinking", (len(listed), len(set(listed)), len(os.listdir("many"))), (300, 300, 150))
say("list/kinds", sorted((e.name, e.is_file(follow_symlinks=False), e.is_symlink(), e.is_dir(follow_symlinks=False), e.inode() == os.lstat(e.name).st_ino)
                         for e in os.scandir(".") if e.name in ("fifo", "attrs", "loop-a", "many", "null")))

# inotify.
watch = libc.inotify_init1(os.O_NONBLOCK)
os.mkdir("watched")
make("watched/old", size=10)
libc.inotify_add_watch(watch, b"watched", 0xFFF)
written("watched/old", b"x")
content("watched/old")
os.chmod("watched/old", 0o600)
os.rename("watched/old", "watched/new")
os.truncate("watched/new", 3)
os.mkdir("watched/dir")
os.unlink("watched/new")
os.rmdir("watched/dir")
events, data = [], os.read(watch, 65536)
while data:
    _, mask, _, length = struct.unpack_from("<iIII", data)
    events.append((hex(mask), data[16:16 + length].rstrip(b"\0").decode()))
    data = data[16 + length:]
say("inotify", events)
say("inotify/natively", ("0x2", "old") in events and ("0x8", "old") in events, True)
