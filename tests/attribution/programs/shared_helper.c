/* One instruction, two variables, two callers: the first is not all of them. */

#include <stdint.h>

struct __attribute__((packed)) record {
    char name[62];
    uint32_t hits;
};
static struct record rare_one __attribute__((aligned(64)));
static struct record hot_one __attribute__((aligned(64)));

__attribute__((noinline)) void bump(struct record *record) {
    __atomic_fetch_add((uint32_t *)(record->name + 62), 1, __ATOMIC_SEQ_CST);
}
__attribute__((noinline)) int rare(void) {
    bump(&rare_one);
    return 1;
}
__attribute__((noinline)) int hot(void) {
    for (int i = 0; i < 300; i++)
        bump(&hot_one);
    return 2;
}
int main(void) {
    return rare() + hot() - 3;
}
