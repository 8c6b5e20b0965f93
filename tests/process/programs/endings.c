// What one thread does to the whole process: exit, exec, fork, fatal signals.
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char *self;
static int what;

static void *sleeper(void *argument) {
    if (argument)
        for (;;) usleep(1000000);
    for (volatile long i = 0;; i++)
        ;
}

static void *actor(void *argument) {
    usleep(20000);
    switch (what) {
    case 0: exit(11);
    case 1: execl(self, self, "again", NULL); break;
    case 2: *(volatile int *)8 = 1; break;
    case 3: {
        pid_t child = fork();
        if (!child) {
            printf("child of a thread, pid is tid %d\n", getpid() == syscall(SYS_gettid));
            pthread_t thread;
            void *result;
            pthread_create(&thread, NULL, (void *(*)(void *))getppid, NULL);
            pthread_join(thread, &result);
            printf("parent %d\n", (long)result == getppid());
            exit(12);
        }
        int status;
        waitpid(child, &status, 0);
        exit(WEXITSTATUS(status) + 1);
    }
    case 4: syscall(SYS_exit, 3); break;
    case 5: abort();
    }
    (void)argument;
    return NULL;
}

int main(int count, char **arguments) {
    setvbuf(stdout, NULL, _IONBF, 0);
    self = arguments[0];
    if (count > 1) {
        printf("again, pid is tid %d\n", getpid() == syscall(SYS_gettid));
        return 15;
    }
    for (what = 0; what < 6; what++) {
        pid_t child = fork();
        if (!child) {
            pthread_t thread;
            if (what != 4) {
                pthread_create(&thread, NULL, sleeper, NULL);
                pthread_create(&thread, NULL, sleeper, "sleep");
            }
            pthread_create(&thread, NULL, actor, NULL);
            if (what == 4) syscall(SYS_exit, 9);  // the last thread's is not the process's
            pause();
        }
        int status;
        waitpid(child, &status, 0);
        printf("%d: exited %d %d killed %d %d\n", what, WIFEXITED(status), WEXITSTATUS(status),
               WIFSIGNALED(status), WIFSIGNALED(status) ? WTERMSIG(status) : 0);
    }
    return 0;
}
