/* A 64-bit ELF image without a multiboot header: split locks at CPL 0, first as they are, then with
   the processor told to refuse them (MSR_TEST_CTRL bit 29, where CORE_CAPABILITIES has it). */

#include "guest.h"

enum { CORE_CAPABILITIES = 0xcf, TEST_CTRL = 0x33, SPLIT_LOCK_DETECT = 1 << 29 };

struct gate {
    u16 low, selector;
    u8 stack, rights;
    u16 middle;
    u32 high, reserved;
};

struct frame {
    u64 rip, cs, rflags, rsp, ss;
};

static struct gate idt[32];
static volatile u32 refused;

static struct {
    u8 before[60];
    volatile u64 counter;
} __attribute__((packed, aligned(64))) shared;

/* The access has not been made: do it again without the check. */
__attribute__((interrupt)) static void alignment_check(struct frame *frame, u64 error)
{
    refused++;
    line("#AC with error code", error);
    line("at CPL", frame->cs & 3);
    line("counter is still", shared.counter);
    write_msr(TEST_CTRL, read_msr(TEST_CTRL) & ~(u64)SPLIT_LOCK_DETECT);
}

static int has_split_lock_detect(void)
{
    u32 model = cpuid(1, 0, 0) & 0x0fff0ff0;

    if (model == 0x606a0 || model == 0x606c0 || model == 0x706d0)
        return 1; /* Ice Lake has it and does not say so */
    return cpuid(0, 0, 0) >= 7 && cpuid(7, 0, 3) >> 30 & 1 && read_msr(CORE_CAPABILITIES) >> 5 & 1;
}

__attribute__((used, noreturn)) static void guest(void)
{
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) table = {sizeof idt - 1, (u64)idt};
    u64 at = (u64)alignment_check;
    u16 code;

    __asm__("mov %%cs, %0" : "=r"(code));
    idt[17] = (struct gate){at, code, 0, 0x8e, at >> 16, at >> 32, 0};
    __asm__ volatile("lidt %0" : : "m"(table));
    __asm__ volatile("lock incq %0" : "+m"(shared.counter));
    line("counter", shared.counter);
    if (has_split_lock_detect())
        write_msr(TEST_CTRL, SPLIT_LOCK_DETECT);
    else
        print("no split lock detection\n");
    __asm__ volatile("lock incq %0" : "+m"(shared.counter));
    line("counter", shared.counter);
    finish(refused);
}

__asm__(".text\n.globl _start\n_start: lea stack_top(%rip), %rsp\n call guest\n"
        ".bss\n.balign 16\n.skip 4096\nstack_top:\n.text\n");
