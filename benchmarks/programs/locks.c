/* Locked increments: of an aligned word ("aligned") or of one across two lines ("split").
 * Needs no C library's help.  The split case must only run under Trapline. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char area[192] __attribute__((aligned(64)));

int main(int argc, char **argv)
{
    int split = argc > 1 && !strcmp(argv[1], "split");
    long n = argc > 2 ? atol(argv[2]) : 1000;
    int *word = (int *)(area + (split ? 62 : 64));
    for (long i = 0; i < n; i++) {
        __asm__ volatile("lock incl %0" : "+m"(*word));
        if (!split) {
            int one = 1;
            __asm__ volatile("lock xaddl %1, %0" : "+m"(*word), "+r"(one));
            __asm__ volatile("lock decl %0" : "+m"(*word));
        }
    }
    int total;
    memcpy(&total, word, sizeof total);
    printf("%d\n", total);
    return 0;
}
