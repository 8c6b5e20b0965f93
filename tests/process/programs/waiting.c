// Calls that a signal interrupts: which come back with EINTR, and which go on.
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile int alarms;
static int ends[2];

static void handler(int signal) {
    // Not the first, so that a call which should end with it is not ended by this.
    if (++alarms > 1) (void)!write(ends[1], "z", 1);
    (void)signal;
}

static void on_alarm(int flags) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    sigaction(SIGALRM, &action, NULL);
}

// An alarm, and others in case the first comes before the call.
static void soon(void) {
    struct itimerval timer = {.it_value.tv_usec = 30000, .it_interval.tv_usec = 200000};
    alarms = 0;
    setitimer(ITIMER_REAL, &timer, NULL);
}

static void say(const char *name, long result) {
    int error = errno;
    struct itimerval none = {0};
    struct timespec now = {0};
    sigset_t mask;
    setitimer(ITIMER_REAL, &none, NULL);
    sigemptyset(&mask);
    sigaddset(&mask, SIGALRM);
    while (sigtimedwait(&mask, NULL, &now) > 0)
        ;
    printf("%s %ld %s\n", name, result, result < 0 ? strerrorname_np(error) : "");
}

int main(void) {
    setvbuf(stdout, NULL, _IONBF, 0);
    char buffer[8];
    sigset_t mask, empty, old;
    (void)!pipe(ends);
    on_alarm(0);
    int empty_pipe[2];
    (void)!pipe(empty_pipe);
    soon();
    say("read", read(empty_pipe[0], buffer, 1));
    on_alarm(SA_RESTART);
    soon();
    say("read, restarted", read(ends[0], buffer, 1));

    struct timespec second = {.tv_sec = 5}, left;
    soon();
    long result = nanosleep(&second, &left);
    printf("left %d\n", left.tv_sec <= 4);
    say("nanosleep", result);
    struct pollfd entry = {.fd = empty_pipe[0], .events = POLLIN};
    soon();
    say("poll", poll(&entry, 1, 5000));
    int epoll = epoll_create1(0);
    struct epoll_event event;
    soon();
    say("epoll_wait", epoll_wait(epoll, &event, 1, 5000));
    soon();
    say("pause", pause());

    sigemptyset(&empty);
    sigemptyset(&mask);
    sigaddset(&mask, SIGALRM);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    soon();
    say("sigsuspend", sigsuspend(&empty));
    sigprocmask(SIG_BLOCK, NULL, &old);
    printf("blocked again %d\n", sigismember(&old, SIGALRM));
    soon();
    say("ppoll", ppoll(&entry, 1, &second, &empty));
    soon();
    say("pselect", pselect(0, NULL, NULL, NULL, &second, &empty));
    soon();
    say("epoll_pwait", epoll_pwait(epoll, &event, 1, 5000, &empty));
    sigprocmask(SIG_BLOCK, NULL, &old);
    printf("blocked again %d\n", sigismember(&old, SIGALRM));

    siginfo_t siginfo;
    soon();
    say("sigwaitinfo", sigwaitinfo(&mask, &siginfo));
    printf("code %d\n", siginfo.si_code);
    struct timespec shortly = {.tv_nsec = 1000000};
    say("sigtimedwait", sigtimedwait(&mask, &siginfo, &shortly));
    raise(SIGALRM);
    sigpending(&old);
    printf("pending %d\n", sigismember(&old, SIGALRM));
    struct signalfd_siginfo record;
    int fd = signalfd(-1, &mask, 0);
    say("signalfd", read(fd, &record, sizeof record));
    printf("number %u\n", record.ssi_signo);
    sigpending(&old);
    printf("pending %d\n", sigismember(&old, SIGALRM));
    raise(SIGALRM);
    alarms = 0;
    sigprocmask(SIG_UNBLOCK, &mask, NULL);
    printf("unblocked: alarms %d\n", alarms);

    while (poll(&(struct pollfd){.fd = ends[0], .events = POLLIN}, 1, 0) > 0) (void)!read(ends[0], buffer, 1);
    pid_t child = fork();
    if (!child) {
        (void)!read(ends[0], buffer, 1);  // a later alarm writes
        _exit(7);
    }
    int status;
    on_alarm(0);
    soon();
    say("wait", waitpid(child, &status, 0));
    on_alarm(SA_RESTART);
    soon();
    result = waitpid(child, &status, 0) == child;
    printf("status %d\n", WEXITSTATUS(status));
    say("wait, restarted", result);
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 100000000;
    if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
    pthread_mutex_lock(&mutex);
    on_alarm(0);
    soon();
    result = pthread_cond_timedwait(&cond, &mutex, &until) == ETIMEDOUT;
    say("timedwait goes on", result);
    return 0;
}
