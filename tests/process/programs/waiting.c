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
    sigset_t mask;
    alarms++;
    sigprocmask(SIG_BLOCK, NULL, &mask);
    if (signal == SIGALRM && alarms % 2 == 0) (void)!write(ends[1], "z", 1);
}

static void on_alarm(int flags) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    sigaction(SIGALRM, &action, NULL);
}

static void soon(int again) {
    struct itimerval timer = {.it_value.tv_usec = 30000, .it_interval.tv_usec = again ? 30000 : 0};
    setitimer(ITIMER_REAL, &timer, NULL);
}

static void say(const char *name, long result) {
    printf("%s %ld %s alarms %d\n", name, result, result < 0 ? strerrorname_np(errno) : "", alarms);
    soon(0);
    struct itimerval none = {0};
    setitimer(ITIMER_REAL, &none, NULL);
    alarms = 0;
}

int main(void) {
    setvbuf(stdout, NULL, _IONBF, 0);
    char buffer[8];
    sigset_t mask, empty, old;
    (void)!pipe(ends);
    on_alarm(0);
    soon(0);
    say("read", read(ends[0], buffer, 1));
    on_alarm(SA_RESTART);
    soon(1);  // the second alarm writes
    say("read, restarted", read(ends[0], buffer, 1));

    struct timespec second = {.tv_sec = 5}, left;
    soon(0);
    long result = nanosleep(&second, &left);
    printf("left %d\n", left.tv_sec == 4);
    say("nanosleep", result);
    struct pollfd entry = {.fd = ends[0], .events = POLLIN};
    soon(0);
    say("poll", poll(&entry, 1, 5000));
    int epoll = epoll_create1(0);
    struct epoll_event event;
    soon(0);
    say("epoll_wait", epoll_wait(epoll, &event, 1, 5000));
    soon(0);
    say("pause", pause());

    sigemptyset(&empty);
    sigemptyset(&mask);
    sigaddset(&mask, SIGALRM);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    soon(0);
    say("sigsuspend", sigsuspend(&empty));
    sigprocmask(SIG_BLOCK, NULL, &old);
    printf("blocked again %d\n", sigismember(&old, SIGALRM));
    soon(0);
    say("ppoll", ppoll(&entry, 1, &second, &empty));
    soon(0);
    say("pselect", pselect(0, NULL, NULL, NULL, &second, &empty));
    soon(0);
    say("epoll_pwait", epoll_pwait(epoll, &event, 1, 5000, &empty));
    sigprocmask(SIG_BLOCK, NULL, &old);
    printf("blocked again %d\n", sigismember(&old, SIGALRM));

    siginfo_t siginfo;
    soon(0);
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
    sigprocmask(SIG_UNBLOCK, &mask, NULL);
    printf("unblocked: alarms %d\n", alarms);
    alarms = 0;

    pid_t child = fork();
    if (!child) {
        usleep(120000);
        _exit(7);
    }
    int status;
    on_alarm(0);
    soon(0);
    say("wait", waitpid(child, &status, 0));
    on_alarm(SA_RESTART);
    soon(0);
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
    soon(0);
    result = pthread_cond_timedwait(&cond, &mutex, &until) == ETIMEDOUT;
    say("timedwait goes on", result);
    return 0;
}
