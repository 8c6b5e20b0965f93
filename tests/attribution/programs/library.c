#include "split.h"

void in_library(void *counter, int times) {
    for (int i = 0; i < times; i++)
        __atomic_fetch_sub((uint16_t *)((char *)counter + 63), 1, __ATOMIC_SEQ_CST); /* split 44 in_library: global buffer */
}
