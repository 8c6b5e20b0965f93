/* A 32-bit multiboot guest that reads QEMU's fw_cfg in every way there is, and pc-testdev's ports. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

__attribute__((section(".multiboot"), used))
static const u32 header[] = {0x1badb002, 3, -(0x1badb002u + 3)};

enum { SELECTOR = 0x510, DATA = 0x511, DMA = 0x514 };
enum { SIGNATURE, ID, UUID, RAM_SIZE, CPUS = 5, MAX_CPUS = 15, DIRECTORY = 25 };

struct request {
    u32 control, size;
    u64 target;
};

struct file {
    u32 size;
    u16 key, reserved;
    char name[56];
};

static void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static void out16(u16 port, u16 value) { __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static void out32(u16 port, u32 value) { __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }

static u8 in8(u16 port)
{
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static u16 in16(u16 port)
{
    u16 value;
    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static u32 in32(u16 port)
{
    u32 value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static void print(const char *text)
{
    while (*text)
        out8(0x3f8, *text++);
}

static void bytes(const char *name, const void *from, u32 size)
{
    const u8 *at = from;

    print(name);
    while (size--) {
        u8 byte = *at++;

        print(" ");
        out8(0x3f8, "0123456789abcdef"[byte >> 4]);
        out8(0x3f8, "0123456789abcdef"[byte & 15]);
    }
    print("\n");
}

static void number(const char *name, u32 value) { bytes(name, &value, 4); }

static void read(void *to, u32 size)
{
    for (u8 *at = to; size--;)
        *at++ = in8(DATA);
}

static void item(const char *name, u16 key, u32 size)
{
    u8 buffer[64];

    out16(SELECTOR, key);
    read(buffer, size);
    bytes(name, buffer, size);
}

static void map(u16 key, u32 size)
{
    u8 region[20];

    out16(SELECTOR, key);
    for (; size; size -= sizeof region) {
        read(region, sizeof region);
        if (region[16] == 1)
            bytes("e820.memory", region, sizeof region);
    }
}

static void files(void)
{
    struct file file;
    u32 count;

    out16(SELECTOR, DIRECTORY);
    read(&count, 4);
    for (count = __builtin_bswap32(count); count--;) {
        read(&file, sizeof file);
        if (__builtin_strcmp(file.name, "etc/e820"))
            continue;
        number("file.reserved", file.reserved);
        map(__builtin_bswap16(file.key), __builtin_bswap32(file.size));
        return;
    }
}

static void dma(const char *name, u32 control, u32 size, void *target)
{
    volatile struct request request = {
        __builtin_bswap32(control), __builtin_bswap32(size), __builtin_bswap64((u32)target)};

    out32(DMA, 0);
    out32(DMA + 4, __builtin_bswap32((u32)&request));
    number(name, request.control);
}

static void test_device(void)
{
    out32(0xe0, 0x12345678);
    number("echo.32", in32(0xe0));
    number("echo.16", in16(0xe2));
    number("echo.8", in8(0xe1));
    out8(0xe3, 0xab);
    out16(0xe0, 0xcdef);
    number("echo.32", in32(0xe0));
    out8(0xe8, 0x5a);
    number("byte-echo", in8(0xe8));
    number("interrupts", in8(0x2003));
    out32(0xe4, 0x200000);
    number("nothing.8", in8(0x2ff));
    number("nothing.16", in16(0x2fe));
    number("nothing.32", in32(0x2fc));
}

static void strings(void)
{
    u8 buffer[16] = "................";
    void *at = buffer;
    u32 count = 6;

    out16(SELECTOR, SIGNATURE);
    __asm__ volatile("rep insb" : "+D"(at), "+c"(count) : "d"(DATA) : "memory");
    bytes("insb", buffer, 8);
    number("insb.count", count);
    at = buffer, count = 2;
    __asm__ volatile("rep outsl" : "+S"(at), "+c"(count) : "d"(0xe0) : "memory");
    number("outsl", in32(0xe0));
    at = buffer + 15, count = 3;
    __asm__ volatile("std; rep insw; cld" : "+D"(at), "+c"(count) : "d"(0xe0) : "memory");
    bytes("insw", buffer, 16);
}

static void window(void)
{
    volatile u8 *byte = (volatile u8 *)0xff000000;
    u32 value = 0x11223344, old = 7;
    u64 wide = 0x1122334455667788;

    *(volatile u32 *)(byte + 4) = 0xa1b2c3d4;
    number("window.32", *(volatile u32 *)(byte + 4));
    number("window.16", *(volatile u16 *)(byte + 5));
    number("window.8", byte[7]);
    __asm__ volatile("lock addl %1, %0" : "+m"(*(u32 *)(byte + 4)) : "r"(value));
    number("window.add", *(volatile u32 *)(byte + 4));
    __asm__ volatile("xchgl %0, %1" : "+r"(old), "+m"(*(u32 *)(byte + 8)));
    number("window.old", old);
    number("window.xchg", *(volatile u32 *)(byte + 8));
    __asm__ volatile("lock cmpxchgl %2, %1"
                     : "=a"(old), "+m"(*(u32 *)(byte + 8)) : "r"(value), "a"(7));
    number("window.cmpxchg", *(volatile u32 *)(byte + 8));
    __builtin_memset((void *)(byte + 0xfff0), 0x5a, 16);
    __asm__ volatile("cld; rep movsb" : : "S"(&wide), "D"(byte + 0xfff1), "c"(8) : "memory");
    bytes("window.end", (const void *)(byte + 0xfff0), 16);
    number("window.flags", *(volatile u32 *)(byte + 0xfff0) > byte[4]);
}

__attribute__((used)) static void guest(void)
{
    u8 buffer[16] = "................";
    u32 two;

    item("signature", SIGNATURE, 6);
    item("id", ID, 5);
    item("uuid", UUID, 16);
    item("ram", RAM_SIZE, 9);
    item("cpus", CPUS, 3);
    item("max-cpus", MAX_CPUS, 3);
    item("unknown", 0x3abc, 4);
    item("local", 0x8000 | RAM_SIZE, 4);
    out16(SELECTOR, SIGNATURE);
    two = in8(SELECTOR);
    number("selector.8", two | in8(DATA) << 8);
    files();
    number("dma.signature", in32(DMA));
    number("dma.signature", in32(DMA + 4));
    dma("dma.select-read", SIGNATURE << 16 | 8 | 2, 6, buffer);
    bytes("dma.data", buffer, 8);
    dma("dma.select-skip", SIGNATURE << 16 | 8 | 4, 2, buffer);
    dma("dma.read", 2, 1, buffer);
    bytes("dma.data", buffer, 8);
    dma("dma.write", SIGNATURE << 16 | 8 | 16, 4, buffer);
    bytes("then", &(u8){in8(DATA)}, 1);
    test_device();
    strings();
    window();
    out8(0xf4, 0x2a);
    for (;;)
        __asm__ volatile("hlt");
}

__asm__(".text\n.globl _start\n_start: mov $0x90000, %esp\n call guest\n");
