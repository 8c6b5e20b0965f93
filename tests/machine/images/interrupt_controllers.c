/* A 32-bit multiboot guest that asks the local APIC (in memory), the I/O APIC and the ACPI tables
   whatever has one right answer, and starts the other processors. */

#include "guest.h"

__attribute__((section(".multiboot"), used))
static const u32 header[] = {0x1badb002, 3, -(0x1badb002u + 3)};

enum { ID = 0x20, TPR = 0x80, PPR = 0xa0, EOI = 0xb0, LDR = 0xd0, DFR = 0xe0, SVR = 0xf0 };
enum { ISR = 0x100, TMR = 0x180, IRR = 0x200, ESR = 0x280, ICR = 0x300, TO = 0x310 };
enum { TIMER = 0x320, LINT0 = 0x350, LINT1 = 0x360, ERROR = 0x370 };
enum { INITIAL = 0x380, CURRENT = 0x390, DIVIDE = 0x3e0 };
enum { MASKED = 1 << 16, PERIODIC = 1 << 17, LEVEL = 1 << 15, LOGICAL = 1 << 11 };
enum { TO_SELF = 1 << 18, TO_OTHERS = 3 << 18, NMI = 4 << 8, INIT = 5 << 8, START = 6 << 8 };
enum { ASSERT = 1 << 14 };
enum { LOW = 0x41, HIGH = 0x61, LINE = 10, TEST_LINES = 0x2000 };

static volatile u32 counts[256];
static u32 inside[6];

static u32 read(u32 offset) { return *(volatile u32 *)(0xfee00000 + offset); }
static void write(u32 offset, u32 word) { *(volatile u32 *)(0xfee00000 + offset) = word; }

static u32 read_line(u32 index)
{
    *(volatile u32 *)0xfec00000 = index;
    return *(volatile u32 *)0xfec00010;
}

static void write_line(u32 index, u32 word)
{
    *(volatile u32 *)0xfec00000 = index;
    *(volatile u32 *)0xfec00010 = word;
}

static void raise(int line_number, int is_high) { out8(TEST_LINES + line_number, is_high); }

#define HANDLER(name) __attribute__((interrupt)) static void name(void *frame)

HANDLER(on_low)
{
    (void)frame;
    counts[LOW]++;
    write(EOI, 0);
}

HANDLER(on_high)
{
    (void)frame;
    counts[HIGH]++;
    write(ICR, ASSERT | TO_SELF | LOW);
    inside[0] = read(PPR);
    inside[1] = read(ISR + 0x30);
    inside[2] = read(IRR + 0x20);
    inside[3] = counts[LOW];
    write(EOI, 0);
}

/* The line stays high until the third time. */
HANDLER(on_line)
{
    (void)frame;
    if (++counts[LINE] == 3)
        raise(LINE, 0);
    inside[4] = read_line(0x10 + 2 * LINE);
    inside[5] = read(TMR + 0x20);
    write(EOI, 0);
}

HANDLER(on_nmi)
{
    (void)frame;
    counts[2]++;
}

HANDLER(on_spurious) { (void)frame; }

static struct {
    u16 low, selector, rights, high;
} gates[256];

static void handle(int vector, void (*handler)(void *))
{
    u16 selector;

    __asm__ volatile("mov %%cs, %0" : "=r"(selector));
    gates[vector].low = (u32)handler;
    gates[vector].high = (u32)handler >> 16;
    gates[vector].selector = selector;
    gates[vector].rights = 0x8e00;
}

static void wait(int vector, u32 count)
{
    while (counts[vector] < count)
        __asm__ volatile("pause");
}

/* -- the tables ------------------------------------------------------------------------------- */

static u32 word(u32 at) { return *(volatile u32 *)at; }

static void tables(void)
{
    u32 at, rsdt, madt = 0, cpus = 0, i;

    for (at = 0xe0000; at < 0x100000; at += 16)
        if (word(at) == 0x20445352 && word(at + 4) == 0x20525450) /* "RSD PTR " */
            break;
    rsdt = word(at + 16);
    for (i = 36; i < word(rsdt + 4); i += 4)
        if (word(word(rsdt + i)) == 0x43495041) /* "APIC" */
            madt = word(rsdt + i);
    line("madt.address", word(madt + 36));
    line("madt.flags", word(madt + 40));
    for (i = 44; i < word(madt + 4); i += word(madt + i) >> 8 & 0xff) {
        if ((word(madt + i) & 0xff) == 0 && word(madt + i + 4) & 1)
            cpus++;
        if ((word(madt + i) & 0xff) == 1)
            line("io_apic.address", word(madt + i + 4));
        if ((word(madt + i) & 0xffffff) == 0x000a02 && word(madt + i) >> 24 == 0)
            line("irq0.gsi", word(madt + i + 4));
    }
    line("cpus", cpus);
}

/* -- the local APIC --------------------------------------------------------------------------- */

