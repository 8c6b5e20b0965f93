/* Each kind of locked instruction, once or a few times, at each operand size that can be split. */
#include "split.h"

static char line[128] ALIGNED;

#define LOCKED(instruction, offset) \
    __asm__ volatile(instruction : "+m"(line[offset]) : "r"(0L), "a"(0L), "d"(0L), "c"(0L), "b"(0L) : "cc", "memory")

int main(void) {
    LOCKED("lock addw %w1, %0", 63);    /* split 1 main: global line+0x3f */
    LOCKED("lock orl %k1, %0", 61);     /* split 1 main: global line+0x3d */
    LOCKED("lock sbbq %q1, %0", 57);    /* split 1 main: global line+0x39 */
    LOCKED("lock andl $-1, %0", 63);    /* split 1 main: global line+0x3f */
    LOCKED("lock incq %0", 60);         /* split 1 main: global line+0x3c */
    LOCKED("lock decl %0", 62);         /* split 1 main: global line+0x3e */
    LOCKED("lock negl %0", 62);         /* split 1 main: global line+0x3e */
    LOCKED("lock notw %0", 63);         /* split 1 main: global line+0x3f */
    LOCKED("lock btsl $3, %0", 61);     /* split 1 main: global line+0x3d */
    LOCKED("lock btcq $40, %0", 58);    /* split 1 main: global line+0x3a */
    LOCKED("lock btrw $1, %0", 63);     /* split 1 main: global line+0x3f */
    LOCKED("lock cmpxchg8b %0", 59);    /* split 1 main: global line+0x3b */
    uint64_t word = 5;
    __asm__ volatile("lock xaddq %0, %1" : "+r"(word), "+m"(line[57])::"cc", "memory"); /* split 1 main: global line+0x39 */
    __asm__ volatile("xchgw %w0, %1" : "+r"(word), "+m"(line[63])::"memory"); /* split 1 main: global line+0x3f */
    __asm__ volatile("lock cmpxchgq %0, %1" : "+r"(word), "+m"(line[60]) : "a"(9L) : "cc", "memory"); /* split 1 main: global line+0x3c */
    LOCKED("lock addb %b1, %0", 63);  /* within a line, all of these */
    LOCKED("lock addl %k1, %0", 60);
    LOCKED("lock addq %q1, %0", 56);
    LOCKED("lock cmpxchg16b %0", 64);
    LOCKED("addl %k1, %0", 62); /* across the line, but not locked */
    puts("all");
    return 0;
}
