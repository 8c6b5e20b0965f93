// The widest vector registers that the processor shows keep their values over a handler that
// overwrites them, and over a fork.
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WIDEST = 64 };
static unsigned char values[4][WIDEST], others[4][WIDEST], after[4][WIDEST];
static int width = 16;

#define TO(how, name, from) \
    how " (%[" from "]), %%" name "0\n" how " 64(%[" from "]), %%" name "1\n" \
    how " 128(%[" from "]), %%" name "7\n" how " 192(%[" from "]), %%" name "15\n"
#define FROM(how, name, to) \
    how " %%" name "0, (%[" to "])\n" how " %%" name "1, 64(%[" to "])\n" \
    how " %%" name "7, 128(%[" to "])\n" how " %%" name "15, 192(%[" to "])\n"
#define CLOBBERED "rcx", "r11", "xmm0", "xmm1", "xmm7", "xmm15", "memory"
// In one piece, so that no code of the compiler's or the library's is between.
#define AROUND(how, name) \
    __asm__ volatile(TO(how, name, "in") "syscall\n" FROM(how, name, "out") \
                     : "+a"(result) \
                     : [in] "r"(values), [out] "r"(after), "D"(first), "S"(second) \
                     : CLOBBERED)
#define FILL(how, name) __asm__ volatile(TO(how, name, "in")::[in] "r"(others) : CLOBBERED)

static long call(long result, long first, long second) {
    memset(after, 0, sizeof after);
    if (width == 64) AROUND("vmovdqu64", "zmm");
    else if (width == 32) AROUND("vmovdqu", "ymm");
    else AROUND("movdqu", "xmm");
    return result;
}

static void overwrite(int signal) {
    if (width == 64) FILL("vmovdqu64", "zmm");
    else if (width == 32) FILL("vmovdqu", "ymm");
    else FILL("movdqu", "xmm");
}

static int is_kept(void) {
    int kept = 1;
    for (int i = 0; i < 4; i++) kept &= !memcmp(values[i], after[i], width);
    return kept;
}

int main(void) {
    if (__builtin_cpu_supports("avx2")) width = 32;
    if (__builtin_cpu_supports("avx512f")) width = 64;
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < WIDEST; k++) values[i][k] = 16 * i + k + 1, others[i][k] = ~k;
    signal(SIGUSR1, overwrite);
    call(SYS_kill, getpid(), SIGUSR1);
    printf("over a signal: %d\n", is_kept());
    long child = call(SYS_fork, 0, 0);
    int status = is_kept();
    if (!child) _exit(status);
    waitpid(child, &status, 0);
    printf("over a fork: %d, in the child %d\n", is_kept(), WEXITSTATUS(status));
    return 0;
}
