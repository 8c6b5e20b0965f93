// Timers, and whom their signals reach.
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t ticks, value, code, wrong;
static pid_t wanted;

static void tick(int signal, siginfo_t *siginfo, void *context) {
    ticks++;
    value = siginfo->si_value.sival_int;
    code = siginfo->si_code;
    if (wanted && syscall(SYS_gettid) != wanted) wrong++;
    (void)signal, (void)context;
}

static void *thread(void *argument) {
    sigset_t mask;
    int signal;
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR2);
    sigwait(&mask, &signal);
    printf("waited for %d\n", signal);
    wanted = syscall(SYS_gettid);
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 3};
    event._sigev_un._tid = wanted;
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    struct itimerspec once = {.it_value.tv_nsec = 5000000};
    ticks = 0;
    timer_settime(timer, 0, &once, NULL);
    while (!ticks) usleep(1000);
    timer_delete(timer);
    return argument;
}

static void notified(union sigval given) { value = given.sival_int; }

int main(void) {
    setvbuf(stdout, NULL, _IONBF, 0);
    struct sigaction action = {.sa_sigaction = tick, .sa_flags = SA_SIGINFO};
    sigaction(SIGRTMIN + 3, &action, NULL);
    sigaction(SIGVTALRM, &action, NULL);
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 3};
    event.sigev_value.sival_int = 1234;
    timer_create(CLOCK_REALTIME, &event, &timer);
    struct itimerspec often = {.it_value.tv_nsec = 5000000, .it_interval.tv_nsec = 5000000};
    timer_settime(timer, 0, &often, NULL);
    while (ticks < 5)  // in the program itself, never in a call
        ;
    timer_delete(timer);
    printf("ticks, value %d code %d\n", value, code);
    struct itimerval shortly = {.it_value.tv_usec = 10000};
    ticks = 0;
    setitimer(ITIMER_VIRTUAL, &shortly, NULL);
    while (!ticks)
        ;
    printf("virtual\n");

    pthread_t other;
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR2);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    pthread_create(&other, NULL, thread, NULL);
    kill(getpid(), SIGUSR2);
    pthread_join(other, NULL);
    printf("reached the wrong thread %d\n", wrong);
    struct sigevent by_thread = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = notified};
    by_thread.sigev_value.sival_int = 77;
    timer_create(CLOCK_REALTIME, &by_thread, &timer);
    struct itimerspec once = {.it_value.tv_nsec = 1000000};
    timer_settime(timer, 0, &once, NULL);
    while (value != 77) usleep(1000);
    printf("by a thread\n");
    return 0;
}
