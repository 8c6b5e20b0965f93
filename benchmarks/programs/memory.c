/* Memory: pointer chasing over 256 KiB and 8 MiB, and memcpy.  Prints a checksum. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t chase(size_t bytes, long steps)
{
    size_t n = bytes / sizeof(uint64_t);
    uint64_t *next = malloc(bytes);
    for (size_t i = 0; i < n; i++) next[i] = i;
    uint64_t seed = 88172645463325252ull;
    for (size_t i = n - 1; i > 0; i--) { /* Sattolo: one cycle through all of it */
        seed ^= seed << 13; seed ^= seed >> 7; seed ^= seed << 17;
        size_t j = seed % i;
        uint64_t t = next[i]; next[i] = next[j]; next[j] = t;
    }
    uint64_t at = 0;
    while (steps--) at = next[at];
    free(next);
    return at;
}

int main(int argc, char **argv)
{
    int scale = argc > 1 ? atoi(argv[1]) : 10;
    uint64_t a = chase(256 << 10, 3000000L * scale);
    uint64_t b = chase(8 << 20, 600000L * scale);
    size_t size = 1 << 20;
    char *x = malloc(size + 64), *y = malloc(size + 64);
    memset(x, 1, size + 64);
    for (int i = 0; i < 20 * scale; i++) { memcpy(y, x + (i & 15), size); x[i] ^= y[i]; }
    printf("%llu %llu %d\n", (unsigned long long)a, (unsigned long long)b, x[7] + y[9]);
    return 0;
}
