# What FUSE or the crate below us cannot carry. Each of these is documented with what programs see instead.
import array
make("file")
fd = os.open("file", os.O_RDWR)
say("O_TMPFILE", ok(os.open, ".", os.O_TMPFILE | os.O_RDWR), "ok")


def birth(path):
    buffer = ctypes.create_string_buffer(256)
    syscall(332, -100, path.encode(), 0, 0x800, buffer)
    mask = struct.unpack_from("<I", buffer.raw, 0)[0]
    return bool(mask & 0x800)


say("statx birth", birth("file"), True)


def fraction(seconds, nanos):
    times = (ctypes.c_long * 4)(seconds, nanos, seconds, nanos)
    syscall(280, -100, b"file", times, 0)
    return os.stat("file").st_mtime_ns


say("time/-1.9", fraction(-1, 900_000_000), -100_000_000)
say("time/-10.25", fraction(-10, 250_000_000), -9_750_000_000)
os.utime("file")


def ioctl(number, size=0, fill=b""):
    buffer = array.array("B", fill.ljust(size, b"\0"))
    return "ok" if attempt(fcntl.ioctl, fd, number, buffer, True) == 0 else attempt(fcntl.ioctl, fd, number, buffer, True)


say("ioctl/FS_IOC_GETFLAGS", ioctl(0x80086601, 8), "ok")
say("ioctl/FS_IOC_SETFLAGS", ioctl(0x40086602, 8), None)
say("ioctl/FS_IOC_FSGETXATTR", ioctl(0x801C581F, 28), "ok")
say("ioctl/FS_IOC_FIEMAP", ioctl(0xC020660B, 32 + 56, struct.pack("<QQIIII", 0, 1 << 40, 0, 0, 1, 0)), "ok")
say("ioctl/FICLONE", ok(fcntl.ioctl, os.open("cloned", os.O_RDWR | os.O_CREAT), 0x40049409, fd))
say("ioctl/FS_IOC_GETVERSION", ioctl(0x80087601, 8))
KEEP, COLLAPSE, INSERT, UNSHARE = 1, 8, 32, 64
say("fallocate/collapse", ok(syscall, 285, fd, COLLAPSE, 4096, 8192), "ok")
say("fallocate/insert", ok(syscall, 285, fd, INSERT, 4096, 8192), "ok")
say("fallocate/unshare", ok(syscall, 285, fd, UNSHARE, 0, 8192))
# A lock taken here is not seen on the filesystem below.
fcntl.flock(fd, fcntl.LOCK_EX)
say("lock/seen below", attempt(fcntl.flock, os.open(os.path.join(BELOW, "file"), os.O_RDWR), fcntl.LOCK_SH | fcntl.LOCK_NB), "EAGAIN")
say("file handles", os.stat("file").st_dev == os.stat(BELOW).st_dev, True)
say("RWF_NOWAIT", ok(os.preadv, fd, [bytearray(100)], 0, os.RWF_NOWAIT))


def delayed(path):
    """Whether content still waits in memory for its place on the disk below (FIEMAP_EXTENT_DELALLOC)."""
    buffer = array.array("B", struct.pack("<QQIIII", 0, 1 << 40, 0, 0, 8, 0).ljust(32 + 8 * 56, b"\0"))
    fcntl.ioctl(os.open(os.path.join(BELOW, path), os.O_RDONLY), 0xC020660B, buffer, True)
    count = struct.unpack_from("<I", buffer, 20)[0]
    return any(struct.unpack_from("<I", buffer, 32 + 56 * n + 40)[0] & 4 for n in range(count))


written("synced", noise(1 << 20), os.O_CREAT | os.O_WRONLY)
say("syncfs/before", delayed("synced"), True)
say("syncfs/answers", ok(syscall, 306, fd), "ok")
say("syncfs/written below", not delayed("synced"), True)
synced = os.open("synced", os.O_RDWR)
os.write(synced, noise(1 << 19, 2))
say("fsync", ok(os.fsync, synced), "ok")
say("fsync/written below", not delayed("synced"), True)
