/* A packed counter that lies across two cache lines when its struct is 64-byte aligned. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct __attribute__((packed)) packed {
    char pad[62];
    uint32_t hits;
};

#define ALIGNED __attribute__((aligned(64)))
#define HITS(packed) ((uint32_t *)((char *)(packed) + 62))
