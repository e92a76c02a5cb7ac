/* Faults between SQLite and the disk, for files whose path starts with CHAOS_PREFIX.
 *
 * The file CHAOS_FAULTS names the fault; it is read at every call, so it can change at any time:
 *   none | enospc | eio | erofs | eiosync | slow MICROSECONDS | die N
 * die N: kill -9 this process just before the N-th sync of a write-ahead log.
 * CHAOS_WRITES, if set, is a file that gets a line for each write ("w NAME OFFSET LENGTH"),
 * truncation ("t NAME LENGTH 0") and completed sync ("s NAME 0 0"). From it follows which bytes a
 * power failure may change.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int syncs;

static int is_ours(int fd, char *path, size_t size) {
  char link[64];
  const char *prefix = getenv("CHAOS_PREFIX");
  if (!prefix) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, size - 1);
  if (length <= 0) return 0;
  path[length] = 0;
  return strncmp(path, prefix, strlen(prefix)) == 0;
}

static void read_fault(char *fault, size_t size) {
  const char *path = getenv("CHAOS_FAULTS");
  fault[0] = 0;
  if (!path) return;
  int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  ssize_t length = syscall(SYS_read, fd, fault, size - 1);
  fault[length > 0 ? length : 0] = 0;
  syscall(SYS_close, fd);
}

static void log_call(char what, const char *path, long long offset, long long length) {
  static int fd = -1;
  const char *file = getenv("CHAOS_WRITES");
  char line[512];
  if (!file) return;
  if (fd < 0) fd = syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  const char *name = strrchr(path, '/');
  int size = snprintf(line, sizeof line, "%c %s %lld %lld\n", what, name ? name + 1 : path, offset, length);
  syscall(SYS_write, fd, line, size);
}

/* The error number for a write; 0 without a fault. */
static int write_error(void) {
  char fault[64];
  read_fault(fault, sizeof fault);
  if (!strncmp(fault, "enospc", 6)) return ENOSPC;
  if (!strncmp(fault, "eio", 3) && strncmp(fault, "eiosync", 7)) return EIO;
  if (!strncmp(fault, "erofs", 5)) return EROFS;
  return 0;
}

static int sync_as(const char *name, int fd) {
  char path[4096], fault[64];
  int (*real)(int) = dlsym(RTLD_NEXT, name);
  if (!is_ours(fd, path, sizeof path)) return real(fd);
  read_fault(fault, sizeof fault);
  if (!strncmp(fault, "slow ", 5)) usleep(atoi(fault + 5));
  if (!strncmp(fault, "eio", 3)) { errno = EIO; return -1; }
  if (!strncmp(fault, "die ", 4) && strstr(path, "-wal") && ++syncs >= atoi(fault + 4)) kill(getpid(), SIGKILL);
  int result = real(fd);
  if (result == 0) log_call('s', path, 0, 0);
  return result;
}

int fsync(int fd) { return sync_as("fsync", fd); }
int fdatasync(int fd) { return sync_as("fdatasync", fd); }

static ssize_t pwrite_as(const char *name, int fd, const void *data, size_t count, off64_t offset) {
  char path[4096];
  ssize_t (*real)(int, const void *, size_t, off64_t) = dlsym(RTLD_NEXT, name);
  if (!is_ours(fd, path, sizeof path)) return real(fd, data, count, offset);
  int error = write_error();
  if (error) { errno = error; return -1; }
  log_call('w', path, offset, count);
  return real(fd, data, count, offset);
}

ssize_t pwrite(int fd, const void *data, size_t count, off_t offset) { return pwrite_as("pwrite", fd, data, count, offset); }
ssize_t pwrite64(int fd, const void *data, size_t count, off64_t offset) { return pwrite_as("pwrite64", fd, data, count, offset); }

ssize_t write(int fd, const void *data, size_t count) {
  char path[4096];
  ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
  if (!is_ours(fd, path, sizeof path)) return real(fd, data, count);
  int error = write_error();
  if (error) { errno = error; return -1; }
  log_call('w', path, lseek64(fd, 0, SEEK_CUR), count);
  return real(fd, data, count);
}

static int truncate_as(const char *name, int fd, off64_t length) {
  char path[4096];
  int (*real)(int, off64_t) = dlsym(RTLD_NEXT, name);
  if (!is_ours(fd, path, sizeof path)) return real(fd, length);
  int error = write_error();
  if (error) { errno = error; return -1; }
  log_call('t', path, length, 0);
  return real(fd, length);
}

int ftruncate(int fd, off_t length) { return truncate_as("ftruncate", fd, length); }
int ftruncate64(int fd, off64_t length) { return truncate_as("ftruncate64", fd, length); }

/* On a read-only file system, opening a file for writing fails too. */
static int open_as(const char *name, const char *path, int flags, mode_t mode) {
  char fault[64];
  int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, name);
  const char *prefix = getenv("CHAOS_PREFIX");
  if (prefix && (flags & (O_WRONLY | O_RDWR)) && !strncmp(path, prefix, strlen(prefix))) {
    read_fault(fault, sizeof fault);
    if (!strncmp(fault, "erofs", 5)) { errno = EROFS; return -1; }
  }
  return real(path, flags, mode);
}

int open(const char *path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  return open_as("open", path, flags, mode);
}

int open64(const char *path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  return open_as("open64", path, flags, mode);
}
