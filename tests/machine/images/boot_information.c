/* A 32-bit multiboot guest that prints everything its boot loader has told it. */

typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long long u64;

__attribute__((section(".multiboot"), used))
static const u32 header[] = {0x1badb002, 3, -(0x1badb002u + 3)};

struct module {
    u32 start, end;
    const char *string;
    u32 reserved;
};

struct region {
    u32 size; /* of what follows */
    u64 start, length;
    u32 kind;
} __attribute__((packed));

struct information {
    u32 flags, memory_lower, memory_upper, boot_device;
    const char *command_line;
    u32 modules;
    const struct module *first_module;
    u32 symbols[4];
    u32 map_size;
    const u8 *map;
    u32 drives[2], configuration;
    const char *loader;
};

u32 cr0, cr4, eflags, segments[6]; /* written below, in assembly */

static void out(unsigned short port, u8 byte)
{
    __asm__ volatile("outb %0, %1" : : "a"(byte), "Nd"(port));
}

static void print(const char *text)
{
    while (*text)
        out(0x3f8, *text++);
}

static void hex(const char *name, u64 number, int digits)
{
    print(name);
    print(" ");
    while (digits--)
        out(0x3f8, "0123456789abcdef"[number >> 4 * digits & 15]);
}

static void line(const char *name, u32 number)
{
    hex(name, number, 8);
    print("\n");
}

static void text(const char *name, const char *what)
{
    print(name);
    print(" '");
    print(what);
    print("'\n");
}

static void modules(const struct information *boot)
{
    for (u32 i = 0; i < boot->modules; i++) {
        const struct module *module = boot->first_module + i;
        u32 sum = 0;

        for (const u8 *at = (const u8 *)module->start; at != (const u8 *)module->end; at++)
            sum = sum * 31 + *at;
        line("module.size", module->end - module->start);
        line("module.sum", sum);
        line("module.in-page", module->start & 0xfff);
        line("module.reserved", module->reserved);
        text("module.string", module->string);
    }
}

static void map(const struct information *boot)
{
    const u8 *at = boot->map;

    while (at < boot->map + boot->map_size) {
        const struct region *region = (const struct region *)at;

        hex("region", region->start, 16);
        hex(" +", region->length, 16);
        line(" kind", region->kind);
        at += region->size + 4;
    }
}

__attribute__((used)) static void guest(u32 magic, const struct information *boot)
{
    line("magic", magic);
    line("cr0", cr0 & 0x80000001); /* PG and PE: the rest is the loader's affair */
    line("cr4", cr4);
    line("eflags", eflags & 0x20200); /* VM and IF */
    for (int i = 0; i < 6; i++) {
        u32 limit = 0;

        __asm__("lsl %1, %0" : "+r"(limit) : "r"(segments[i]));
        line("limit", limit);
    }
    line("flags", boot->flags);
    line("lower", boot->memory_lower);
    line("upper", boot->memory_upper);
    line("device", boot->boot_device);
    text("command", boot->command_line);
    text("loader", boot->loader);
    line("modules", boot->modules);
    if (boot->flags & 8)
        modules(boot);
    map(boot);
    out(0xf4, 0x2a);
    for (;;)
        __asm__ volatile("hlt");
}

__asm__(".text\n.globl _start\n"
        "_start: mov $0x90000, %esp\n push %ebx\n push %eax\n"
        " pushf\n pop eflags\n mov %cr0, %eax\n mov %eax, cr0\n mov %cr4, %eax\n mov %eax, cr4\n"
        " mov %cs, segments\n mov %ds, segments + 4\n mov %es, segments + 8\n"
        " mov %fs, segments + 12\n mov %gs, segments + 16\n mov %ss, segments + 20\n"
        " call guest\n");
