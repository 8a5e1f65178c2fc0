/* For NFS-Ganesha, by LD_PRELOAD: file handles of tierfs mounts that stay good when the mount is made anew.
 *
 * Ganesha puts the filesystem's id (statfs(2), f_fsid) into every file handle. FUSE filesystems have none, and Ganesha takes the
 * device number instead, which the kernel gives out anew at each mount: after a reboot, or a crash of the tierfs daemon, all handles
 * would be stale. Here statfs of a tierfs mount tells an id made from the share's path, which /proc/self/mounts shows as the
 * mount's source. The id of a share never changes; a share that moves to another path gets another.
 *
 *   gcc -O2 -shared -fPIC -o tierfs-fsid.so tierfs-fsid.c
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <mntent.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/vfs.h>

#define FUSE_SUPER_MAGIC 0x65735546

/* FNV-1a, 64 bits. */
static uint64_t hash(const char *text) {
    uint64_t sum = 0xcbf29ce484222325u;
    for (; *text; text++)
        sum = (sum ^ (unsigned char)*text) * 0x100000001b3u;
    return sum;
}

/* The share mounted at `path`: 0 and its id, or -1 where no tierfs is mounted. Of several mounts on one place the last counts. */
static int share_of(const char *path, uint64_t *id) {
    FILE *mounts = setmntent("/proc/self/mounts", "re");
    if (!mounts)
        return -1;
    int found = -1;
    struct mntent entry;
    char line[16384];
    while (getmntent_r(mounts, &entry, line, sizeof line)) {
        if (strcmp(entry.mnt_dir, path))
            continue;
        found = strcmp(entry.mnt_type, "fuse.tierfs") ? -1 : 0;
        *id = hash(entry.mnt_fsname);
    }
    endmntent(mounts);
    return found;
}

int statfs(const char *path, struct statfs *buffer) {
    static int (*next)(const char *, struct statfs *);
    if (!next)
        next = (int (*)(const char *, struct statfs *))dlsym(RTLD_NEXT, "statfs");
    int answer = next(path, buffer);
    if (answer)
        return answer;
    uint64_t id;
    int32_t words[2];
    memcpy(words, &buffer->f_fsid, sizeof words);
    if (buffer->f_type != FUSE_SUPER_MAGIC || words[0] || words[1])
        return 0;
    int keep = errno;
    if (share_of(path, &id) == 0) {
        /* Never 0, which means none. */
        id |= 1;
        memcpy(&buffer->f_fsid, &id, sizeof id);
    }
    errno = keep;
    return 0;
}

#if __SIZEOF_LONG__ == 8
/* The same structure on 64-bit systems. */
int statfs64(const char *path, struct statfs64 *buffer) { return statfs(path, (struct statfs *)buffer); }
#endif
