/* Loaded into fsx: O_DIRECT on its file, with the aligned buffers that it needs, and a pause after each close, in which the
 * file can be moved. FSX_FILE: the end of the file's path; FSX_DIRECT: O_DIRECT; FSX_PAUSE_US: longest pause in microseconds;
 * FSX_PAUSE_ONE_IN: only after every so many closes. */
#define _GNU_SOURCE
#define _LARGEFILE64_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int direct, file = -1;

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
	if (ours)
		file = fd;
	return fd;
}

int close(int fd)
{
	int result = NEXT(close)(fd), ours = fd == file;
	const char *pause = getenv("FSX_PAUSE_US"), *one_in = getenv("FSX_PAUSE_ONE_IN");
	if (ours && pause && one_in && random() % atoi(one_in) == 0)
		usleep(random() % atoi(pause));
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
