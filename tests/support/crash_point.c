// Preloaded into a program under test: ends it with SIGKILL at a certain system call.
//
// CRASH_AT has one condition a line, `before|after CALL PART-OF-THE-FILE'S-NAME TEXT`; TEXT, which may be empty, is part of
// the data. The conditions must come true in this order; with the last one the process ends.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

#define MOST 8

struct condition {
    char when[8], call[16], name[64], text[128];
};

static struct condition conditions[MOST];
static int count, reached;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void read_conditions(void) {
    const char *line = getenv("CRASH_AT");
    while (line && *line && count < MOST) {
        struct condition *next = &conditions[count];
        if (sscanf(line, "%7s %15s %63s %127[^\n]", next->when, next->call, next->name, next->text) >= 3) count++;
        line = strchr(line, '\n');
        if (line) line++;
    }
    // The processes that it starts live on.
    unsetenv("LD_PRELOAD");
    unsetenv("CRASH_AT");
}

static void pass(const char *when, const char *call, const char *name, const void *data, size_t size) {
    pthread_mutex_lock(&lock);
    if (reached < count) {
        const struct condition *next = &conditions[reached];
        if (!strcmp(next->when, when) && !strcmp(next->call, call) && strstr(name, next->name) &&
            (!*next->text || (data && memmem(data, size, next->text, strlen(next->text)))) && ++reached == count)
            kill(getpid(), SIGKILL);
    }
    pthread_mutex_unlock(&lock);
}

static void pass_file(const char *when, const char *call, int fd, const void *data, size_t size) {
    if (reached == count) return;
    char link[64], name[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, name, sizeof name - 1);
    if (length < 0) return;
    name[length] = 0;
    pass(when, call, name, data, size);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size) {
    pass_file("before", "write", fd, data, size);
    ssize_t written = REAL(write)(fd, data, size);
    pass_file("after", "write", fd, data, size);
    return written;
}

ssize_t send(int fd, const void *data, size_t size, int flags) {
    pass_file("before", "send", fd, data, size);
    ssize_t sent = REAL(send)(fd, data, size, flags);
    pass_file("after", "send", fd, data, size);
    return sent;
}

ssize_t recv(int fd, void *data, size_t size, int flags) {
    ssize_t received = REAL(recv)(fd, data, size, flags);
    if (received > 0) pass_file("after", "recv", fd, data, (size_t)received);
    return received;
}

int fdatasync(int fd) {
    pass_file("before", "fdatasync", fd, NULL, 0);
    int result = REAL(fdatasync)(fd);
    pass_file("after", "fdatasync", fd, NULL, 0);
    return result;
}

int rename(const char *from, const char *to) {
    pass("before", "rename", to, NULL, 0);
    int result = REAL(rename)(from, to);
    pass("after", "rename", to, NULL, 0);
    return result;
}
