/* Loaded into fsx: O_DIRECT on its file, with the aligned buffers that it needs, and pauses after a close, in which the
 * file can be moved. FSX_FILE: the end of the file's path; FSX_DIRECT: O_DIRECT; FSX_PAUSE_ONE_IN: a pause after every so many
 * closes; FSX_PAUSE_US: longest pause of any length in microseconds; FSX_PATIENCE_US: longest wait for the file to move.
 *
 * fsx 0.3.2 never unmaps what it has read by a mapping, and a mapping keeps its file from moving: what is left is unmapped before a
 * pause, and outlives its descriptor until then. */
#define _GNU_SOURCE
#define _LARGEFILE64_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int direct, file = -1;
static char name[4096];

/* Mappings of the file. */
enum { MAPPINGS = 65536 };
static struct {
	void *at;
	size_t len;
} mappings[MAPPINGS];
static int mapped;

static void *noted(void *at, size_t len, int fd)
{
	if (at != MAP_FAILED && fd >= 0 && fd == file) {
		if (mapped == MAPPINGS)
			abort();
		mappings[mapped].at = at;
		mappings[mapped++].len = len;
	}
	return at;
}

void *mmap(void *at, size_t len, int protection, int flags, int fd, off_t offset)
{
	return noted(NEXT(mmap)(at, len, protection, flags, fd, offset), len, fd);
}

void *mmap64(void *at, size_t len, int protection, int flags, int fd, off64_t offset)
{
	return noted(NEXT(mmap64)(at, len, protection, flags, fd, offset), len, fd);
}

int munmap(void *at, size_t len)
{
	for (int n = mapped - 1; n >= 0; n--)
		if (mappings[n].at == at) {
			mappings[n] = mappings[--mapped];
			break;
		}
	return NEXT(munmap)(at, len);
}

static void unmap_all(void)
{
	while (mapped) {
		mapped--;
		NEXT(munmap)(mappings[mapped].at, mappings[mapped].len);
	}
}

/* Waits until the file is a stub, or is one no more. An empty file never is. */
static void until_stub(int wanted)
{
	const char *patience = getenv("FSX_PATIENCE_US");
	struct stat st;
	if (stat(name, &st) || !st.st_size)
		return;
	for (long waited = 0; patience && waited < atol(patience); waited += 1000) {
		char state[32] = "";
		if (getxattr(name, "user.tierfs.state", state, sizeof state - 1) < 0 || (!strcmp(state, "stub")) == wanted)
			return;
		usleep(1000);
	}
}

int open64(const char *path, int flags, ...)
{
	va_list list;
	va_start(list, flags);
	mode_t mode = va_arg(list, int);
	va_end(list);
	const char *wanted = getenv("FSX_FILE");
	size_t len = wanted ? strlen(wanted) : 0, have = strlen(path);
	int ours = len && have >= len && !strcmp(path + have - len, wanted);
	if (ours && getenv("FSX_DIRECT")) {
		direct = 1;
		flags |= O_DIRECT;
	}
	int fd = NEXT(open64)(path, flags, mode);
	if (ours) {
		file = fd;
		strncpy(name, path, sizeof name - 1);
	}
	return fd;
}

int close(int fd)
{
	int result = NEXT(close)(fd), ours = fd == file;
	const char *pause = getenv("FSX_PAUSE_US"), *one_in = getenv("FSX_PAUSE_ONE_IN");
	if (ours && pause && one_in && random() % atoi(one_in) == 0) {
		static int pauses;
		int which = pauses++ % 3;
		unmap_all();
		if (which == 0)
			usleep(random() % atoi(pause));
		else
			until_stub(1);
		if (which == 2)
			until_stub(0);
	}
	return result;
}

ssize_t pread64(int fd, void *to, size_t len, off64_t at)
{
	void *aligned;
	if (!direct || fd != file)
		return NEXT(pread64)(fd, to, len, at);
	if (posix_memalign(&aligned, 4096, len))
		abort();
	ssize_t got = NEXT(pread64)(fd, aligned, len, at);
	if (got > 0)
		memcpy(to, aligned, got);
	free(aligned);
	return got;
}

ssize_t pwrite64(int fd, const void *from, size_t len, off64_t at)
{
	void *aligned;
	if (!direct || fd != file)
		return NEXT(pwrite64)(fd, from, len, at);
	if (posix_memalign(&aligned, 4096, len))
		abort();
	memcpy(aligned, from, len);
	ssize_t done = NEXT(pwrite64)(fd, aligned, len, at);
	free(aligned);
	return done;
}
