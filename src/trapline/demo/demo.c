/* The program that `trapline demo` traces: five ways to take a split lock by accident, and the
 * same work done right.  It needs no C library, so that it runs wherever Trapline does. */

#include <stddef.h>
#include <stdint.h>

#include "linux.h"

/* A header that came over a wire: packed, so `hits` begins 62 bytes in and crosses a line. */
struct __attribute__((packed)) record {
    char name[62];
    uint32_t hits;
};

/* The same without the mistake. */
struct tidy {
    char name[62];
    uint32_t hits;
};

static struct record table[8] __attribute__((aligned(64)));
static struct tidy tidy_table[8] __attribute__((aligned(64)));
static uint32_t thread_id;

static inline __attribute__((always_inline)) void count_hit(struct record *record) {
    uint32_t *hits = (uint32_t *)(record->name + 62);
    __atomic_fetch_add(hits, 1, __ATOMIC_SEQ_CST);
}

static __attribute__((noinline)) void global_counter(int times) {
    for (int i = 0; i < times; i++)
        count_hit(&table[0]);
}

/* A char array has no alignment of its own, so neither has the counter that lives in it. */
static __attribute__((noinline)) void counter_in_a_buffer(int times) {
    char buffer[128] __attribute__((aligned(64)));
    uint64_t *counter = (uint64_t *)(buffer + 60);
    *counter = 0;
    for (int i = 0; i < times; i++)
        __atomic_fetch_add(counter, 1, __ATOMIC_SEQ_CST);
}

/* A ring of 20-byte entries: one field in sixteen lies across two lines. */
static __attribute__((noinline)) void ring_in_a_mapping(int times) {
    char *ring = map_memory(4096);
    for (int i = 0; i < times; i++) {
        uint64_t *owner = (uint64_t *)(ring + 20 * (i % 16) + 4);
        uint64_t expected = 0;
        __atomic_compare_exchange_n(owner, &expected, 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
}

static void thread(void *argument) {
    struct record *record = argument;
    for (int i = 0; i < 400; i++)
        __atomic_exchange_n((uint32_t *)(record->name + 62), i, __ATOMIC_SEQ_CST);
}

static __attribute__((noinline)) void done_right(int times) {
    for (int i = 0; i < times; i++)
        __atomic_fetch_add(&tidy_table[0].hits, 1, __ATOMIC_SEQ_CST);
}

static int run(void) {
    say("demo: counting in a packed global, on the stack, in a mapping, in a thread, in a child\n");
    global_counter(300);
    counter_in_a_buffer(100);
    ring_in_a_mapping(160);
    start_thread(thread, &table[0], &thread_id);
    wait_for_thread(&thread_id);
    long child = start_child();
    if (child == 0) {
        global_counter(50);
        leave(0);
    }
    int status = wait_for_child(child);
    done_right(1000);
    say("demo: done; 1,000 locks on aligned counters did no harm\n");
    return status;
}

__attribute__((noreturn, used)) void begin(void) { leave(run()); }
