/* A 64-bit multiboot guest that changes where an address leads and flushes in each way there is. */

#include "guest.h"

enum { PRESENT = 1, WRITABLE = 2, GLOBAL = 0x100, PGE = 0x80 };

static u8 places[3][4096] __attribute__((aligned(4096)));
static u64 table[512] __attribute__((aligned(4096)));
static volatile u8 *const window = (u8 *)0x40000000;

static u64 cr4(void)
{
    u64 value;
    __asm__ volatile("mov %%cr4, %0" : "=r"(value));
    return value;
}

static void set_cr4(u64 value) { __asm__ volatile("mov %0, %%cr4" : : "r"(value) : "memory"); }

static void reload_cr3(void)
{
    u64 value;
    __asm__ volatile("mov %%cr3, %0; mov %0, %%cr3" : "=r"(value) : : "memory");
}

static void lead_to(int place, u64 flags)
{
    table[0] = (u64)places[place] | flags | PRESENT | WRITABLE;
    __asm__ volatile("" : : : "memory");
}

__attribute__((noreturn, used)) void application_processor(u32 number)
{
    (void)number;
    for (;;)
        __asm__ volatile("hlt");
}

__attribute__((noreturn, used)) void boot_processor(const u32 *information)
{
    u64 *top, *pointers, *directory;
    u32 wrong = 0;

    (void)information;
    for (int i = 0; i < 3; i++)
        places[i][0] = i + 1;
    __asm__("mov %%cr3, %0" : "=r"(top));
    pointers = (u64 *)(*top & ~0xfffull);
    directory = (u64 *)(pointers[1] & ~0xfffull);
    directory[0] = (u64)table | PRESENT | WRITABLE;
    reload_cr3();
    for (int round = 0; round < 3; round++) {
        lead_to(0, 0);
        reload_cr3();
        wrong += window[0] != 1;
        lead_to(1, 0);
        set_cr4(cr4() ^ PGE);
        wrong += window[0] != 2;
        lead_to(2, 0);
        __asm__ volatile("invlpg %0" : : "m"(*window) : "memory");
        wrong += window[0] != 3;
        lead_to(0, GLOBAL);
        set_cr4(cr4() | PGE);
        set_cr4(cr4() & ~(u64)PGE);
        wrong += window[0] != 1;
    }
    line("stale", wrong);
    finish(wrong);
}
