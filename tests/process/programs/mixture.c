// All at once: threads that write code into one page, change the address space, make children,
// signal each other and pass bytes on, while a timer rings; until so many children have been made.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WORKERS = 6, CHILDREN = 8 };
extern char **environ;
static volatile int ended;
static volatile long signals;
static int wrong_code, wrong_memory, wrong_children, wrong_bytes, wrong_threads, ends[2];
static pthread_t threads[WORKERS];
static unsigned char *code;

static void on_signal(int signal) { __atomic_fetch_add(&signals, signal > 0, __ATOMIC_RELAXED); }

// Each writes its own function, mov eax, number; ret, in the page that all of them run.
static void *write_code(void *argument) {
    long mine = (long)argument;
    unsigned char *at = code + 256 * mine;
    for (unsigned number = mine + 1; !ended; number = number * 1103515245 + 12345) {
        at[0] = 0xb8, at[5] = 0xc3;
        memcpy(at + 1, &number, 4);
        for (int i = 0; i < 3; i++)
            if (((unsigned (*)(void))at)() != number) wrong_code++;
    }
    return NULL;
}

static void *change_memory(void *argument) {
    for (unsigned round = 1; !ended; round = round * 1103515245 + 12345) {
        size_t pages = (round >> 16) % 64 + 1;
        char *memory = mmap(NULL, pages << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (size_t i = 0; i < pages; i++) memory[i << 12] = i;
        mprotect(memory, pages / 2 << 12, PROT_READ);
        for (size_t i = 0; i < pages; i++) wrong_memory += memory[i << 12] != (char)i;
        mprotect(memory, pages / 2 << 12, PROT_READ | PROT_WRITE);
        memory = mremap(memory, pages << 12, pages << 13, MREMAP_MAYMOVE);
        for (size_t i = 0; i < pages; i++) wrong_memory += memory[i << 12] != (char)i;
        munmap(memory, pages << 13);
        free(malloc(round % 300000));
    }
    return argument;
}

static pid_t make_child(int kind) {
    pid_t child = -1;
    char *words[] = {"sh", "-c", "exit 33", NULL};
    if (kind == 0) {
        child = fork();
        if (!child) free(malloc(100000)), _exit(33);
    } else if (kind == 1) {
        child = vfork();
        if (!child) execv("/bin/sh", words), _exit(99);
    } else if (kind == 2) {
        posix_spawn(&child, "/bin/sh", NULL, NULL, words, environ);
    } else {
        child = fork();
        if (!child) raise(SIGKILL);
    }
    return child;
}

static void *make_children(void *argument) {
    for (int i = 0; i < CHILDREN; i++) {
        int status = -1;
        pid_t child = make_child(i % 4);
        while (waitpid(child, &status, 0) < 0 && errno == EINTR)
            ;
        wrong_children += status != (i % 4 == 3 ? SIGKILL : 33 << 8);
    }
    ended = 1;
    return argument;
}

static void *signal_others(void *argument) {
    for (unsigned round = 1; !ended; round = round * 1103515245 + 12345) {
        pthread_kill(threads[(round >> 16) % (WORKERS - 1)], SIGUSR1);
        if (!((round >> 16) % 8)) kill(getpid(), SIGUSR2);
    }
    return argument;
}

static void all_of(ssize_t (*call)(int, void *, size_t), int fd, char *bytes) {
    for (ssize_t done = 0; done < 512;) {
        ssize_t now = call(fd, bytes + done, 512 - done);
        if (now > 0)
            done += now;
        else
            wrong_bytes += errno != EINTR;
    }
}

static void *pass_bytes(void *argument) {
    char there[512], back[512];
    for (int round = 0; !ended; round++) {
        memset(there, round, sizeof there);
        all_of((void *)write, ends[1], there);
        all_of((void *)read, ends[0], back);
        wrong_bytes += memcmp(there, back, sizeof there) != 0;
    }
    return argument;
}

static void *come_and_go(void *argument) { return argument; }

int main(void) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &action, NULL), sigaction(SIGUSR2, &action, NULL);
    action.sa_flags = 0;
    sigaction(SIGALRM, &action, NULL), sigaction(SIGCHLD, &action, NULL);
    code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pipe(ends);
    // Who signals is last: the others are there by then, and not joined before it has ended.
    void *(*work[WORKERS])(void *) = {write_code, write_code, change_memory, make_children,
                                      pass_bytes, signal_others};
    for (long i = 0; i < WORKERS; i++) pthread_create(&threads[i], NULL, work[i], (void *)i);
    struct itimerval often = {{0, 5000}, {0, 5000}};
    setitimer(ITIMER_REAL, &often, NULL);
    while (!ended) {
        pthread_t thread;
        void *result = NULL;
        pthread_create(&thread, NULL, come_and_go, &thread), pthread_join(thread, &result);
        wrong_threads += result != &thread;
    }
    for (int i = WORKERS; i--;) pthread_join(threads[i], NULL);
    printf("wrong: code %d memory %d children %d bytes %d threads %d\n", wrong_code, wrong_memory,
           wrong_children, wrong_bytes, wrong_threads);
    return 0;
}
