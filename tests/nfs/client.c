/* An NFS client for tests: commands on standard input, one answer line each on standard output.
 *
 *   client URL UID
 *
 * Answers are "ok ..." or "err ERRNO TEXT". It keeps file handles open in numbered slots, so that a test can use one again after
 * anything was done to the server. Built on libnfs; nothing is retried here but broken connections.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <nfsc/libnfs.h>
#include <nfsc/libnfs-raw.h>
#include <nfsc/libnfs-raw-nfs4.h>

#define SLOTS 1024
/* libnfs 4.0 sends no more than this at once reliably over NFSv4. */
#define WRITE_MAX 1000

static struct nfs_context *nfs;
static struct nfsfh *slots[SLOTS];
static char path[4096], other[4096];

/* The errno behind a failure: libnfs 4.0 tells some only in its text, like "failed with NFS3ERR_JUKEBOX(-11)". */
static int reason(int status, const char *text) {
    const char *number = text ? strstr(text, "(-") : NULL;
    if (text && (strstr(text, "JUKEBOX") || strstr(text, "ERR_DELAY")))
        return EAGAIN;
    return number ? atoi(number + 2) : -status;
}

static void answer(int status) {
    const char *text = nfs_get_error(nfs);
    if (status < 0)
        printf("err %d %s\n", reason(status, text), text ? text : "");
    else
        printf("ok %d\n", status);
}

/* The same of a status that is an errno already. */
static void told(int status) {
    if (status < 0)
        printf("err %d %s\n", -status, strerror(-status));
    else
        answer(status);
}

/* Saves `len` bytes where the test looks at them. */
static int save(const char *file, const char *data, size_t len) {
    FILE *out = fopen(file, "w");
    if (!out || fwrite(data, 1, len, out) != len || fclose(out))
        return -EIO;
    return (int)len;
}

/* A read or a write under way. */
struct reading {
    int status;
    int done;
    int writes;
    char *data;
};

static int waiting;

static void landed(int status, struct nfs_context *context, void *data, void *private_data) {
    struct reading *one = private_data;
    /* Of a failed read libnfs 4.0 passes on EFAULT; what it was is in the text, until the next call. */
    one->status = status < 0 ? -reason(status, nfs_get_error(context)) : status;
    one->done = 1;
    if (status > 0 && !one->writes) {
        one->data = malloc((size_t)status);
        memcpy(one->data, data, (size_t)status);
    }
    waiting--;
}

static void start(struct reading *one, int slot, uint64_t offset, uint64_t len) {
    if (nfs_pread_async(nfs, slots[slot], offset, len, landed, one))
        one->status = -EIO;
    else
        waiting++;
}

/* Waits for all reads under way. */
static void land(void) {
    while (waiting > 0) {
        struct pollfd fd = {.fd = nfs_get_fd(nfs), .events = (short)nfs_which_events(nfs)};
        if (poll(&fd, 1, 100) < 0 || nfs_service(nfs, fd.revents) < 0)
            break;
    }
}

/* pread of up to `len` bytes into FILE. */
static int read_to(int slot, uint64_t offset, uint64_t len, const char *file) {
    char *data = malloc(len ? len : 1);
    uint64_t got = 0;
    while (got < len) {
        uint64_t part = len - got < 65536 ? len - got : 65536;
        struct reading one = {0};
        waiting = 0;
        start(&one, slot, offset + got, part);
        land();
        if (!one.done || one.status < 0) {
            free(data);
            return one.done ? one.status : -ENOTCONN;
        }
        if (one.status == 0)
            break;
        memcpy(data + got, one.data, (size_t)one.status);
        free(one.data);
        got += (uint64_t)one.status;
    }
    int status = save(file, data, got);
    free(data);
    return status;
}

static int write_from(const char *file) {
    FILE *in = fopen(file, "r");
    if (!in)
        return -errno;
    struct nfsfh *fh;
    /* nfs_creat opens for nothing over NFSv4. */
    int status = nfs_open2(nfs, path, O_CREAT | O_RDWR, 0644, &fh);
    char data[WRITE_MAX];
    uint64_t done = 0;
    while (status >= 0) {
        size_t n = fread(data, 1, sizeof data, in);
        if (n == 0)
            break;
        status = nfs_pwrite(nfs, fh, done, n, data);
        done += n;
    }
    fclose(in);
    if (status < 0)
        return status;
    status = nfs_fsync(nfs, fh);
    int closed = nfs_close(nfs, fh);
    return status < 0 ? status : closed < 0 ? closed : (int)done;
}

