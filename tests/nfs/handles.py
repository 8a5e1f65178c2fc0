"""File handles as an NFS server uses them: name_to_handle_at(2) and open_by_handle_at(2), for tests.

handles.py MOUNT reads commands: "take PATH" answers a handle in hex; "use HANDLE" answers "INODE SIZE NLINK TYPE BLAKE" (the content's
blake2b, or - where there is none), or "errno N". No descriptor stays open between commands.
"""

import ctypes
import hashlib
import os
import stat
import sys

libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100


class Handle(ctypes.Structure):
    _fields_ = [("len", ctypes.c_uint), ("kind", ctypes.c_int), ("bytes", ctypes.c_ubyte * 128)]


def take(path):
    handle, mount = Handle(len=128), ctypes.c_int()
    if libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount), 0):
        return f"errno {ctypes.get_errno()}"
    return f"{handle.kind:02x}{bytes(handle.bytes[: handle.len]).hex()}"


def use(text):
    raw = bytes.fromhex(text)
    handle = Handle(len=len(raw) - 1, kind=raw[0])
    handle.bytes[: len(raw) - 1] = raw[1:]
    mount = os.open(sys.argv[1], os.O_RDONLY)
    try:
        fd = libc.open_by_handle_at(mount, ctypes.byref(handle), os.O_PATH)
        if fd < 0:
            return f"errno {ctypes.get_errno()}"
        try:
            found = os.fstat(fd)
            content = "-"
            if stat.S_ISREG(found.st_mode):
                # Through the handle, not by a name.
                reading = libc.open_by_handle_at(mount, ctypes.byref(handle), os.O_RDONLY)
                if reading < 0:
                    return f"errno {ctypes.get_errno()}"
                with os.fdopen(reading, "rb") as file:
                    content = hashlib.blake2b(file.read(), digest_size=16).hexdigest()
            elif stat.S_ISLNK(found.st_mode):
                content = os.readlink("", dir_fd=fd)
            elif stat.S_ISDIR(found.st_mode):
                content = ",".join(sorted(os.listdir(f"/proc/self/fd/{fd}"))) or "-"
            return f"{found.st_ino} {found.st_size} {found.st_nlink} {stat.S_IFMT(found.st_mode):o} {content}"
        finally:
            os.close(fd)
    finally:
        os.close(mount)


for line in sys.stdin:
    verb, argument = line.rstrip("\n").split(" ", 1)
    try:
        print(take(argument) if verb == "take" else use(argument), flush=True)
    except OSError as error:
        print(f"errno {error.errno}", flush=True)
