// What a handler finds on its stack, and what returning through it restores.
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

static char stack[1 << 16];
static volatile int depth, times;

static int on_stack(void *place) { return (char *)place >= stack && (char *)place < stack + sizeof stack; }

static void check(int signal, siginfo_t *siginfo, void *context) {
    ucontext_t *uc = context;
    char *fp = (char *)uc->uc_mcontext.fpregs;
    uint32_t words[5];
    memcpy(words, fp + 464, sizeof words);
    uint32_t size = words[4], magic2, mxcsr;
    memcpy(&magic2, fp + size, 4);
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr));
    printf("signal %d code %d mine %d value %d\n", signal, siginfo->si_code,
           siginfo->si_pid == getpid(), siginfo->si_value.sival_int);
    printf("on stack %d flags %ld stack %d %d size %d\n", on_stack(&uc), uc->uc_flags,
           uc->uc_stack.ss_sp == stack, uc->uc_stack.ss_flags, uc->uc_stack.ss_size == sizeof stack);
    printf("magic %x %x extended %d aligned %d\n", words[0], magic2, words[1] == size + 4,
           (int)((uintptr_t)fp % 64));
    printf("segments %llx mask %lx fresh mxcsr %x\n", uc->uc_mcontext.gregs[REG_CSGSFS] & 0xffff,
           *(unsigned long *)&uc->uc_sigmask, mxcsr);
    printf("frame %d\n", (int)((uintptr_t)__builtin_frame_address(0) % 16));
    uc->uc_mcontext.gregs[REG_R12] = 0x1234;
    uc->uc_mcontext.gregs[REG_EFL] |= 1;
}

static void nested(int signal) {
    sigset_t mask;
    sigprocmask(SIG_BLOCK, NULL, &mask);
    printf("nested %d depth %d blocked %d %d\n", signal, depth, sigismember(&mask, SIGUSR1),
           sigismember(&mask, SIGUSR2));
    depth++;
    if (times++ < 2) raise(SIGUSR1);
    depth--;
}

static void once(int signal) { printf("once %d\n", signal); }

// Raises a signal with values in registers, the red zone and the flags; what is left of them.
static void registers(void) {
    unsigned long r12, zone, carry;
    double before[2] = {1.5, -2.25}, after[2];
    long pid = getpid(), tid = syscall(SYS_gettid);
    __asm__ volatile(
        "mov $7, %%r12\n movq $99, -64(%%rsp)\n movupd (%[before]), %%xmm9\n fldpi\n"
        "movl $0x1fa0, -100(%%rsp)\n ldmxcsr -100(%%rsp)\n clc\n"
        "mov $234, %%eax\n mov %[pid], %%rdi\n mov %[tid], %%rsi\n mov $10, %%edx\n syscall\n"
        "sbb %[carry], %[carry]\n mov %%r12, %[r12]\n mov -64(%%rsp), %[zone]\n movupd %%xmm9, (%[after])\n"
        "fstp %%st\n movl $0x1f80, -100(%%rsp)\n ldmxcsr -100(%%rsp)\n"
        : [r12] "=&b"(r12), [zone] "=&r"(zone), [carry] "=&r"(carry)
        : [before] "r"(before), [after] "r"(after), [pid] "r"(pid), [tid] "r"(tid)
        : "rax", "rcx", "rdx", "rdi", "rsi", "r11", "r12", "xmm9", "memory", "cc");
    printf("r12 %lx red zone %lu xmm9 %g %g carry %d\n", r12, zone, after[0], after[1],
           carry != 0);
}

int main(void) {
    setvbuf(stdout, NULL, _IONBF, 0);
    stack_t new = {.ss_sp = stack, .ss_size = sizeof stack}, old;
    printf("sigaltstack %d\n", sigaltstack(&new, &old));
    printf("old %d\n", old.ss_flags);
    struct sigaction action = {.sa_sigaction = check, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaddset(&action.sa_mask, SIGUSR2);
    sigaction(SIGUSR1, &action, NULL);
    registers();
    sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 42});

    struct sigaction twice = {.sa_handler = nested, .sa_flags = SA_NODEFER | SA_ONSTACK};
    sigaction(SIGUSR1, &twice, NULL);
    raise(SIGUSR1);
    twice.sa_flags = times = 0;
    sigaddset(&twice.sa_mask, SIGUSR2);
    sigaction(SIGUSR1, &twice, &action);
    printf("was %x\n", action.sa_flags & ~0x04000000);
    raise(SIGUSR1);

    struct sigaction gone = {.sa_handler = once, .sa_flags = SA_RESETHAND};
    sigaction(SIGUSR2, &gone, NULL);
    raise(SIGUSR2);
    sigaction(SIGUSR2, NULL, &gone);
    printf("default again %d\n", gone.sa_handler == SIG_DFL);
    stack_t tiny = {.ss_sp = stack, .ss_size = 100};
    printf("too small %d\n", sigaltstack(&tiny, NULL));
    return 0;
}
