# Locks between processes: flock, POSIX, OFD, leases.
F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 36, 37, 38
make("file")


def lock(kind, start=0, length=0, whence=0, pid=0):
    return struct.pack("hhqqi4x", kind, whence, start, length, pid)


class Child:
    """Another process that does as told."""

    def __init__(self):
        self.to, self.back = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            scope = dict(globals())
            for line in os.fdopen(self.to[0]):
                try:
                    answer = repr(attempt(lambda: eval(line, scope)))
                except BaseException as error:
                    answer = repr(f"child: {error!r}")
                os.write(self.back[1], (answer + "\n").encode())
            os._exit(0)
        self.reply = os.fdopen(self.back[0])

    def send(self, line):
        os.write(self.to[1], (line + "\n").encode())

    def __call__(self, line):
        self.send(line)
        return eval(self.reply.readline())


def found(fd, command, kind, start=0, length=0):
    """What F_GETLK tells: kind, whence, start, length and whose."""
    told = struct.unpack("hhqqi4x", fcntl.fcntl(fd, command, lock(kind, start, length)))
    whose = "child" if told[4] in (one.pid, two.pid) else told[4]
    return told[:4] + (whose,) if told[0] != fcntl.F_UNLCK else "free"


one, two = Child(), Child()
for child in (one, two):
    child("globals().update(fd=os.open('file', os.O_RDWR))")
fd = os.open("file", os.O_RDWR)
R, W, U = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK

# POSIX record locks.
say("posix/one locks", one(f"fcntl.fcntl(fd, fcntl.F_SETLK, lock({W}, 10, 10)) and 'ok'"), "ok")
say("posix/two cannot", two(f"fcntl.fcntl(fd, fcntl.F_SETLK, lock({R}, 15, 1)) and 'ok'"), "EAGAIN")
say("posix/two beside it", two(f"fcntl.fcntl(fd, fcntl.F_SETLK, lock({W}, 20, 10)) and 'ok'"), "ok")
say("posix/told", found(fd, fcntl.F_GETLK, W, 0, 100), (W, 0, 10, 10, "child"))
say("posix/told of the second", found(fd, fcntl.F_GETLK, R, 20, 1), (W, 0, 20, 10, "child"))
say("posix/free elsewhere", found(fd, fcntl.F_GETLK, W, 100, 0), "free")
say("posix/split", one(f"fcntl.fcntl(fd, fcntl.F_SETLK, lock({U}, 13, 2)) and 'ok'"), "ok")
say("posix/after the split", (found(fd, fcntl.F_GETLK, W, 0, 100), found(fd, fcntl.F_GETLK, W, 13, 2), found(fd, fcntl.F_GETLK, W, 14, 5)))
say("posix/shared", (one(f"fcntl.fcntl(fd, fcntl.F_SETLK, lock({R}, 100, 1)) and 'ok'"), two(f"fcntl.fcntl(fd, fcntl.F_SETLK, lock({R}, 100, 1)) and 'ok'")), ("ok", "ok"))
one.send(f"fcntl.fcntl(fd, fcntl.F_SETLKW, lock({W}, 25, 1)) and 'ok'")
time.sleep(0.1)
say("posix/deadlock", two(f"fcntl.fcntl(fd, fcntl.F_SETLKW, lock({W}, 10, 1)) and 'ok'"), "EDEADLOCK")
say("posix/waits until another unlocks", (two(f"fcntl.fcntl(fd, fcntl.F_SETLK, lock({U}, 25, 1)) and 'ok'"), eval(one.reply.readline())), ("ok", "ok"))
say("posix/any close unlocks", one("os.close(os.open('file', os.O_RDONLY))"), None)
say("posix/unlocked by the close", found(fd, fcntl.F_GETLK, W, 0, 20), "free")
say("posix/read-only cannot write-lock", attempt(fcntl.fcntl, os.open("file", os.O_RDONLY), fcntl.F_SETLK, lock(W)), "EBADF")
fd = os.open("file", os.O_RDWR)

