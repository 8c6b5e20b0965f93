/* A 32-bit multiboot guest that stays 32-bit: code at CPL 3 takes a split lock across two pages.
   Compiled with PAGING 0 (none), 32 (two levels) or 36 (PAE), and with TRY to have it write
   DEBUGCTL whatever CPUID says. */

#include "guest.h"

struct gate {
    u16 low, selector;
    u8 reserved, rights;
    u16 high;
};

struct task_state {
    u32 link, stack, segment, rest[22];
};

struct table {
    u16 limit;
    const void *base;
} __attribute__((packed));

struct frame {
    u32 eip, cs, eflags, esp, ss;
};

__attribute__((section(".multiboot"), used))
static const u32 header[] = {0x1badb002, 3, -(0x1badb002u + 3)};

__attribute__((aligned(8))) static u64 gdt[6] = {
    0, 0xcf9b000000ffff, 0xcf93000000ffff, 0xcffb000000ffff, 0xcff3000000ffff};
static struct gate idt[129];
static struct task_state task;
static volatile u32 traps, faults, last_eip, last_dr6;
u32 kernel_esp;

/* The last two bytes of one page, the first two of the next. */
static struct {
    u8 before[4094];
    volatile u32 counter;
    u8 after[4094];
} __attribute__((packed, aligned(4096))) shared;

#if PAGING
static __attribute__((aligned(4096))) u32 directory[4 * 1024], tables[8 * 1024];
#endif
#if PAGING == 36
static __attribute__((aligned(32))) u64 top[4];
#endif

extern u8 after_lock[], after_wrmsr[];

__attribute__((interrupt)) static void debug_exception(struct frame *frame)
{
    u32 dr6, clear = 0xffff0ff0;

    __asm__ volatile("mov %%dr6, %0" : "=r"(dr6));
    __asm__ volatile("mov %0, %%dr6" : : "r"(clear));
    last_dr6 = dr6;
    last_eip = frame->eip;
    traps++;
}

__attribute__((interrupt)) static void protection_fault(struct frame *frame, u32 error)
{
    faults++;
    line("#GP at WRMSR", frame->eip == (u32)after_wrmsr - 2);
    line("error", error);
    frame->eip = (u32)after_wrmsr;
}

static void set_gate(int vector, const void *handler, u8 rights)
{
    u32 at = (u32)handler;
    idt[vector] = (struct gate){at, 0x08, 0, rights, at >> 16};
}

static void start_paging(void)
{
#if PAGING == 32
    for (u32 i = 0; i < 4 * 1024; i++)
        tables[i] = i << 12 | 7;
    for (u32 i = 0; i < 4; i++)
        directory[i] = (u32)&tables[i * 1024] | 7;
    __asm__ volatile("mov %0, %%cr3" : : "r"(directory));
#elif PAGING == 36
    u64 *entries = (u64 *)tables, *directories = (u64 *)directory;
    u32 cr4;

    for (u32 i = 0; i < 4 * 1024; i++)
        entries[i] = i << 12 | 7;
    for (u32 i = 0; i < 8; i++)
        directories[i] = (u32)&entries[i * 512] | 7;
    for (u32 i = 0; i < 4; i++)
        top[i] = (u32)&directories[i * 512] | 1;
    __asm__ volatile("mov %%cr4, %0" : "=r"(cr4));
    __asm__ volatile("mov %0, %%cr4" : : "r"(cr4 | 0x20));
    __asm__ volatile("mov %0, %%cr3" : : "r"(top));
#endif
#if PAGING
    u32 cr0;
    __asm__ volatile("mov %%cr0, %0" : "=r"(cr0));
    __asm__ volatile("mov %0, %%cr0" : : "r"((cr0 | 0x80000000) & ~0x60000000));
#endif
}

__attribute__((noreturn)) static void user(void)
{
    __asm__ volatile("lock incl %0\n"
                     ".globl after_lock\n"
                     "after_lock: int $0x80"
                     : "+m"(shared.counter));
    __builtin_unreachable();
}

void enter_user(const void *code, void *stack);
extern u8 leave_user[];

__asm__(".text\n.globl _start, leave_user\n"
        "_start: mov $0x90000, %esp\n call guest\n"
        "enter_user: mov 4(%esp), %eax\n mov 8(%esp), %ecx\n push %ebx\n push %esi\n"
        " push %edi\n push %ebp\n mov %esp, kernel_esp\n mov $0x23, %edx\n mov %edx, %ds\n"
        " push $0x23\n push %ecx\n push $2\n push $0x1b\n push %eax\n iret\n"
        "leave_user: mov kernel_esp, %esp\n mov $0x10, %edx\n mov %edx, %ds\n pop %ebp\n"
        " pop %edi\n pop %esi\n pop %ebx\n ret\n");

__attribute__((used)) static void guest(void)
{
    static u8 stack[1024] __attribute__((aligned(16)));
    static u8 exception_stack[1024] __attribute__((aligned(16)));
    struct table descriptors = {sizeof gdt - 1, gdt}, vectors = {sizeof idt - 1, idt};
    u32 at = (u32)&task, bld = BLD, high = 0, cr0;

    gdt[5] = 0x890000000067 | (u64)(at & 0xffffff) << 16 | (u64)(at >> 24) << 56;
    task.stack = (u32)exception_stack + sizeof exception_stack;
    task.segment = 0x10;
    __asm__ volatile("lgdt %0; ljmp $0x08, $1f; 1: mov %1, %%ds; mov %1, %%es; mov %1, %%ss; ltr %w2"
                     : : "m"(descriptors), "r"(0x10), "r"(0x28));
    set_gate(1, debug_exception, 0x8e);
    set_gate(13, protection_fault, 0x8e);
    set_gate(0x80, leave_user, 0xee);
    __asm__ volatile("lidt %0" : : "m"(vectors));
    start_paging();
    __asm__ volatile("mov %%cr0, %0" : "=r"(cr0));
    line("paging", cr0 >> 31);
    line("detection", has_bus_lock_detect());
#ifdef TRY
    if (1)
#else
    if (has_bus_lock_detect())
#endif
        __asm__ volatile("wrmsr\n.globl after_wrmsr\nafter_wrmsr:"
                         : : "c"(DEBUGCTL), "a"(bld), "d"(high) : "memory");
    enter_user(user, stack + sizeof stack);
    line("counter", shared.counter);
    line("traps", traps);
    line("dr6", last_dr6);
    line("after", traps ? last_eip - (u32)after_lock : 0);
    finish(faults ? 0x13 : traps);
}
