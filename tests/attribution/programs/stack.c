#include "split.h"

__attribute__((noinline)) static void on_stack(int times) {
    char buffer[128] ALIGNED;
    memset(buffer, 0, sizeof buffer);
    for (int i = 0; i < times; i++)
        __atomic_fetch_add((uint64_t *)(buffer + 57), 1, __ATOMIC_SEQ_CST); /* split 25 on_stack: stack of thread */
}

int main(void) {
    uint64_t aligned ALIGNED = 0;
    on_stack(25);
    for (int i = 0; i < 1000; i++)
        __atomic_fetch_add(&aligned, 1, __ATOMIC_SEQ_CST);
    printf("%d\n", (int)aligned);
    return 0;
}
