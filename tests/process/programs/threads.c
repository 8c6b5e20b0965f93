// Threads: what they share, how they wait for each other, and how they end.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 4, ROUNDS = 200 };
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static __thread int own = 5;
static int counter, turns, first_runs, atomic;

static void first(void) { first_runs++; }

static void *work(void *argument) {
    pthread_once(&once, first);
    own += (int)(long)argument;
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < ROUNDS; i++) {
        pthread_mutex_lock(&mutex);
        counter++;
        pthread_mutex_unlock(&mutex);
        __atomic_fetch_add(&atomic, 3, __ATOMIC_SEQ_CST);
    }
    return (void *)(long)own;
}

static void *take_turns(void *argument) {
    int mine = (int)(long)argument;
    for (int i = 0; i < 10; i++) {
        pthread_mutex_lock(&mutex);
        while (turns % 2 != mine) pthread_cond_wait(&cond, &mutex);
        turns++;
        pthread_cond_broadcast(&cond);
        pthread_mutex_unlock(&mutex);
    }
    return NULL;
}

static void *take_and_end(void *lock) {
    pthread_mutex_lock(lock);
    return NULL;
}

static void cleaned(void *argument) { printf("cleaned up %s\n", (char *)argument); }

static void *wait_for_ever(void *argument) {
    pthread_cleanup_push(cleaned, argument);
    sem_post(argument + 16);
    for (;;) pause();
    pthread_cleanup_pop(0);
    return NULL;
}

static void on_signal(int signal) {
    char text[] = "signal in the other thread: 0\n";
    text[sizeof text - 3] += own == 105;
    (void)!write(1, text, sizeof text - 1);
    (void)signal;
}

static void robust(void) {
    pthread_mutexattr_t attributes;
    pthread_mutex_t *lock = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(lock, &attributes);
    pthread_t thread;
    pthread_create(&thread, NULL, take_and_end, lock);
    pthread_join(thread, NULL);
    printf("of a thread %s\n", strerrorname_np(pthread_mutex_lock(lock)));
    pthread_mutex_consistent(lock);
    pthread_mutex_unlock(lock);
    pid_t child = fork();
    if (!child) {
        pthread_mutex_lock(lock);
        _exit(0);
    }
    waitpid(child, NULL, 0);
    printf("of a process %s\n", strerrorname_np(pthread_mutex_lock(lock)));
    pthread_mutex_consistent(lock);
    pthread_mutex_unlock(lock);
}

static void *last(void *argument) {
    pthread_join((pthread_t)argument, NULL);
    printf("the first thread has ended, %d\n", own);
    return NULL;
}

int main(int count, char **arguments) {
    setvbuf(stdout, NULL, _IONBF, 0);
    pthread_t threads[THREADS];
    long sum = 0;
    void *result;
    pthread_barrier_init(&barrier, NULL, THREADS);
    for (long i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, work, (void *)i);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], &result);
        sum += (long)result;
    }
    printf("counter %d atomic %d own %ld first %d\n", counter, atomic, sum, first_runs);
    for (long i = 0; i < 2; i++) pthread_create(&threads[i], NULL, take_turns, (void *)i);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    printf("turns %d\n", turns);
    robust();

    union { char text[16]; struct { char pad[16]; sem_t ready; } s; } place = {"argument"};
    sem_init(&place.s.ready, 0, 0);
    pthread_create(&threads[0], NULL, wait_for_ever, &place);
    sem_wait(&place.s.ready);
    pthread_cancel(threads[0]);
    pthread_join(threads[0], &result);
    printf("cancelled %d\n", result == PTHREAD_CANCELED);

    // More threads than there are at any one time.
    for (int i = 0; i < 12; i++) {
        pthread_create(&threads[0], NULL, work + 0, (void *)0) ;
        for (int j = 1; j < THREADS; j++) pthread_create(&threads[j], NULL, work, (void *)0);
        for (int j = 0; j < THREADS; j++) pthread_join(threads[j], NULL);
        if (i == 1) break;
    }
    printf("counter %d\n", counter);
    pthread_create(&threads[0], NULL, last, (void *)pthread_self());
    pthread_exit(NULL);
}
