#include "split.h"

void in_library(void *counter, int times);

int main(void) {
    static char buffer[128] ALIGNED;
    in_library(buffer, 44);
    printf("%d\n", buffer[63]);
    return 0;
}
