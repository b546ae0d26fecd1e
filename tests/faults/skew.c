/* Preloaded: a wall clock that is wrong by so many seconds as the file SKEW_FILE holds (8 bytes),
   from moment to moment. Clocks that only measure how long something lasts stay right. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *skew_s;

__attribute__((constructor)) static void begin(void) {
  const char *name = getenv("SKEW_FILE");
  int fd = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
  if (fd < 0) return;
  void *page = mmap(NULL, sizeof *skew_s, PROT_READ, MAP_SHARED, fd, 0);
  if (page != MAP_FAILED) skew_s = page;
  close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *at) {
  int result = syscall(SYS_clock_gettime, clock, at);
  if (!result && skew_s && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
    at->tv_sec += *skew_s;
  return result;
}

int gettimeofday(struct timeval *at, void *zone) {
  int result = syscall(SYS_gettimeofday, at, zone);
  if (!result && skew_s) at->tv_sec += *skew_s;
  return result;
}

time_t time(time_t *at) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (at) *at = now.tv_sec;
  return now.tv_sec;
}
