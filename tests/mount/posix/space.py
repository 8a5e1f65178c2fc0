# Space kept for root: users get ENOSPC before it, whoever serves them, and root can use it.
def fill(path, how):
    """Writes until there is no room; how that ended, and whether the reserve is untouched."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    at, ended = 0, None
    while ended is None:
        if how == "fallocate":
            result = ok(os.posix_fallocate, fd, at, 1 << 20)
        elif how == "direct":
            result = attempt(os.pwritev, fd, [buffer], at)
        else:
            result = attempt(os.pwrite, fd, bytes(1 << 20), at)
        if isinstance(result, str) and result != "ok":
            ended = result
        elif result != "ok" and result < 1 << 20:
            at += result
        else:
            at += 1 << 20
    attempt(os.fsync, fd)
    os.close(fd)
    vfs = os.statvfs(".")
    return ended, vfs.f_bfree - vfs.f_bavail > 500 and vfs.f_bfree > 500


buffer = mmap.mmap(-1, 1 << 20)
os.mkdir("users")
os.chmod("users", 0o777)
for how in ("write", "direct", "fallocate"):
    say(f"reserve/{how} by a user", as_user(A, fill, "users/file", how), ("ENOSPC", True))
    os.unlink("users/file")
    for _ in range(500):
        if os.statvfs(".").f_bavail > 5000:
            break
        time.sleep(0.01)
say("reserve/truncate", as_user(A, lambda: ok(os.truncate, "users/none", 5)), "ENOENT")
