// Threads that make processes at the same time, while others allocate.
#define _GNU_SOURCE
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 3, ROUNDS = 4 };
extern char **environ;
static int wrong;

static void *make(void *argument) {
    for (int i = 0; i < ROUNDS; i++) {
        char *arguments[] = {"sh", "-c", "exit 3", NULL};
        void *memory = malloc(100000);
        pid_t child;
        int status;
        if (i % 2) {
            if (posix_spawn(&child, "/bin/sh", NULL, NULL, arguments, environ)) wrong++;
        } else {
            child = fork();
            if (!child) {
                free(malloc(200000));
                free(memory);
                _exit(3);
            }
        }
        free(memory);
        if (waitpid(child, &status, 0) != child || WEXITSTATUS(status) != 3) wrong++;
    }
    return argument;
}

int main(void) {
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, make, NULL);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    printf("wrong %d\n", wrong);
    return 0;
}