static void list(void) {
    struct nfsdir *dir;
    int status = nfs_opendir(nfs, path, &dir);
    if (status < 0) {
        answer(status);
        return;
    }
    printf("ok");
    for (struct nfsdirent *entry; (entry = nfs_readdir(nfs, dir));)
        if (strcmp(entry->name, ".") && strcmp(entry->name, ".."))
            printf(" %s", entry->name);
    printf("\n");
    nfs_closedir(nfs, dir);
}

static void tell(int status, const struct nfs_stat_64 *st) {
    if (status < 0)
        answer(status);
    else
        printf("ok size=%llu nlink=%llu ino=%llu uid=%llu mode=%llo mtime=%llu\n", (unsigned long long)st->nfs_size,
               (unsigned long long)st->nfs_nlink, (unsigned long long)st->nfs_ino, (unsigned long long)st->nfs_uid,
               (unsigned long long)(st->nfs_mode & 07777), (unsigned long long)st->nfs_mtime);
}

/* Many reads at once, of slots 0 to n - 1: "ok FINE LATER OTHER", how many gave all bytes, were told to come back later, or anything else. Each that gave its
 * bytes has them saved as DIR/SLOT. */
static void storm(int n, uint64_t len, const char *dir) {
    struct reading *all = calloc((size_t)n, sizeof *all);
    int fine = 0, later = 0, bad = 0;
    waiting = 0;
    for (int i = 0; i < n; i++)
        start(&all[i], i, 0, len);
    printf("sent\n");
    fflush(stdout);
    land();
    for (int i = 0; i < n; i++) {
        if (all[i].done && all[i].status == (int)len) {
            char file[4200];
            snprintf(file, sizeof file, "%s/%d", dir, i);
            fine += save(file, all[i].data, len) == (int)len;
        } else if (all[i].done && all[i].status == -EAGAIN) {
            later++;
        } else {
            fprintf(stderr, "slot %d: %d %s\n", i, all[i].status, nfs_get_error(nfs));
            bad++;
        }
        free(all[i].data);
    }
    free(all);
    printf("ok %d %d %d\n", fine, later, bad);
}

/* One thing that clients do all day: `read` of slot 0, `stat` of the path, `create` of the path, which is closed and removed again. */
static int once(const char *what, uint64_t len, char *data) {
    if (!strcmp(what, "read")) {
        int status = (int)nfs_pread(nfs, slots[0], 0, len, data);
        return status == (int)len ? 0 : status < 0 ? status : -EIO;
    }
    if (!strcmp(what, "stat")) {
        struct nfs_stat_64 st;
        return nfs_stat64(nfs, path, &st);
    }
    struct nfsfh *fh;
    /* nfs_creat opens for nothing over NFSv4. */
    int status = nfs_open2(nfs, path, O_CREAT | O_RDWR, 0644, &fh);
    if (status >= 0)
        status = nfs_close(nfs, fh);
    return status < 0 ? status : nfs_unlink(nfs, path);
}

