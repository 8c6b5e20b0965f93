/* A multiboot guest with several processors: each runs code at CPL 3 that takes split locks on one
   shared variable, with the bus lock debug exception enabled where the processor has it. */

#include "guest.h"

enum { MOST = 8, ROUNDS = 100, APIC = 0xfee00000, INIT = 0xc4500, STARTUP = 0xc4608 };

struct gate {
    u16 low, selector;
    u8 stack, rights;
    u16 middle;
    u32 high, reserved;
};

struct task_state {
    u32 reserved;
    u32 kernel_stack[2];
    u32 rest[23];
};

struct processor {
    struct task_state task;
    u32 traps, wrong_traps, dr6, number;
    volatile u32 is_done;
    __attribute__((aligned(16))) u8 user_stack[1024];
};

struct frame {
    u64 rip, cs, rflags, rsp, ss;
};

extern u64 gdt[];
extern void user_gate(void);
extern void run_user(void *argument, void *stack, u32 *kernel_stack, void (*function)(void *));

static struct processor processors[MOST];
static struct gate idt[256];
static volatile u32 go;

/* Two bytes on one cache line, two on the next. */
static struct {
    u8 before[62];
    volatile u32 counter;
} __attribute__((packed, aligned(64))) shared;

static void set_gate(int vector, void *handler, u8 rights)
{
    u64 at = (u64)handler;
    idt[vector] = (struct gate){at, 0x08, 0, rights, at >> 16, at >> 32, 0};
}

static struct processor *self(void)
{
    u16 task;
    __asm__("str %0" : "=r"(task));
    return &processors[(task - 0x30) / 16];
}

extern u8 after_lock[];

__attribute__((interrupt)) static void debug_exception(struct frame *frame)
{
    struct processor *me = self();
    u64 dr6, clear = 0xffff0ff0;

    __asm__ volatile("mov %%dr6, %0" : "=r"(dr6));
    __asm__ volatile("mov %0, %%dr6" : : "r"(clear)); /* bit 11 is the guest's to set again */
    me->dr6 = dr6;
    me->traps++;
    if (dr6 >> 11 & 1 || frame->rip != (u64)after_lock || (frame->cs & 3) != 3)
        me->wrong_traps++;
}

static void user(void *argument)
{
    for (int i = 0; i < ROUNDS; i++)
        __asm__ volatile("lock incl %0\n"
                         ".globl after_lock\n"
                         "after_lock:"
                         : "+m"(shared.counter));
    (void)argument;
    __asm__ volatile("int $0x80");
    __builtin_unreachable();
}

static void work(u32 number)
{
    struct processor *me = &processors[number];
    u64 at = (u64)&me->task;
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) table = {sizeof idt - 1, (u64)idt};

    me->number = number;
    gdt[6 + 2 * number] =
        0x890000000067 | (at & 0xffffff) << 16 | (at >> 24 & 0xff) << 56;
    gdt[7 + 2 * number] = at >> 32;
    __asm__ volatile("ltr %w0" : : "r"(0x30 + 16 * number));
    __asm__ volatile("lidt %0" : : "m"(table));
    if (has_bus_lock_detect())
        write_msr(DEBUGCTL, BLD);
    while (!go)
        __asm__ volatile("pause");
    run_user(me, me->user_stack + sizeof me->user_stack - 8, me->task.kernel_stack, user);
    me->is_done = 1;
}

__attribute__((noreturn, used)) void application_processor(u32 number)
{
    work(number);
    for (;;)
        __asm__ volatile("cli; hlt");
}

static void wait(int times)
{
    while (times--)
        out8(0x80, 0);
}

static void send(u32 command, int is_x2apic)
{
    if (is_x2apic)
        write_msr(0x830, command);
    else
        *(volatile u32 *)(APIC + 0x300) = command;
    wait(100);
}

static void start_others(int is_x2apic)
{
    if (is_x2apic)
        write_msr(0x1b, read_msr(0x1b) | 0xc00);
    else
        *(volatile u32 *)(APIC + 0xf0) = 0x1ff;
    send(INIT, is_x2apic);
    send(STARTUP, is_x2apic);
    send(STARTUP, is_x2apic);
}

static int ends_with(const char *text, const char *end)
{
    int size = __builtin_strlen(text), end_size = __builtin_strlen(end);

    return size >= end_size && !__builtin_strcmp(text + size - end_size, end);
}

int strcmp(const char *one, const char *other)
{
    while (*one && *one == *other)
        one++, other++;
    return *one - *other;
}

u64 strlen(const char *text)
{
    u64 size = 0;

    while (text[size])
        size++;
    return size;
}

__attribute__((noreturn, used)) void boot_processor(const u32 *information)
{
    int is_x2apic = ends_with((const char *)(u64)information[4], " x2apic");
    u32 count, wrong = 0;

    out16(0x510, 5); /* fw_cfg: the number of processors */
    count = in8(0x511);
    line("processors", count);
    line("detection", has_bus_lock_detect());
    if (is_x2apic && !(cpuid(1, 0, 2) >> 21 & 1)) {
        print("no x2APIC\n");
        finish(2);
    }
    set_gate(1, debug_exception, 0x8e);
    set_gate(0x80, user_gate, 0xee);
    if (count > 1)
        start_others(is_x2apic);
    go = 1;
    work(0);
    for (u32 i = 0; i < count; i++) {
        struct processor *one = &processors[i];

        while (!one->is_done)
            __asm__ volatile("pause");
        line("traps", one->traps);
        line("dr6", one->dr6);
        wrong += one->wrong_traps;
    }
    line("wrong", wrong);
    line("counter", shared.counter);
    finish(shared.counter == ROUNDS * count && !wrong ? 0 : 1);
}
