// Handlers for what instructions do wrong.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

static char *page;
static sigjmp_buf back;
static volatile int mends;

static void mend(int signal, siginfo_t *siginfo, void *context) {
    ucontext_t *uc = context;
    printf("signal %d code %d at +%ld error %lld trap %lld cr2 %d\n", signal, siginfo->si_code,
           (char *)siginfo->si_addr - page, uc->uc_mcontext.gregs[REG_ERR],
           uc->uc_mcontext.gregs[REG_TRAPNO], uc->uc_mcontext.gregs[REG_CR2] == (long)siginfo->si_addr);
    mends++;
    mprotect(page, 4096, PROT_READ | PROT_WRITE);
}

static void leave(int signal, siginfo_t *siginfo, void *context) {
    ucontext_t *uc = context;
    printf("signal %d code %d here %d trap %lld\n", signal, siginfo->si_code,
           (long)siginfo->si_addr == uc->uc_mcontext.gregs[REG_RIP], uc->uc_mcontext.gregs[REG_TRAPNO]);
    siglongjmp(back, signal);
}

static void skip(int signal, siginfo_t *siginfo, void *context) {
    ucontext_t *uc = context;
    printf("skip %d code %d\n", signal, siginfo->si_code);
    uc->uc_mcontext.gregs[REG_RIP] += 2;
}

static void handle(int signal, void (*handler)(int, siginfo_t *, void *), int flags) {
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};
    sigaction(signal, &action, NULL);
}

int main(void) {
    setvbuf(stdout, NULL, _IONBF, 0);
    sigset_t mask;
    page = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    handle(SIGSEGV, mend, 0);
    page[17] = 'x';
    printf("mended %c %d\n", page[17], mends);
    mprotect(page, 4096, PROT_NONE);
    printf("read %d, mended %d\n", page[1], mends);

    for (int signal = 1; signal < 12; signal++)
        if (signal == SIGILL || signal == SIGFPE || signal == SIGSEGV || signal == SIGBUS || signal == SIGTRAP)
            handle(signal, leave, 0);
    volatile int zero = 0;
    if (!sigsetjmp(back, 1)) printf("%d\n", 10 / zero);
    if (!sigsetjmp(back, 1)) __asm__ volatile("ud2");
    if (!sigsetjmp(back, 1)) __asm__ volatile("int3");
    if (!sigsetjmp(back, 1)) *(volatile int *)16 = 1;
    if (!sigsetjmp(back, 1)) *(volatile int *)(1UL << 63) = 1;
    if (!sigsetjmp(back, 1)) __asm__ volatile("hlt");
    if (!sigsetjmp(back, 1)) ((void (*)(void))page)();
    char name[] = "/tmp/faultsXXXXXX";
    int fd = mkstemp(name);
    unlink(name);
    char *file = mmap(NULL, 8192, PROT_READ, MAP_SHARED, fd, 0);
    if (!sigsetjmp(back, 1)) printf("%d\n", *(volatile char *)file);
    sigprocmask(SIG_BLOCK, NULL, &mask);
    printf("blocked after the jumps %d\n", sigismember(&mask, SIGSEGV));

    handle(SIGILL, skip, 0);
    __asm__ volatile("ud2");
    handle(SIGSEGV, leave, 0);
    kill(getpid(), SIGCONT);
    if (!sigsetjmp(back, 1)) kill(getpid(), SIGSEGV);
    // A fault whose signal is blocked cannot wait.
    sigemptyset(&mask);
    sigaddset(&mask, SIGFPE);
    sigprocmask(SIG_BLOCK, &mask, NULL);
    printf("%d\n", 20 / zero);
    return 0;
}
