// System calls whose arrays hold pointers to words and buffers of the program.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct waiter { uint64_t value, address; uint32_t flags, reserved; };
enum { FUTEX_32 = 2, WAKE = 1 };
static uint32_t *words;

static long wait_for(struct waiter *waiters, int count, int seconds) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += seconds;
    long result = syscall(449, waiters, count, 0, &until, CLOCK_MONOTONIC);
    return result < 0 ? -errno : result;
}

static void *wake(void *argument) {
    while (!syscall(SYS_futex, &words[2], WAKE, 1)) usleep(100);
    return argument;
}

int main(void) {
    // Where a program that is not PIE has its data: elsewhere on the host under Trapline.
    words = mmap((void *)0x10000000, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS |
                 MAP_FIXED_NOREPLACE, -1, 0);
    struct waiter *waiters = (struct waiter *)(words + 256);
    for (int i = 0; i < 3; i++)
        waiters[i] = (struct waiter){.value = i, .address = (uintptr_t)&words[i], .flags = FUTEX_32},
        words[i] = i;
    pthread_t thread;
    pthread_create(&thread, NULL, wake, NULL);
    printf("woken: %ld\n", wait_for(waiters, 3, 100));
    pthread_join(thread, NULL);
    words[1] = 7;
    printf("another value: %d\n", wait_for(waiters, 3, 100) == -EAGAIN);
    words[1] = 1;
    printf("too late: %d\n", wait_for(waiters, 3, 0) == -ETIMEDOUT);
    waiters[0].address = 0x20000000;
    printf("nowhere: %d\n", wait_for(waiters, 3, 100) == -EFAULT);
    printf("none, too many: %ld %ld\n", wait_for(waiters, 0, 1), wait_for(waiters, 129, 1));
    return 0;
}
