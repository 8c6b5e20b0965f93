// How processes end, as their parents see it.
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile int children;

static void on_child(int signal, siginfo_t *siginfo, void *context) {
    children++;
    (void)signal, (void)siginfo, (void)context;
}

static void show(pid_t child) {
    int status;
    pid_t done;
    while ((done = waitpid(child, &status, WUNTRACED | WCONTINUED)) < 0 && errno == EINTR)
        ;
    if (WIFEXITED(status)) printf("exited %d\n", WEXITSTATUS(status));
    if (WIFSIGNALED(status)) printf("killed %d\n", WTERMSIG(status));
    if (WIFSTOPPED(status)) printf("stopped %d\n", WSTOPSIG(status));
    if (WIFCONTINUED(status)) printf("continued\n");
    if (done != child) printf("not the child\n");
}

int main(void) {
    setvbuf(stdout, NULL, _IONBF, 0);
    int ends[2];
    (void)!pipe(ends);
    signal(SIGQUIT, SIG_IGN);
    static const int signals[] = {SIGHUP, SIGINT, SIGABRT, SIGKILL, SIGSEGV, SIGPIPE, SIGTERM, SIGXCPU, 34, 64};
    for (unsigned i = 0; i < sizeof signals / sizeof *signals; i++) {
        pid_t child = fork();
        if (!child) {
            raise(signals[i]);
            _exit(1);
        }
        show(child);
    }
    struct sigaction action = {.sa_sigaction = on_child, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGCHLD, &action, NULL);
    pid_t child = fork();
    if (!child) {
        raise(SIGQUIT);  // ignored
        raise(SIGCHLD);  // handled
        raise(SIGSTOP);
        (void)!read(ends[0], &children, 1);
        _exit(5);
    }
    show(child);
    kill(child, SIGCONT);
    show(child);
    (void)!write(ends[1], "", 1);
    show(child);
    // Stopping, going on and ending are told one by one, unless two come together.
    printf("children %d\n", children >= 1 && children <= 3);
    action.sa_flags |= SA_NOCLDSTOP;
    sigaction(SIGCHLD, &action, NULL);
    children = 0;
    child = fork();
    if (!child) {
        // In a group of its own: in one that nobody of the session controls it would be ignored.
        setpgid(0, 0);
        raise(SIGTSTP);
        (void)!read(ends[0], &children, 1);
        *(volatile int *)0 = 1;
    }
    show(child);
    kill(child, SIGCONT);
    show(child);
    (void)!write(ends[1], "", 1);
    show(child);
    printf("only the end %d\n", children);
    signal(SIGCHLD, SIG_IGN);
    child = fork();
    if (!child) _exit(5);
    int status;
    int result = waitpid(child, &status, 0);
    printf("reaped by itself %d %s\n", result, strerrorname_np(errno));
    if (!fork()) {
        raise(SIGUSR1);
        _exit(1);
    }
    kill(getpid(), SIGTERM);
    return 0;
}