static void local(void)
{
    u32 first, i;

    line("id", read(ID));
    line("svr", read(SVR));
    line("lint0", read(LINT0));
    line("lint1", read(LINT1));
    line("timer", read(TIMER));
    line("tpr", read(TPR));
    write(LDR, 0x01ffffff);
    line("ldr", read(LDR));
    write(DFR, 0x0fffffff);
    line("dfr", read(DFR));
    write(DFR, 0xffffffff);
    write(ICR, ASSERT | TO_SELF | HIGH);
    wait(LOW, 1);
    for (i = 0; i < 4; i++)
        line("inside", inside[i]);
    write(TO, 0x01000000);
    write(ICR, ASSERT | LOGICAL | LOW);
    wait(LOW, 2);
    write(TPR, 0x50);
    line("ppr", read(PPR));
    write(ICR, ASSERT | TO_SELF | LOW);
    line("held.irr", read(IRR + 0x20));
    line("held.count", counts[LOW]);
    write(TPR, 0);
    wait(LOW, 3);
    write(TO, read(ID));
    write(ICR, ASSERT | NMI);
    wait(2, 1);
    write(DIVIDE, 0xb);
    write(TIMER, MASKED | LOW);
    write(INITIAL, 0xffffffff);
    first = read(CURRENT);
    line("counts down", first > read(CURRENT));
    write(TIMER, PERIODIC | LOW);
    write(INITIAL, 1000000);
    wait(LOW, 8);
    write(INITIAL, 0);
    line("stopped", read(CURRENT));
    __asm__ volatile("cli");
    counts[LOW] = 0;
    __asm__ volatile("sti");
    write(TIMER, LOW);
    write(INITIAL, 1000000);
    wait(LOW, 1);
    line("once", counts[LOW]);
    line("current", read(CURRENT));
}

/* -- the I/O APIC ----------------------------------------------------------------------------- */

static void lines(void)
{
    line("io_apic.version", read_line(1));
    line("line.low", read_line(0x10 + 2 * LINE));
    line("line.high", read_line(0x11 + 2 * LINE));
    handle(LOW + 1, on_line);
    write_line(0x11 + 2 * LINE, read(ID));
    write_line(0x10 + 2 * LINE, (LOW + 1) | LEVEL);
    line("line.low", read_line(0x10 + 2 * LINE));
    raise(LINE, 1);
    wait(LINE, 3);
    line("line.inside", inside[4]);
    line("line.tmr", inside[5]);
    line("line.low", read_line(0x10 + 2 * LINE));
    line("line.count", counts[LINE]);
    write_line(0x10 + 2 * LINE, LOW);
    counts[LOW] = 0;
    raise(LINE, 1);
    raise(LINE, 1);
    raise(LINE, 0);
    raise(LINE, 1);
    wait(LOW, 1);
    write_line(0x10 + 2 * LINE, LOW | MASKED);
    raise(LINE, 0);
    raise(LINE, 1);
    line("line.low", read_line(0x10 + 2 * LINE));
    line("tmr", read(TMR + 0x20));
    /* The timer, at pin 2, about a thousand times a second. */
    counts[LOW] = 0;
    write_line(0x15, read(ID));
    write_line(0x14, LOW);
    out8(0x43, 0x34);
    out8(0x40, 0xa9);
    out8(0x40, 0x04);
    wait(LOW, 5);
    write_line(0x14, LOW | MASKED);
    /* At its slowest and as NMI: nothing else wakes who halts with interrupts off. */
    counts[2] = 0;
    write_line(0x14, NMI);
    out8(0x43, 0x34);
    out8(0x40, 0);
    out8(0x40, 0);
    while (counts[2] < 4)
        __asm__ volatile("cli; hlt; sti");
    write_line(0x14, LOW | MASKED);
    line("woken by NMI", counts[2] >= 4);
}

/* -- the other processors --------------------------------------------------------------------- */

extern const u8 started[], started_end[];
__asm__(".code16\n"
        "started: xorw %ax, %ax\n movw %ax, %ds\n movl %edx, %edi\n"
        "movl $1, %eax\n cpuid\n shrl $24, %ebx\n movw %bx, %si\n shlw $4, %si\n"
        "movl %ebx, 0x9000(%si)\n xorl %eax, %edi\n movl %edi, 0x9004(%si)\n"
        "movl %cr0, %eax\n movl %eax, 0x9008(%si)\n movl %dr6, %eax\n movl %eax, 0x900c(%si)\n"
        "lock incl 0x8ff0\n"
        "1: cli\n hlt\n jmp 1b\n"
        "started_end: .code32\n");

static void others(u32 cpus)
{
    volatile u32 *place = (u32 *)0x8ff0;
    u32 i;

    for (i = 0; i < (u32)(started_end - started); i++)
        ((u8 *)0x8000)[i] = started[i];
    *place = 0;
    write(TO, 0);
    write(ICR, ASSERT | TO_OTHERS | INIT);
    write(ICR, ASSERT | TO_OTHERS | START | 8);
    write(ICR, ASSERT | TO_OTHERS | START | 8);
    while (*place < cpus - 1)
        __asm__ volatile("pause");
    for (i = 1; i < cpus; i++) {
        line("started.id", word(0x9000 + 16 * i));
        line("started.edx is the signature", word(0x9004 + 16 * i) == 0);
        line("started.cr0", word(0x9008 + 16 * i));
        line("started.dr6", word(0x900c + 16 * i));
    }
}

__asm__(".global _start\n_start: movl $stack_end, %esp\n call start\n"
        ".bss\n .space 8192\n stack_end: .text\n");

__attribute__((used)) static void start(void)
{
    struct __attribute__((packed)) {
        u16 limit;
        u32 base;
    } pointer = {sizeof gates - 1, (u32)gates};

    out8(0x21, 0xff);
    out8(0xa1, 0xff);
    handle(2, on_nmi);
    handle(LOW, on_low);
    handle(HIGH, on_high);
    handle(0xff, on_spurious);
    __asm__ volatile("lidt %0; sti" : : "m"(pointer));
    tables();
    local();
    lines();
    out8(0x70, 0x5f);
    line("cmos.cpus", in8(0x71));
    out16(0x510, 5);
    others(in8(0x511));
    finish(0x2a);
}
