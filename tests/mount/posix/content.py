# Ways to read and write one file: from several processes, by mappings, directly, with holes.
def run_children(calls):
    """Runs calls in processes of their own at the same time; their results."""
    pids, ends = [], []
    for call in calls:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(write, repr(attempt(call)).encode())
            except BaseException as error:
                os.write(write, repr(f"child: {error!r}").encode())
            os._exit(0)
        os.close(write)
        pids.append(pid)
        ends.append(read)
    results = []
    for pid, read in zip(pids, ends):
        results.append(eval(b"".join(iter(lambda: os.read(read, 65536), b"")) or b"None"))
        os.close(read)
        os.waitpid(pid, 0)
    return results


# No append is lost, and none is torn.
make("append", size=SIZE)
before = content("append")


def appender(letter):
    def call():
        fd = os.open("append", os.O_WRONLY | os.O_APPEND)
        for _ in range(100):
            assert os.write(fd, letter * 700) == 700
        os.close(fd)
    return call


run_children([appender(letter) for letter in (b"a", b"b", b"c", b"d")])
after = content("append")
pieces = [after[at:at + 700] for at in range(SIZE, len(after), 700)]
say("append/length", len(after) - SIZE, 4 * 100 * 700)
say("append/whole", sorted(set(pieces)) == [letter * 700 for letter in (b"a", b"b", b"c", b"d")], True)
say("append/each", [pieces.count(letter * 700) for letter in (b"a", b"b", b"c", b"d")], [100] * 4)
say("append/before", after[:SIZE] == before, True)
say("append/below", open(os.path.join(BELOW, "append"), "rb").read() == after, True)
fd = os.open("append", os.O_RDWR | os.O_APPEND)
os.lseek(fd, 5, os.SEEK_SET)
os.write(fd, b"end")
say("append/position", os.lseek(fd, 0, os.SEEK_CUR) - SIZE, 280_003)
say("append/pwrite appends", (os.pwrite(fd, b"too", 0), os.fstat(fd).st_size - SIZE))
os.close(fd)

# Shared mappings are one memory for all processes, and read and write see it.
make("shared")
fd = os.open("shared", os.O_RDWR)
memory = mmap.mmap(fd, SIZE)
os.pwrite(fd, b"by pwrite", 5000)
say("shared/sees pwrite", bytes(memory[5000:5009]), b"by pwrite")
memory[9000:9006] = b"by map"
say("shared/seen by pread", os.pread(fd, 6, 9000), b"by map")


def other_process():
    other = os.open("shared", os.O_RDWR)
    with mmap.mmap(other, SIZE) as theirs:
        seen = bytes(theirs[9000:9006])
        theirs[100_000:100_005] = b"other"
        os.close(other)
        return seen


say("shared/seen by another process", run_children([other_process]), [b"by map"])
say("shared/sees another process", bytes(memory[100_000:100_005]), b"other")
private = mmap.mmap(fd, SIZE, mmap.MAP_PRIVATE)
private[9000:9006] = b"secret"
say("private/stays so", (os.pread(fd, 6, 9000), bytes(memory[9000:9006])), (b"by map", b"by map"))
os.pwrite(fd, b"late", 200_000)
say("private/untouched pages follow", bytes(private[200_000:200_004]))
os.close(fd)
memory[0:5] = b"after"
say("shared/after the close", content("shared")[:5], b"after")
os.unlink("shared")
say("shared/after the unlink", bytes(memory[100_000:100_005]), b"other")
memory.close()
private.close()

