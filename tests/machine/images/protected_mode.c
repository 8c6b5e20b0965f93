/* A 32-bit multiboot guest in C: prints its command line and the size of its memory. */

typedef unsigned int u32;

__attribute__((section(".multiboot"), used))
static const u32 header[] = {0x1badb002, 2, -(0x1badb002u + 2)};

static void out(unsigned short port, unsigned char byte)
{
    __asm__ volatile("outb %0, %1" : : "a"(byte), "Nd"(port));
}

static void print(const char *text)
{
    while (*text)
        out(0x3f8, *text++);
}

__attribute__((used)) static void guest(u32 magic, const u32 *boot)
{
    u32 kib = boot[2];
    char digits[11], *p = digits + 10;

    if (magic != 0x2badb002)
        out(0xf4, 1);
    print((const char *)boot[4]);
    print("\n");
    *p = 0;
    do
        *--p = '0' + kib % 10;
    while (kib /= 10);
    print(p);
    print(" KiB\n");
    out(0xf4, 0x2a);
    for (;;)
        __asm__ volatile("hlt");
}

__asm__(".text\n.globl _start\n_start: mov $0x90000, %esp\n push %ebx\n push %eax\n call guest\n");
