/* The few Linux system calls the demo makes, without a C library. */

#ifndef DEMO_LINUX_H
#define DEMO_LINUX_H

#include <stddef.h>
#include <stdint.h>

enum { WRITE = 1, MMAP = 9, CLONE = 56, FORK = 57, EXIT = 60, WAIT4 = 61, FUTEX = 202, EXIT_GROUP = 231 };

static long call(long number, long a, long b, long c, long d, long e, long f) {
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static void say(const char *text) {
    size_t length = 0;
    while (text[length])
        length++;
    call(WRITE, 1, (long)text, length, 0, 0, 0);
}

static __attribute__((noreturn)) void leave(int status) {
    for (;;)
        call(EXIT_GROUP, status, 0, 0, 0, 0, 0);
}

static char *map_memory(size_t size) {
    long memory = call(MMAP, 0, size, 3 /* read, write */, 0x22 /* private, anonymous */, -1, 0);
    if (memory < 0 && memory > -4096)
        leave(1);
    return (char *)memory;
}

/* rdi flags, rsi stack, rdx parent's and r10 child's copy of the id; the stack holds function
 * and argument. */
__asm__(".text\n"
        "clone_thread:\n"
        ".cfi_startproc\n"
        "mov $56, %eax\n"
        "syscall\n"
        "test %eax, %eax\n"
        "jnz 1f\n"
        ".cfi_undefined rip\n"
        "xor %ebp, %ebp\n"
        "pop %rax\n"
        "pop %rdi\n"
        "call *%rax\n"
        "mov $60, %eax\n"
        "xor %edi, %edi\n"
        "syscall\n"
        ".cfi_restore rip\n"
        "1: ret\n"
        ".cfi_endproc\n"
        ".type clone_thread, @function\n"
        ".size clone_thread, . - clone_thread\n"
        /* the kernel starts here, with the stack aligned */
        ".globl _start\n"
        "_start:\n"
        ".cfi_startproc\n"
        ".cfi_undefined rip\n"
        "xor %ebp, %ebp\n"
        "call begin\n"
        ".cfi_endproc\n"
        ".type _start, @function\n"
        ".size _start, . - _start\n");

static void start_thread(void (*function)(void *), void *argument, uint32_t *id) {
    enum { STACK = 65536, FLAGS = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x100000 | 0x200000 };
    long *stack = (long *)(map_memory(STACK) + STACK) - 2;
    stack[0] = (long)function;
    stack[1] = (long)argument;
    register long r10 __asm__("r10") = (long)id;
    long result;
    __asm__ volatile("call clone_thread"
                     : "=a"(result)
                     : "D"((long)FLAGS), "S"(stack), "d"(id), "r"(r10)
                     : "rcx", "r11", "memory", "cc");
    if (result < 0)
        leave(1);
}

/* The kernel clears the id when the thread ends, and wakes who waits for that. */
static void wait_for_thread(uint32_t *id) {
    uint32_t seen;
    while ((seen = __atomic_load_n(id, __ATOMIC_ACQUIRE)))
        call(FUTEX, (long)id, 0, seen, 0, 0, 0);
}

static long start_child(void) {
    long child = call(FORK, 0, 0, 0, 0, 0, 0);
    if (child < 0)
        leave(1);
    return child;
}

static int wait_for_child(long child) {
    int status = 1;
    call(WAIT4, child, (long)&status, 0, 0, 0, 0);
    return (status >> 8) & 255;
}

#endif
