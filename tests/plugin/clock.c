/* Preloaded into the plugin: its wall clock is ahead of the system's by the seconds in the file that CLOCK_SHIFT names.
   With CLOCK_ALL, the monotonic clock is too. */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *time) {
    char text[32] = "";
    int file, result = syscall(SYS_clock_gettime, clock, time);
    if (result != 0 || (clock != CLOCK_REALTIME && !(clock == CLOCK_MONOTONIC && getenv("CLOCK_ALL")))) return result;
    file = open(getenv("CLOCK_SHIFT"), O_RDONLY | O_CLOEXEC);
    if (file < 0) return result;
    if (read(file, text, sizeof text - 1) > 0) time->tv_sec += atol(text);
    close(file);
    return result;
}
