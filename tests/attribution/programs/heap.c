#include "split.h"

__attribute__((noinline)) static void on_heap(char *block, int times) {
    for (int i = 0; i < times; i++) {
        uint32_t zero = 0;
        __atomic_compare_exchange_n((uint32_t *)(block + 61), &zero, 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); /* split 31 on_heap: heap */
    }
}

int main(void) {
    char *block = aligned_alloc(64, 128);
    memset(block, 0, 128);
    on_heap(block, 31);
    printf("%d\n", block[61]);
    free(block);
    return 0;
}
