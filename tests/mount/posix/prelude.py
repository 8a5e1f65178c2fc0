"""What the scenarios share. A scenario runs twice, on a directory of the filesystem below and on one of the mount, and what it
says must be the same. Arguments: directory, the same directory below the mount, file state, "native" or "mount"."""
import ctypes, errno, fcntl, mmap, os, signal, socket, stat, struct, sys, time, zlib

TOP, BELOW, STATE, SIDE = sys.argv[1:5]
os.chdir(TOP)
os.umask(0o022)
sys.stdout.reconfigure(line_buffering=True)
libc = ctypes.CDLL(None, use_errno=True)
A, B, C = 2001, 2002, 2003  # users, each with a group of the same number
# In the state "held" a reader keeps a large stub with the daemon for the whole scenario.
SIZE = 5 << 18 if STATE == "held" else 300_000
held = []


def brief(value):
    if isinstance(value, bytes) and len(value) > 100:
        return f"{len(value)} bytes, sum {zlib.crc32(value):x}"
    if isinstance(value, (list, tuple)):
        return type(value)(brief(one) for one in value)
    return value


def say(label, value, native=None):
    """One observation. `native`: what it must be below, so that a scenario that fails everywhere is no success."""
    value = brief(value)
    if SIDE == "native" and native is not None and value != native:
        sys.exit(f"below, {label} is {value!r}, not {native!r}")
    print(f"{label}\t{value!r}", flush=True)


def name_of(number):
    return errno.errorcode.get(number, str(number))


def attempt(call, *args, **kwargs):
    """The result of a call, or the name of its error."""
    try:
        return call(*args, **kwargs)
    except OSError as error:
        return name_of(error.errno)


def ok(call, *args, **kwargs):
    """"ok", or the name of the error."""
    result = attempt(call, *args, **kwargs)
    return result if isinstance(result, str) and result.startswith("E") else "ok"


def syscall(number, *args):
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    if libc.syscall(ctypes.c_long(number), *converted) == -1:
        raise OSError(ctypes.get_errno(), "syscall")


def as_user(uid, call, *args, groups=(), gid=None, result=attempt):
    """The result of a call made by a child process that is another user."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(list(groups))
            os.setresgid(*[uid if gid is None else gid] * 3)
            os.setresuid(uid, uid, uid)
            os.write(write, repr(result(call, *args)).encode())
        except BaseException as error:
            os.write(write, repr(f"child: {error!r}").encode())
        finally:
            os._exit(0)
    os.close(write)
    said = b"".join(iter(lambda: os.read(read, 65536), b""))
    os.close(read)
    os.waitpid(pid, 0)
    return eval(said)


def noise(size, seed=1):
    import random
    return random.Random(seed).randbytes(size)


def tier(path):
    """Puts a file into the state of this run; nothing to do below the mount."""
    if STATE == "held":
        if SIDE == "mount":
            os.setxattr(path, "user.tierfs.migrate", b"1")
        held.append(os.open(path, os.O_RDONLY))
    elif SIDE == "mount" and STATE != "resident":
        os.setxattr(path, "user.tierfs.migrate", b"1")
        assert os.getxattr(path, "user.tierfs.state") == b"stub"
        if STATE == "dual":
            os.setxattr(path, "user.tierfs.recall", b"1")
            assert os.getxattr(path, "user.tierfs.state") == b"dual"


def make(path, mode=0o644, uid=0, gid=0, size=SIZE, tiered=True):
    with open(path, "wb") as file:
        file.write(noise(size))
    os.chown(path, uid, gid)
    os.chmod(path, mode)
    if tiered:
        tier(path)
    return path


def mode(path, below=False):
    return oct(os.lstat(os.path.join(BELOW, path) if below else path).st_mode & 0o7777)


def written(path, data=b"x", flags=os.O_WRONLY):
    fd = os.open(path, flags)
    try:
        return os.write(fd, data)
    finally:
        os.close(fd)


def content(path):
    with open(path, "rb") as file:
        return file.read()


USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"


def acl(*entries):
    """An ACL as the kernel stores it, from (tag, permissions[, id])."""
    packed = b"".join(struct.pack("<HHI", e[0], e[1], e[2] if len(e) > 2 else 0xFFFFFFFF) for e in entries)
    return struct.pack("<I", 2) + packed


def acl_of(path, which=ACCESS):
    value = attempt(os.getxattr, path, which)
    if isinstance(value, str):
        return value
    return [struct.unpack_from("<HHI", value, at) for at in range(4, len(value), 8)]