static int by_time(const void *a, const void *b) {
    const double *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

/* Does it again and again for `seconds`: "ok COUNT P50 P99 MAX", in microseconds. */
static void pace(const char *what, double seconds, uint64_t len) {
    enum { MAX = 1000000 };
    double *times = malloc(MAX * sizeof *times), total = 0;
    char *data = malloc(len ? len : 1);
    int n = 0, status = 0;
    while (total < seconds && n < MAX) {
        struct timespec a, b;
        clock_gettime(CLOCK_MONOTONIC, &a);
        status = once(what, len, data);
        clock_gettime(CLOCK_MONOTONIC, &b);
        if (status < 0)
            break;
        times[n] = (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) / 1e9;
        total += times[n++];
    }
    if (status < 0) {
        answer(status);
    } else {
        qsort(times, (size_t)n, sizeof *times, by_time);
        printf("ok %d %.0f %.0f %.0f\n", n, times[n / 2] * 1e6, times[n * 99 / 100] * 1e6, times[n - 1] * 1e6);
    }
    free(times);
    free(data);
}

/* What NFSv4 calls a file. libnfs reads by the state of an open only, which ends with the server that gave it; by the handle alone
 * anybody may read at any time, in an operation made by hand. */
static struct {
    char bytes[128];
    u_int len;
} handle;

/* An operation under way, made by hand. */
struct compound {
    int status;
    int done;
    char *data;
    u_int len;
};

static void answered(struct rpc_context *rpc, int status, void *data, void *private_data) {
    (void)rpc;
    struct compound *one = private_data;
    COMPOUND4res *res = data;
    one->done = 1;
    waiting--;
    if (status != RPC_STATUS_SUCCESS) {
        one->status = -ENOTCONN;
        return;
    }
    /* Numbers below 10,000 are errnos. */
    one->status = res->status == NFS4ERR_DELAY ? -EAGAIN : -(int)res->status;
    if (one->status)
        return;
    nfs_resop4 *last = &res->resarray.resarray_val[res->resarray.resarray_len - 1];
    if (last->resop == OP_GETFH) {
        nfs_fh4 *fh = &last->nfs_resop4_u.opgetfh.GETFH4res_u.resok4.object;
        handle.len = fh->nfs_fh4_len <= sizeof handle.bytes ? fh->nfs_fh4_len : 0;
        memcpy(handle.bytes, fh->nfs_fh4_val, handle.len);
    } else {
        READ4resok *found = &last->nfs_resop4_u.opread.READ4res_u.resok4;
        one->len = found->data.data_len;
        one->data = malloc(one->len ? one->len : 1);
        memcpy(one->data, found->data.data_val, one->len);
    }
}

static void compound(struct compound *one, nfs_argop4 *ops, u_int count) {
    COMPOUND4args args = {0};
    args.argarray.argarray_len = count;
    args.argarray.argarray_val = ops;
    waiting = 1;
    if (rpc_nfs4_compound_async(nfs_get_rpc_context(nfs), answered, &args, one)) {
        one->status = -EIO;
        return;
    }
    land();
    if (!one->done)
        one->status = -ENOTCONN;
}

/* Keeps the handle of a path from the server's root on. */
static int take_handle(char *whole) {
    nfs_argop4 ops[32] = {{0}};
    u_int n = 0;
    ops[n++].argop = OP_PUTROOTFH;
    for (char *rest = NULL, *name = strtok_r(whole, "/", &rest); name && n < 30; name = strtok_r(NULL, "/", &rest)) {
        ops[n].argop = OP_LOOKUP;
        ops[n].nfs_argop4_u.oplookup.objname.utf8string_len = (u_int)strlen(name);
        ops[n++].nfs_argop4_u.oplookup.objname.utf8string_val = name;
    }
    ops[n++].argop = OP_GETFH;
    struct compound one = {0};
    compound(&one, ops, n);
    return one.status < 0 ? one.status : (int)handle.len;
}

/* READ by that handle, without any open: of up to `len` bytes into FILE. */
static int read_by_handle(uint64_t offset, uint64_t len, const char *file) {
    char *data = malloc(len ? len : 1);
    uint64_t got = 0;
    int status = 0;
    while (got < len) {
        nfs_argop4 ops[2] = {{0}};
        ops[0].argop = OP_PUTFH;
        ops[0].nfs_argop4_u.opputfh.object.nfs_fh4_len = handle.len;
        ops[0].nfs_argop4_u.opputfh.object.nfs_fh4_val = handle.bytes;
        ops[1].argop = OP_READ;
        ops[1].nfs_argop4_u.opread.offset = offset + got;
        ops[1].nfs_argop4_u.opread.count = len - got < 65536 ? (count4)(len - got) : 65536;
        struct compound one = {0};
        compound(&one, ops, 2);
        status = one.status;
        if (status < 0 || one.len == 0) {
            free(one.data);
            break;
        }
        memcpy(data + got, one.data, one.len);
        free(one.data);
        got += one.len;
    }
    if (status >= 0)
        status = save(file, data, got);
    free(data);
    return status;
}

static int mounted(char **argv) {
    nfs = nfs_init_context();
    struct nfs_url *url = nfs ? nfs_parse_url_dir(nfs, argv[1]) : NULL;
    if (!url)
        exit(2);
    nfs_set_uid(nfs, atoi(argv[2]));
    nfs_set_gid(nfs, atoi(argv[2]));
    nfs_set_autoreconnect(nfs, -1);
    return nfs_mount(nfs, url->server, url->path);
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    answer(mounted(argv));
    fflush(stdout);
    char line[9000];
    while (fgets(line, sizeof line, stdin)) {
        struct nfs_stat_64 st;
        char file[4096], what[32];
        unsigned long long a, b;
        double seconds;
        int slot, status;
        if (sscanf(line, "open %d %d %4095s", &slot, &status, path) == 3 && slot >= 0 && slot < SLOTS) {
            answer(nfs_open(nfs, path, status ? O_RDWR : O_RDONLY, &slots[slot]));
        } else if (sscanf(line, "become %d", &status) == 1) {
            /* The same handles, asked for by another user: what a client that checks nothing itself would do. */
            nfs_set_uid(nfs, status);
            nfs_set_gid(nfs, status);
            answer(0);
        } else if (!strcmp(line, "again\n")) {
            /* A connection of its own for the handles there are: libnfs 4.0 mends none of NFSv4. The old one is not closed, because
             * the server it led to is gone. */
            answer(mounted(argv));
        } else if (sscanf(line, "close %d", &slot) == 1) {
            status = nfs_close(nfs, slots[slot]);
            slots[slot] = NULL;
            answer(status);
        } else if (sscanf(line, "pread %d %llu %llu %4095s", &slot, &a, &b, file) == 4) {
            told(read_to(slot, a, b, file));
        } else if (sscanf(line, "pwrite %d %llu %4095s", &slot, &a, other) == 3) {
            struct reading one = {.writes = 1};
            waiting = 1;
            if (nfs_pwrite_async(nfs, slots[slot], a, strlen(other), other, landed, &one))
                waiting = 0;
            land();
            told(one.done ? one.status : -ENOTCONN);
        } else if (sscanf(line, "fstat %d", &slot) == 1) {
            tell(nfs_fstat64(nfs, slots[slot], &st), &st);
        } else if (sscanf(line, "stat %4095s", path) == 1) {
            tell(nfs_stat64(nfs, path, &st), &st);
        } else if (sscanf(line, "put %4095s %4095s", file, path) == 2) {
            answer(write_from(file));
        } else if (sscanf(line, "list %4095s", path) == 1) {
            list();
        } else if (sscanf(line, "rename %4095s %4095s", path, other) == 2) {
            answer(nfs_rename(nfs, path, other));
        } else if (sscanf(line, "link %4095s %4095s", path, other) == 2) {
            answer(nfs_link(nfs, path, other));
        } else if (sscanf(line, "unlink %4095s", path) == 1) {
            answer(nfs_unlink(nfs, path));
        } else if (sscanf(line, "chmod %o %4095s", (unsigned *)&status, path) == 2) {
            answer(nfs_chmod(nfs, path, status));
        } else if (sscanf(line, "mkdir %4095s", path) == 1) {
            answer(nfs_mkdir(nfs, path));
        } else if (sscanf(line, "truncate %llu %4095s", &a, path) == 2) {
            answer(nfs_truncate(nfs, path, a));
        } else if (sscanf(line, "lock %d %d %llu %llu", &slot, &status, &a, &b) == 4) {
            /* status: 1 locks for writing, 0 unlocks. */
            struct nfs4_flock lock = {.l_type = status ? F_WRLCK : F_UNLCK, .l_whence = SEEK_SET, .l_start = a, .l_len = b};
            answer(nfs_fcntl(nfs, slots[slot], NFS4_F_SETLK, &lock));
        } else if (sscanf(line, "storm %d %llu %4095s", &slot, &a, file) == 3 && slot <= SLOTS) {
            storm(slot, a, file);
        } else if (sscanf(line, "pace %31s %lf %llu %4095s", what, &seconds, &a, path) == 4) {
            pace(what, seconds, a);
        } else if (sscanf(line, "handle %4095s", other) == 1) {
            told(take_handle(other));
        } else if (sscanf(line, "hread %llu %llu %4095s", &a, &b, file) == 3) {
            told(read_by_handle(a, b, file));
        } else {
            printf("err 22 no such command: %s", line);
        }
        fflush(stdout);
    }
    /* A server keeps what an NFSv4 client leaves open for as long as its lease lasts. */
    for (int i = 0; i < SLOTS; i++)
        if (slots[i])
            nfs_close(nfs, slots[i]);
    nfs_destroy_context(nfs);
    return 0;
}
