/* LD_PRELOAD: one write or fsync of a file below checkpoints/ fails with EIO while the file $GLO_IO_ERROR exists.
   The call that deletes that file is the one that fails, in whichever process it happens. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fails(int fd)
{
    const char *trigger = getenv("GLO_IO_ERROR");
    char link[64], path[4096];
    if (!trigger || access(trigger, F_OK))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return strstr(path, "/checkpoints/") && !unlink(trigger);
}

ssize_t write(int fd, const void *data, size_t size)
{
    static ssize_t (*next)(int, const void *, size_t);
    if (!next)
        next = dlsym(RTLD_NEXT, "write");
    if (fails(fd)) {
        errno = EIO;
        return -1;
    }
    return next(fd, data, size);
}

int fsync(int fd)
{
    static int (*next)(int);
    if (!next)
        next = dlsym(RTLD_NEXT, "fsync");
    if (fails(fd)) {
        errno = EIO;
        return -1;
    }
    return next(fd);
}
