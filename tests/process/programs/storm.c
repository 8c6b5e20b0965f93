// Queued signals, all of which must arrive, in order, while the program computes and makes calls.
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SIGNALS = 300 };
static volatile int arrived, out_of_order, children;

static void handler(int signal, siginfo_t *siginfo, void *context) {
    if (siginfo->si_value.sival_int != arrived) out_of_order++;
    arrived++;
    (void)signal, (void)context;
}

static void on_child(int signal) { children += signal == SIGCHLD; }

int main(void) {
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    sigaction(SIGRTMIN, &action, NULL);
    signal(SIGCHLD, on_child);
    pid_t parent = getpid(), child = fork();
    if (!child) {
        for (int i = 0; i < SIGNALS; i++)
            while (sigqueue(parent, SIGRTMIN, (union sigval){.sival_int = i}) < 0) usleep(100);
        _exit(0);
    }
    volatile unsigned long work = 0;
    int interrupted = 0, ends[2];
    char byte;
    (void)!pipe(ends);
    for (int i = 0; arrived < SIGNALS; i++) {
        for (int j = 0; j < 3000; j++) work += j;
        if (getpid() != parent) return 1;
        if (write(ends[1], "x", 1) != 1 || (i % 2 && read(ends[0], &byte, 1) != 1)) interrupted++;
    }
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
        ;
    printf("arrived %d, out of order %d, children %d, errors %d\n", arrived, out_of_order, children,
           interrupted);
    return 0;
}
