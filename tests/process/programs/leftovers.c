// A program that ends while its timers go on ringing: what comes then is nobody's.
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int rung;

static void ring(int signal) { rung |= 1 << signal; }

int main(void) {
    struct itimerval often = {{0, 10000}, {0, 10000}};
    struct itimerspec often_too = {{0, 10000000}, {0, 10000000}};
    int signals[] = {SIGALRM, SIGVTALRM, SIGPROF, SIGUSR1}, all = 0;
    for (int i = 0; i < 4; i++) signal(signals[i], ring), all |= 1 << signals[i];
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    timer_settime(timer, 0, &often_too, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
    setitimer(ITIMER_VIRTUAL, &often, NULL);
    setitimer(ITIMER_PROF, &often, NULL);
    while (rung != all)
        ;
    printf("rung\n");
    return 7;
}