# Open file description locks.
two(f"fcntl.fcntl(fd, fcntl.F_SETLK, lock({U}))")
say("ofd/one locks", one(f"fcntl.fcntl(fd, F_OFD_SETLK, lock({W}, 0, 10)) and 'ok'"), "ok")
say("ofd/two cannot", two(f"fcntl.fcntl(fd, F_OFD_SETLK, lock({W}, 5, 1)) and 'ok'"), "EAGAIN")
say("ofd/against posix", two(f"fcntl.fcntl(fd, fcntl.F_SETLK, lock({W}, 5, 1)) and 'ok'"), "EAGAIN")
say("ofd/told", found(fd, F_OFD_GETLK, W, 0, 0), (W, 0, 0, 10, -1))
say("ofd/told to posix", found(fd, fcntl.F_GETLK, W, 0, 5), (W, 0, 0, 10, -1))
one("os.close(os.open('file', os.O_RDONLY))")
say("ofd/stays over other closes", found(fd, F_OFD_GETLK, W, 0, 5), (W, 0, 0, 10, -1))
one("globals().update(copy=os.dup(fd))")
one("os.close(fd)")
say("ofd/stays for a duplicate", found(fd, F_OFD_GETLK, W, 0, 5), (W, 0, 0, 10, -1))
one("os.close(copy)")
say("ofd/gone with the last", found(fd, F_OFD_GETLK, W, 0, 5), "free")
one("globals().update(fd=os.open('file', os.O_RDWR))")

# flock.
say("flock/one", one("fcntl.flock(fd, fcntl.LOCK_SH)"), None)
say("flock/two shares", two("fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)"), None)
say("flock/none alone", two("fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)"), "EAGAIN")
say("flock/one leaves", one("fcntl.flock(fd, fcntl.LOCK_UN)"), None)
say("flock/two alone", two("fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)"), None)
say("flock/apart from posix", one(f"fcntl.fcntl(fd, fcntl.F_SETLK, lock({W})) and 'ok'"), "ok")
one.send("fcntl.flock(fd, fcntl.LOCK_EX)")
time.sleep(0.1)
two("os.close(fd)")
say("flock/gone with the close", eval(one.reply.readline()), None)
pid = os.fork()
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
say("flock/second descriptor of one process", one("fcntl.flock(os.open('file', os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)"), "EAGAIN")

# A holder that is killed holds nothing.
os.kill(one.pid, signal.SIGKILL)
os.waitpid(one.pid, 0)
say("killed/posix is free", attempt(fcntl.fcntl, fd, fcntl.F_SETLK, lock(W)) == lock(W), True)
say("killed/flock is free", attempt(fcntl.flock, fd, fcntl.LOCK_EX | fcntl.LOCK_NB), None)

# Leases: told of by a signal when somebody opens.
make("leased", tiered=False)
signal.signal(signal.SIGIO, lambda *_: None)
signal.siginterrupt(signal.SIGIO, False)
F_SETLEASE, F_GETLEASE = 1024, 1025
lease = os.open("leased", os.O_RDONLY)
say("lease/set", attempt(fcntl.fcntl, lease, F_SETLEASE, R))
say("lease/told", attempt(fcntl.fcntl, lease, F_GETLEASE))
say("lease/breaks", two("os.open('leased', os.O_WRONLY | os.O_NONBLOCK)") == "EAGAIN")
say("lease/given back", attempt(fcntl.fcntl, lease, F_SETLEASE, U))
os.close(lease)
lease = os.open("leased", os.O_RDWR)
say("lease/write", attempt(fcntl.fcntl, lease, F_SETLEASE, W))
say("lease/write broken by a reader", two("os.open('leased', os.O_RDONLY | os.O_NONBLOCK)") == "EAGAIN")
os.kill(two.pid, signal.SIGKILL)
os.waitpid(two.pid, 0)
