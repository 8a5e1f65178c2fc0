"""Opens, maps, reads and writes one file as told, a line a command. Blocks are told by the distinct 64-bit words in them."""
import errno, mmap, os, sys

PATH, BLOCK = sys.argv[1], int(sys.argv[2])
buffer = mmap.mmap(-1, BLOCK)  # aligned, for O_DIRECT
view = memoryview(buffer)
files, maps = {}, {}
KINDS = {"r": (mmap.MAP_SHARED, mmap.PROT_READ), "w": (mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
         "p": (mmap.MAP_PRIVATE, mmap.PROT_READ)}


def words(data):
    return "ok " + " ".join(map(str, set(memoryview(data).cast("Q"))))


def fill(word):
    view[:] = word.to_bytes(8, "little") * (BLOCK // 8)
    return view


def run(verb, name, *rest):
    if verb == "open":
        files[name] = os.open(PATH, int(rest[0]))
    elif verb == "close":
        os.close(files.pop(name))
    elif verb == "read":
        got = os.preadv(files[name], [view], int(rest[0]) * BLOCK)
        return words(view) if got == BLOCK else f"short {got}"
    elif verb == "write":
        put = os.pwritev(files[name], [fill(int(rest[1]))], int(rest[0]) * BLOCK)
        return "ok" if put == BLOCK else f"short {put}"
    elif verb == "append":
        return "ok" if os.write(files[name], fill(int(rest[0]))) == BLOCK else "short"
    elif verb == "map":
        flags, protection = KINDS[rest[2]]
        maps[name] = mmap.mmap(files[rest[0]], int(rest[1]) * BLOCK, flags=flags, prot=protection)
    elif verb == "peek":
        at = int(rest[0]) * BLOCK
        return words(maps[name][at:at + BLOCK])
    elif verb == "poke":
        at = int(rest[0]) * BLOCK
        maps[name][at:at + BLOCK] = int(rest[1]).to_bytes(8, "little") * (BLOCK // 8)
    elif verb == "unmap":
        maps.pop(name).close()
    else:
        return f"what is {verb}?"
    return "ok"


for line in sys.stdin:
    try:
        answer = run(*line.split())
    except OSError as error:
        answer = f"error {error.errno}"
    print(answer, flush=True)
