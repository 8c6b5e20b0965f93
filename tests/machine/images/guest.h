/* What a freestanding test guest needs: ports, the serial port, model-specific registers. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

enum { SERIAL = 0x3f8, DEBUG_EXIT = 0xf4, DEBUGCTL = 0x1d9, BLD = 4 };

static inline void out8(u16 port, u8 value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void out16(u16 port, u16 value)
{
    __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port));
}

static inline u8 in8(u16 port)
{
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline u32 cpuid(u32 leaf, u32 subleaf, int which)
{
    u32 words[4];
    __asm__ volatile("cpuid"
                     : "=a"(words[0]), "=b"(words[1]), "=c"(words[2]), "=d"(words[3])
                     : "a"(leaf), "c"(subleaf));
    return words[which];
}

static inline u64 read_msr(u32 index)
{
    u32 low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
    return (u64)high << 32 | low;
}

static inline void write_msr(u32 index, u64 value)
{
    __asm__ volatile("wrmsr" : : "c"(index), "a"((u32)value), "d"((u32)(value >> 32)));
}

/* CPUID.(7,0):ECX[24], on either vendor. */
static inline int has_bus_lock_detect(void)
{
    return cpuid(0, 0, 0) >= 7 && cpuid(7, 0, 2) >> 24 & 1;
}

static inline void print(const char *text)
{
    while (*text)
        out8(SERIAL, *text++);
}

static inline void line(const char *name, u32 number)
{
    print(name);
    print(" ");
    for (int shift = 28; shift >= 0; shift -= 4)
        out8(SERIAL, "0123456789abcdef"[number >> shift & 15]);
    print("\n");
}

static inline __attribute__((noreturn)) void finish(u8 value)
{
    out8(DEBUG_EXIT, value);
    for (;;)
        __asm__ volatile("cli; hlt");
}
