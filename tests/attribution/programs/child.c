#include "split.h"

#include <sys/wait.h>
#include <unistd.h>

static struct packed counter ALIGNED;

__attribute__((noinline)) static void count(int times) {
    for (int i = 0; i < times; i++)
        __atomic_fetch_add(HITS(&counter), 1, __ATOMIC_SEQ_CST); /* split 60 count: global counter+0x3e */
}

int main(int arguments, char **words) {
    if (arguments > 1) {
        count(30); /* the program that a child became */
        return 0;
    }
    count(10);
    if (fork() == 0) {
        count(20);
        _exit(0);
    }
    if (fork() == 0) {
        execl("/proc/self/exe", words[0], "again", (char *)0);
        _exit(127);
    }
    int status = 0, failed = 0;
    while (wait(&status) > 0)
        failed |= status;
    printf("%d\n", failed);
    return failed != 0;
}
