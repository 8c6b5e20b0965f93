// Ways to make a process, and what the two have in common afterwards.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static int global = 1;
static char stack[1 << 16];

static int status_of(pid_t child) {
    int status = -1;
    if (child > 0 && waitpid(child, &status, 0) != child) return -2;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

// Prints after the child's end, so that what it changed shows.
static int shown;
#define SHOW(format, child, ...) (shown = status_of(child), printf(format, shown, ##__VA_ARGS__))

static int in_clone(void *argument) {
    global += 10;
    return *(int *)argument;
}

// What a program finds that was executed by one with these masks and handlers.
static int masks(void) {
    sigset_t mask, pending;
    sigprocmask(SIG_BLOCK, NULL, &mask);
    sigpending(&pending);
    for (int signal = 1; signal <= 64; signal++) {
        struct sigaction action = {0};
        sigaction(signal, NULL, &action);
        if (sigismember(&mask, signal) > 0 || sigismember(&pending, signal) > 0 || action.sa_handler)
            printf("signal %d blocked %d pending %d ignored %d\n", signal, sigismember(&mask, signal),
                   sigismember(&pending, signal), action.sa_handler == SIG_IGN);
    }
    raise(SIGHUP);
    raise(SIGTERM);
    return 0;
}

int main(int count, char **self) {
    setvbuf(stdout, NULL, _IONBF, 0);
    if (count > 1) return masks();
    int *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int local = 1;
    double kept = 1.25;
    pid_t child = fork();
    if (!child) {
        global = local = *shared = 2;
        kept *= 2;
        _exit(kept == 2.5 && getppid() > 1 ? 21 : 1);
    }
    SHOW("fork %d: %d %d %d\n", child, global, local, *shared);

    volatile int seen = 0;
    child = vfork();
    if (!child) {
        global = 3;
        seen = 4;
        _exit(22);
    }
    SHOW("vfork %d: %d %d\n", child, global, seen);
    child = vfork();
    if (!child) {
        seen = 5;
        execl("/bin/sh", "sh", "-c", "exit 23", NULL);
        _exit(1);
    }
    SHOW("vfork and exec %d: %d\n", child, seen);
    child = vfork();
    if (!child) {
        execl("/nonexistent/program", "program", NULL);
        seen = errno;
        _exit(24);
    }
    SHOW("failed exec %d: %s\n", child, strerrorname_np(seen));
    child = vfork();
    if (!child) {
        global = 6;
        (void)!readlink("/proc/self/exe", stack + 100, 1);
        raise(SIGTERM);
    }
    SHOW("killed %d: %d\n", child, global);

    char *arguments[] = {"sh", "-c", "exit 25", NULL};
    int result = posix_spawn(&child, "/bin/sh", NULL, NULL, arguments, environ);
    SHOW("spawn %d %d\n", child, result);
    printf("spawn of nothing %s\n",
           strerrorname_np(posix_spawn(&child, "/nonexistent/program", NULL, NULL, arguments, environ)));
    printf("spawn of a folder %s\n",
           strerrorname_np(posix_spawnp(&child, "/tmp", NULL, NULL, arguments, environ)));
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addclose(&actions, 77);
    posix_spawn_file_actions_adddup2(&actions, 88, 1);
    printf("spawn with a bad file %s\n",
           strerrorname_np(posix_spawn(&child, "/bin/true", &actions, NULL, arguments, environ)));

    int code = 26;
    child = clone(in_clone, stack + sizeof stack, SIGCHLD, &code);
    SHOW("clone %d: %d\n", child, global);
    child = clone(in_clone, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, &code);
    SHOW("clone, shared %d: %d\n", child, global);
    child = clone(in_clone, stack + sizeof stack, 0, &code);
    int status;
    pid_t done = waitpid(child, &status, __WALL);
    printf("clone with another signal %d %d\n", done == child, WEXITSTATUS(status));

    struct clone_args wanted = {.flags = CLONE_PIDFD | CLONE_PARENT_SETTID, .exit_signal = SIGCHLD};
    int pidfd = -1;
    pid_t tid = 0;
    wanted.pidfd = (uintptr_t)&pidfd;
    wanted.parent_tid = (uintptr_t)&tid;
    child = syscall(SYS_clone3, &wanted, sizeof wanted);
    if (!child) _exit(27);
    siginfo_t siginfo;
    int waited = waitid(P_PIDFD, pidfd, &siginfo, WEXITED);
    printf("clone3 %d %d tid %d\n", waited, siginfo.si_status, tid == child);
    printf("two in one memory %d\n", clone(in_clone, stack + sizeof stack, CLONE_SIGHAND | SIGCHLD, &code));

    // A child of a child, and its end after its parent's.
    int ends[2];
    (void)!pipe(ends);
    child = fork();
    if (!child) {
        pid_t parent = getpid();
        if (!fork()) {
            while (getppid() == parent) usleep(1000);
            (void)!write(ends[1], "orphan", 6);
            _exit(0);
        }
        _exit(28);
    }
    char text[8] = "";
    SHOW("parent %d\n", child);
    (void)!read(ends[0], text, 6);
    printf("%s\n", text);
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR2);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    signal(SIGHUP, SIG_IGN);
    signal(SIGTERM, (void (*)(int))main);
    raise(SIGUSR2);
    execl(self[0], self[0], "masks", NULL);
}
