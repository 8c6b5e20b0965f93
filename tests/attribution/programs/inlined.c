#include "split.h"

static struct packed counter ALIGNED;

static inline __attribute__((always_inline)) void innermost(struct packed *one) {
    __atomic_fetch_add(HITS(one), 3, __ATOMIC_SEQ_CST); /* split 77 innermost: global counter+0x3e */
}

static inline __attribute__((always_inline)) void middle(struct packed *one, int times) {
    for (int i = 0; i < times; i++)
        innermost(one);
}

__attribute__((noinline)) static void outer(int times) {
    middle(&counter, times);
    innermost(&counter);
}

int main(void) {
    outer(76);
    printf("%u\n", counter.hits);
    return 0;
}
