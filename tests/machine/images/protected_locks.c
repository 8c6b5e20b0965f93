/* A 32-bit multiboot guest whose counter lies across two cache lines. */

__attribute__((section(".multiboot"), used))
static const unsigned int header[] = {0x1badb002, 0, -0x1badb002u};

struct counters {
    char name[62];
    volatile unsigned int busy;
} __attribute__((packed));

__attribute__((aligned(64))) struct counters counters;

__attribute__((noinline)) static void count(struct counters *which)
{
    __sync_fetch_and_add(&which->busy, 1);
}

__attribute__((used)) static void guest(void)
{
    for (int i = 0; i < 100; i++)
        count(&counters);
    __asm__ volatile("outb %0, $0xf4" : : "a"((unsigned char)counters.busy));
    for (;;)
        __asm__ volatile("hlt");
}

__asm__(".text\n.globl _start\n_start: mov $0x90000, %esp\n call guest\n");
