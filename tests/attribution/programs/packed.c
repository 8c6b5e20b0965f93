#include "split.h"

static struct packed many[4] ALIGNED = {{"initialized", 7}};
static struct packed zeroed[4] ALIGNED;

__attribute__((noinline)) static uint32_t field(struct packed *one, int times) {
    uint32_t last = 0;
    for (int i = 0; i < times; i++)
        last = __atomic_exchange_n(HITS(one), i, __ATOMIC_SEQ_CST); /* split 19 field: global many+0x3e */
    return last;
}

__attribute__((noinline)) static void other_field(struct packed *one, int times) {
    for (int i = 0; i < times; i++)
        __atomic_or_fetch(HITS(one), i, __ATOMIC_SEQ_CST); /* split 21 other_field: global zeroed+0x3e */
}

int main(void) {
    uint32_t last = field(many, 19);
    other_field(zeroed, 21);
    printf("%u\n", last);
    return 0;
}
