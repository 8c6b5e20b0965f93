#include "split.h"

#include <signal.h>

static struct packed counter ALIGNED;

static void on_signal(int number) {
    for (int i = 0; i < number; i++)
        __atomic_fetch_and(HITS(&counter), i, __ATOMIC_SEQ_CST); /* split 36 on_signal: global counter+0x3e */
}

__attribute__((noinline)) static void interrupted(void) {
    raise(SIGUSR2);
    __asm__ volatile(""); /* so that this is a call, and leaves a frame */
}

int main(void) {
    signal(SIGUSR2, on_signal); /* 12 */
    for (int i = 0; i < 3; i++)
        interrupted();
    puts("done");
    return 0;
}
