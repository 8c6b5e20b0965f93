// What one thread does to the address space, the others see at once.
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { READERS = 2, ROUNDS = 40 };
static volatile char *volatile place;
static volatile int step, done[READERS], wrong, ended;
static __thread sigjmp_buf back;

static void on_fault(int signal) { siglongjmp(back, signal); }

// In each step the page is readable (even) or not there (odd); says which it found.
static void *reader(void *argument) {
    long mine = (long)argument;
    int seen = 0;
    while (!ended) {
        int now = __atomic_load_n(&step, __ATOMIC_ACQUIRE);
        if (now == seen) {
            (void)*(volatile int *)&seen;
            continue;
        }
        int found;
        if (!sigsetjmp(back, 1))
            found = *place;
        else
            found = -1;
        if (found != (now % 2 ? -1 : now % 100)) wrong++;
        seen = now;
        __atomic_store_n(&done[mine], now, __ATOMIC_RELEASE);
    }
    return NULL;
}

static void *churn(void *argument) {
    while (!ended) {
        char *memory = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (int i = 0; i < 16; i++) memory[i << 12] = i;
        mprotect(memory, 1 << 15, PROT_READ);
        for (int i = 0; i < 16; i++)
            if (memory[i << 12] != i) wrong++;
        munmap(memory, 1 << 16);
        // Code that comes and goes, at the same place as a rule: mov eax, now; ret.
        unsigned char *code = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
                                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        int now = rand();
        code[0] = 0xb8, code[5] = 0xc3;
        memcpy(code + 1, &now, 4);
        if (((int (*)(void))code)() != now) wrong++;
        munmap(code, 4096);
    }
    return argument;
}

int main(void) {
    pthread_t threads[READERS + 1];
    struct sigaction action = {.sa_handler = on_fault};
    sigaction(SIGSEGV, &action, NULL);
    // Far from where others are put, so that nobody fills the hole.
    place = mmap((void *)0x200000000000, 4096, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    for (long i = 0; i < READERS; i++) pthread_create(&threads[i], NULL, reader, (void *)i);
    pthread_create(&threads[READERS], NULL, churn, NULL);
    for (int next = 1; next <= ROUNDS; next++) {
        if (next % 2 && next % 4 == 1)
            mprotect((void *)place, 4096, PROT_NONE);
        else if (next % 2)
            munmap((void *)place, 4096);
        else {
            char *memory = mmap((void *)place, 4096, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
            *memory = next % 100;
            if (next % 8 == 0) mprotect(memory, 4096, PROT_READ);
        }
        __atomic_store_n(&step, next, __ATOMIC_RELEASE);
        for (int i = 0; i < READERS; i++)
            while (__atomic_load_n(&done[i], __ATOMIC_ACQUIRE) != next)
                ;
        if (next % 20 == 0) {  // and a fork among all that
            pid_t child = fork();
            if (!child) _exit(*place == next % 100 ? 0 : 1);
            int status;
            waitpid(child, &status, 0);
            wrong += status != 0;
        }
    }
    ended = 1;
    for (int i = 0; i <= READERS; i++) pthread_join(threads[i], NULL);
    printf("wrong %d\n", wrong);
    return 0;
}
