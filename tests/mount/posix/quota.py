# Quotas: A may have 4 MB and 20 inodes, what is in the directory of project 77 4 MB; B has none. Limits are set from outside.
def fill(path):
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    for at in range(0, 16 << 20, 1 << 18):
        result = attempt(os.pwrite, fd, noise(1 << 18), at)
        if isinstance(result, str):
            os.close(fd)
            return result
    os.close(fd)
    return "room"


def create_many(directory):
    for n in range(40):
        result = attempt(os.open, f"{directory}/{n}", os.O_CREAT | os.O_WRONLY)
        if isinstance(result, str):
            return result
    return "room"


os.mkdir("free")
os.chmod("free", 0o777)
say("quota/A writes", as_user(A, fill, "free/a"), "EDQUOT")
say("quota/B writes", as_user(B, fill, "free/b"), "room")
os.chmod("free/b", 0o666)
say("quota/A writes B's", as_user(A, written, "free/b"), 1)
os.unlink("free/a")
say("quota/A has room again", as_user(A, written, make("free/a", 0o666, A, A, size=10)), 1)
say("quota/chown beyond it", ok(os.chown, "free/b", A, A))
say("quota/A creates", as_user(A, create_many, "free"), "EDQUOT")
say("quota/B creates", as_user(B, create_many, "free"))
# The other side has the same limits.
import shutil
shutil.rmtree("free")