# O_DIRECT, among cached readers and writers.
make("direct", size=SIZE // 4096 * 4096)
buffer = mmap.mmap(-1, 65536)
fd = os.open("direct", os.O_RDWR | os.O_DIRECT)
say("direct/read", (os.preadv(fd, [memoryview(buffer)[:8192]], 4096), bytes(buffer[:8192]) == content("direct")[4096:12288]), (8192, True))
buffer[:4096] = b"D" * 4096
say("direct/write", os.pwritev(fd, [memoryview(buffer)[:4096]], 16384), 4096)
say("direct/seen", content("direct")[16384:20480] == b"D" * 4096, True)
written("direct", b"cached")
say("direct/sees", (os.preadv(fd, [memoryview(buffer)[:4096]], 0), bytes(buffer[:6])), (4096, b"cached"))
end = os.fstat(fd).st_size
say("direct/end", os.preadv(fd, [memoryview(buffer)[:8192]], end - 4096), 4096)
say("direct/behind the end", os.preadv(fd, [memoryview(buffer)[:4096]], end), 0)
say("direct/extends", (os.pwritev(fd, [memoryview(buffer)[:4096]], end), os.fstat(fd).st_size - end), (4096, 4096))
os.close(fd)

# Sizes and times are right at once: on the descriptor, by name, in another process, after the close.
def looks(label, path, fd):
    def numbers(st):
        return st.st_size, st.st_mtime_ns, st.st_blocks if SIDE == "native" or STATE == "resident" else 0
    # A recall writes below, and then dates the file as before: below alone another time may be seen meanwhile.
    for _ in range(1 if STATE == "resident" else 500):
        below = numbers(os.stat(os.path.join(BELOW, path)))
        views = [numbers(os.stat(path)), *run_children([lambda: numbers(os.stat(path))])]
        if fd is not None:
            views.append(numbers(os.fstat(fd)))
        if all(view[:2] == below[:2] for view in views):
            break
        time.sleep(0.01)
    say(f"times/{label}", [view[:2] == below[:2] for view in views], [True] * len(views))


def step(label, flags, call):
    path = make("times-" + label.replace(" ", "-"))
    os.stat(path)
    fd = os.open(path, flags)
    os.fstat(fd)
    time.sleep(0.02)
    call(path, fd)
    looks(f"{label}, open", path, fd)
    os.close(fd)
    looks(f"{label}, closed", path, None)
    say(f"times/{label} moves", os.stat(path).st_mtime_ns > os.stat(path).st_atime_ns - 10**12, True)


step("write", os.O_WRONLY, lambda path, fd: os.write(fd, b"x" * 100))
step("append", os.O_WRONLY | os.O_APPEND, lambda path, fd: os.write(fd, b"x" * 100))
step("ftruncate", os.O_RDWR, lambda path, fd: os.ftruncate(fd, 1234))
step("truncate", os.O_RDONLY, lambda path, fd: os.truncate(path, 1234))
step("fallocate", os.O_RDWR, lambda path, fd: os.posix_fallocate(fd, 0, SIZE * 2))
step("O_TRUNC", os.O_WRONLY | os.O_TRUNC, lambda path, fd: None)
step("writev far", os.O_RDWR, lambda path, fd: os.pwritev(fd, [b"a", b"b"], SIZE * 3))
step("copy", os.O_RDWR, lambda path, fd: os.copy_file_range(fd, fd, 100, 0, SIZE))

# What a mapping writes is dated soon, and at once when the file is closed after it.
def dated(path):
    """Waits for the time below, up to five seconds; whether the file shows it."""
    for _ in range(500):
        if os.stat(path).st_mtime_ns == os.stat(os.path.join(BELOW, path)).st_mtime_ns:
            return True
        time.sleep(0.01)
    return False


path = make("times-mapped")
past = 10**18
fd = os.open(path, os.O_RDWR)
with mmap.mmap(fd, SIZE) as memory:
    os.utime(path, ns=(past, past))
    os.stat(path)
    time.sleep(0.02)
    memory[0:1] = b"m"
    memory.flush()
    say("times/mapped, open", (dated(path), os.stat(path).st_mtime_ns > past), (True, True))
    seen = os.stat(path).st_mtime_ns
    time.sleep(0.02)
    memory[0:1] = b"n"
    memory.flush()
os.close(fd)
say("times/mapped, closed", (dated(path), os.stat(path).st_mtime_ns > seen), (True, True))

# Holes.
fd = os.open("holes", os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 1 << 40)
os.pwrite(fd, b"x" * 4096, 1 << 20)
os.pwrite(fd, b"y" * 4096, 1 << 39)
os.fsync(fd)


def map_of(fd):
    found, at = [], 0
    while True:
        data = attempt(os.lseek, fd, at, os.SEEK_DATA)
        if isinstance(data, str):
            return found + [data]
        at = os.lseek(fd, data, os.SEEK_HOLE)
        found.append((data, at))


say("holes/map", map_of(fd), [(1 << 20, (1 << 20) + 4096), (1 << 39, (1 << 39) + 4096), "ENXIO"])
say("holes/behind the end", (attempt(os.lseek, fd, 1 << 40, os.SEEK_HOLE), attempt(os.lseek, fd, -1, os.SEEK_DATA)))
say("holes/read", os.pread(fd, 10, 12345), bytes(10))
say("holes/blocks", os.fstat(fd).st_blocks < 200, True)
os.close(fd)

# fallocate(2), every mode.
KEEP, PUNCH, ZERO = 1, 2, 16
for label, mode_bits, offset, length in (
    ("plain", 0, SIZE, 100_000), ("keep", KEEP, SIZE, 100_000), ("punch", PUNCH | KEEP, 4096, 65536),
    ("punch alone", PUNCH, 4096, 65536), ("punch odd", PUNCH | KEEP, 4099, 5000), ("zero", ZERO, 4096, 65536),
    ("zero keep", ZERO | KEEP, SIZE - 100, 5000), ("zero extends", ZERO, SIZE - 100, 5000),
    ("rubbish", 0x1000, 0, 10), ("no length", 0, 0, 0), ("too far", 0, 1 << 62, 1 << 62),
):
    path = make("fallocate-" + label.replace(" ", "-"))
    fd = os.open(path, os.O_RDWR)
    say(f"fallocate/{label}", ok(syscall, 285, fd, mode_bits, offset, length))
    os.close(fd)
    say(f"fallocate/{label} after", (os.stat(path).st_size, content(path)))
fd = os.open("fallocate-plain", os.O_RDONLY)
say("fallocate/read-only", ok(syscall, 285, fd, 0, 0, 10), "EBADF")
os.close(fd)

# Copies inside the kernel.
make("source")
for label, offset, length in (("all", 0, SIZE), ("odd", 4099, 12_345), ("behind the end", SIZE, 10), ("over the end", SIZE - 10, 100)):
    source, target = os.open("source", os.O_RDONLY), os.open(f"copy-{label}".replace(" ", "-"), os.O_RDWR | os.O_CREAT)
    copied = []
    at = 0
    while True:
        n = attempt(os.copy_file_range, source, target, length - at, offset + at, at)
        if isinstance(n, str) or n == 0:
            copied.append(n)
            break
        at += n
        if at >= length:
            break
    say(f"copy/{label}", (copied, os.pread(target, SIZE, 0)))
    os.close(source)
    os.close(target)
fd = os.open("source", os.O_RDWR)
say("copy/onto itself", attempt(os.copy_file_range, fd, fd, 5000, 0, 1000), "EINVAL")
target = os.open("sent", os.O_RDWR | os.O_CREAT)
at = 0
while at < SIZE:
    at += os.sendfile(target, fd, at, SIZE - at)
say("sendfile", os.pread(target, SIZE, 0) == os.pread(fd, SIZE, 0), True)
read, write = os.pipe()
moved = os.splice(fd, write, 5000, offset_src=1000)
say("splice/out", (moved, os.read(read, 5000) == os.pread(fd, 5000, 1000)), (5000, True))
os.write(write, b"spliced")
say("splice/in", (os.splice(read, target, 7, offset_dst=2000), os.pread(target, 7, 2000)), (7, b"spliced"))
a, b = socket.socketpair()
say("sendfile/to a socket", (os.sendfile(a.fileno(), fd, 3, 1000), b.recv(1000) == os.pread(fd, 1000, 3)), (1000, True))

# Descriptors and their limits.
say("open/read-only writes", ok(os.pwrite, os.open("source", os.O_RDONLY), b"x", 0), "EBADF")
say("open/write-only reads", attempt(os.pread, os.open("source", os.O_WRONLY), 1, 0), "EBADF")
say("open/O_PATH reads", attempt(os.pread, os.open("source", os.O_PATH), 1, 0), "EBADF")
say("open/negative offset", attempt(os.pread, fd, 1, -1), "EINVAL")
say("open/huge offset", attempt(os.pwrite, fd, b"x", (1 << 63) - 2))
say("truncate/negative", ok(os.truncate, "source", -1), "EINVAL")
say("truncate/huge", ok(os.truncate, "source", (1 << 63) - 1))
say("sync", (ok(os.fsync, fd), ok(os.fdatasync, fd), ok(syscall, 277, fd, 0, 0, 7), ok(syscall, 306, fd)), ("ok",) * 4)
say("advice", (ok(os.posix_fadvise, fd, 0, 0, os.POSIX_FADV_DONTNEED), ok(syscall, 187, fd, 0, 4096)), ("ok", "ok"))
for label, flags in (("O_SYNC", os.O_SYNC), ("O_DSYNC", os.O_DSYNC)):
    say(f"open/{label}", written("source", b"synced", os.O_WRONLY | flags), 6)
