// Bytes at the end of a page with nothing behind it: undefined already, or cut off?
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

static unsigned char *page;
static volatile int found;
static volatile long where;
static sigjmp_buf back;

static void on_fault(int signal, siginfo_t *siginfo, void *context) {
    found = signal;
    where = (unsigned char *)siginfo->si_addr - page;
    siglongjmp(back, 1);
}

static void try(const char *bytes, int size) {
    unsigned char *at = page + 4096 - size;
    memcpy(at, bytes, size);
    if (!sigsetjmp(back, 1)) ((void (*)(void))at)();
    for (int i = 0; i < size; i++) printf("%02x", at[i]);
    printf(" %s at %ld\n", found == SIGILL ? "undefined" : found == SIGSEGV ? "cut off" : "?", where);
}

int main(void) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGILL, &action, NULL);
    sigaction(SIGSEGV, &action, NULL);
    page = mmap(NULL, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(page + 4096, 4096, PROT_NONE);
    // What 64-bit mode has no more, alone and behind prefixes; then what needs more bytes.
    const char *gone = "\x06\x07\x0e\x16\x17\x1e\x1f\x27\x2f\x37\x3f\x60\x61\xce\xd6";
    const char *prefixes[] = {"", "\x66", "\xf2", "\xf3", "\x48", "\x65\x67", "\x2e\x41"};
    for (int i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
        for (const char *opcode = gone; *opcode; opcode++) {
            char bytes[4];
            int size = strlen(strcpy(bytes, prefixes[i]));
            bytes[size] = *opcode;
            try(bytes, size + 1);
        }
    const char *cut[] = {"\x66", "\x48", "\x0f", "\x01", "\xb8", "\x0f\x10", "\xe8\x01", "\x9a",
                         "\xea", "\x82", "\x0f\x38", "\x0f\x3a", "\xd8", "\xf0", "\x66\x0f"};
    for (int i = 0; i < sizeof cut / sizeof *cut; i++) try(cut[i], strlen(cut[i]));
    return 0;
}
