#include "split.h"

#include <pthread.h>

static struct packed shared ALIGNED;

static void *worker(void *unused) {
    for (int i = 0; i < 500; i++)
        __atomic_fetch_add(HITS(&shared), 1, __ATOMIC_SEQ_CST); /* split 2000 worker: global shared+0x3e */
    return unused;
}

static void *alone(void *unused) {
    struct packed own ALIGNED;
    memset(&own, 0, sizeof own);
    for (int i = 0; i < 12; i++)
        __atomic_fetch_xor(HITS(&own), i, __ATOMIC_SEQ_CST); /* split 12 alone: stack of thread */
    return unused;
}

int main(void) {
    pthread_t threads[5];
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], 0, worker, 0);
    pthread_create(&threads[4], 0, alone, 0);
    for (int i = 0; i < 5; i++)
        pthread_join(threads[i], 0);
    printf("%u\n", __atomic_load_n(HITS(&shared), __ATOMIC_RELAXED));
    return shared.hits != 2000;
}
