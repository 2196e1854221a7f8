/* Preloaded: lets single system calls on paths below a folder fail, as a stuttering mount or a full disk does.

   FAIL_BELOW   only files below this folder are touched
   FAIL_CALL    open, read, stat, rename, fsync or write
   FAIL_ERRNO   the error, as a number
   FAIL_AT      which call of the kind fails, from 1, counted over all processes together; 0: all of them
   FAIL_MARKS   a folder elsewhere, in which each counted call leaves an empty file named by its number
*/
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Empty files, as ffmpeg runs with a limit of 0 on the size of what it writes; straight to the kernel, past ourselves. */
static long counted(void) {
    for (long number = 1;; number++) {
        char mark[PATH_MAX + 32];
        snprintf(mark, sizeof mark, "%s/%ld", getenv("FAIL_MARKS"), number);
        int fd = syscall(SYS_openat, AT_FDCWD, mark, O_CREAT | O_EXCL | O_WRONLY, 0644);
        if (fd >= 0) {
            syscall(SYS_close, fd);
            return number;
        }
        if (errno != EEXIST) return -1;
    }
}

static int is_below(const char *path) {
    const char *folder = getenv("FAIL_BELOW");
    if (!folder || !path) return 0;
    if (!strncmp(path, "file:", 5)) path += 5;
    size_t length = strlen(folder);
    return !strncmp(path, folder, length) && (path[length] == '/' || path[length] == 0);
}

static int fails(const char *call, const char *path) {
    const char *wanted = getenv("FAIL_CALL");
    if (!wanted || strcmp(wanted, call) || !is_below(path)) return 0;
    int saved = errno;
    long number = counted(), at = atol(getenv("FAIL_AT"));
    errno = saved;
    if (at && number != at) return 0;
    errno = atoi(getenv("FAIL_ERRNO"));
    return 1;
}

static const char *path_of(int fd, char *buffer) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, buffer, PATH_MAX - 1);
    if (length < 0) return NULL;
    buffer[length] = 0;
    return buffer;
}

static const char *full(int folder, const char *path, char *buffer) {
    char base[PATH_MAX];
    if (!path || path[0] == '/') return path;
    if (folder == AT_FDCWD ? !getcwd(base, sizeof base) : !path_of(folder, base)) return path;
    return snprintf(buffer, PATH_MAX, "%s/%s", base, path) < PATH_MAX ? buffer : path;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name, MODE)                                                     \
    int name(const char *path, int flags, ...) {                            \
        va_list rest;                                                        \
        va_start(rest, flags);                                               \
        mode_t mode = va_arg(rest, MODE);                                    \
        va_end(rest);                                                        \
        char buffer[PATH_MAX];                                               \
        if (fails("open", full(AT_FDCWD, path, buffer))) return -1;          \
        return REAL(name)(path, flags, mode);                                \
    }
OPEN(open, int)
OPEN(open64, int)

#define OPENAT(name)                                                         \
    int name(int folder, const char *path, int flags, ...) {                 \
        va_list rest;                                                        \
        va_start(rest, flags);                                               \
        mode_t mode = va_arg(rest, int);                                     \
        va_end(rest);                                                        \
        char buffer[PATH_MAX];                                               \
        if (fails("open", full(folder, path, buffer))) return -1;            \
        return REAL(name)(folder, path, flags, mode);                        \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t read(int fd, void *data, size_t size) {
    char buffer[PATH_MAX];
    if (getenv("FAIL_CALL") && !strcmp(getenv("FAIL_CALL"), "read") && fails("read", path_of(fd, buffer))) return -1;
    return REAL(read)(fd, data, size);
}

#define PREAD(name, TYPE)                                                    \
    ssize_t name(int fd, void *data, size_t size, TYPE offset) {             \
        char buffer[PATH_MAX];                                               \
        if (fails("read", path_of(fd, buffer))) return -1;                   \
        return REAL(name)(fd, data, size, offset);                           \
    }
PREAD(pread, off_t)
PREAD(pread64, off64_t)

ssize_t write(int fd, const void *data, size_t size) {
    char buffer[PATH_MAX];
    if (getenv("FAIL_CALL") && !strcmp(getenv("FAIL_CALL"), "write") && fails("write", path_of(fd, buffer))) return -1;
    return REAL(write)(fd, data, size);
}

#define STAT(name, TYPE)                                                     \
    int name(const char *path, TYPE *facts) {                                \
        char buffer[PATH_MAX];                                               \
        if (fails("stat", full(AT_FDCWD, path, buffer))) return -1;          \
        return REAL(name)(path, facts);                                      \
    }
STAT(stat, struct stat)
STAT(stat64, struct stat64)
STAT(lstat, struct stat)
STAT(lstat64, struct stat64)

#define FSTATAT(name, TYPE)                                                  \
    int name(int folder, const char *path, TYPE *facts, int flags) {         \
        char buffer[PATH_MAX];                                               \
        if (fails("stat", full(folder, path, buffer))) return -1;            \
        return REAL(name)(folder, path, facts, flags);                       \
    }
FSTATAT(fstatat, struct stat)
FSTATAT(fstatat64, struct stat64)

int rename(const char *from, const char *to) {
    char buffer[PATH_MAX];
    if (fails("rename", full(AT_FDCWD, to, buffer))) return -1;
    return REAL(rename)(from, to);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    char buffer[PATH_MAX];
    if (fails("rename", full(to_folder, to, buffer))) return -1;
    return REAL(renameat)(from_folder, from, to_folder, to);
}

int fsync(int fd) {
    char buffer[PATH_MAX];
    if (fails("fsync", path_of(fd, buffer))) return -1;
    return REAL(fsync)(fd);
}
