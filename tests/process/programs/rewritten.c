// Code that runs, is replaced by a system call instead of by stores, and runs again.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

typedef int function(void);
static unsigned char *place, text[6];
static int ends[2], sockets[2], file, number;

static unsigned char *next(void) {  // mov eax, number; ret
    number++;
    text[0] = 0xb8, text[5] = 0xc3;
    memcpy(text + 1, &number, 4);
    return text;
}

static void check(const char *how) {
    int found = ((function *)place)();
    printf("%s %s\n", how, found == number ? "seen" : "old");
}

static unsigned char *fresh(void *where, int flags) {
    return mmap(where, 8192, PROT_READ | PROT_WRITE | PROT_EXEC,
                MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
}

static void *other(void *argument) {
    check("read, in another thread");
    return argument;
}

static void by_calls(void) {
    struct iovec to = {place, 6}, from = {text, 6};
    struct msghdr message = {.msg_iov = &to, .msg_iovlen = 1};
    struct mmsghdr many = {.msg_hdr = message};
    write(ends[1], next(), 6), read(ends[0], place, 6), check("read");
    pthread_t thread;
    write(ends[1], next(), 6), read(ends[0], place, 6);
    pthread_create(&thread, NULL, other, NULL), pthread_join(thread, NULL);
    write(ends[1], next(), 6), readv(ends[0], &to, 1), check("readv");
    pwrite(file, next(), 6, 0), pread(file, place, 6, 0), check("pread");
    pwrite(file, next(), 6, 0), preadv(file, &to, 1, 0), check("preadv");
    send(sockets[1], next(), 6, 0), recv(sockets[0], place, 6, 0), check("recv");
    send(sockets[1], next(), 6, 0), recvmsg(sockets[0], &message, 0), check("recvmsg");
    send(sockets[1], next(), 6, 0), recvmmsg(sockets[0], &many, 1, 0, NULL), check("recvmmsg");
    next(), process_vm_writev(getpid(), &from, 1, &to, 1, 0), check("process_vm_writev");
    next(), process_vm_readv(getpid(), &to, 1, &from, 1, 0), check("process_vm_readv");
    // A structure whose content the program chooses.
    struct epoll_event wanted = {.events = EPOLLOUT}, *found = (void *)(place - 4);
    int epoll = epoll_create1(0);
    next(), memcpy(&wanted.data, text, 6), epoll_ctl(epoll, EPOLL_CTL_ADD, ends[1], &wanted);
    epoll_wait(epoll, found, 1, -1), check("epoll_wait"), close(epoll);
}

static void by_mappings(void) {
    mprotect(place, 4096, PROT_READ | PROT_WRITE);
    write(ends[1], next(), 6), read(ends[0], place, 6);
    mprotect(place, 4096, PROT_READ | PROT_EXEC), check("read while it was not executable");
    mprotect(place, 4096, PROT_NONE);
    munmap(place, 8192);
    fresh(place, MAP_FIXED_NOREPLACE), memcpy(place, next(), 6), check("unmapped and mapped");
    fresh(place, MAP_FIXED), memcpy(place, next(), 6), check("mapped over");
    mprotect(place, 4096, PROT_READ | PROT_WRITE), mprotect(place, 4096, PROT_NONE);
    fresh(place, MAP_FIXED), memcpy(place, next(), 6), check("mapped over when it was no code");
    madvise(place, 4096, MADV_DONTNEED);
    printf("zero %d\n", place[0]);
    write(ends[1], next(), 6), read(ends[0], place, 6), check("emptied and read");
    unsigned char *away = mremap(place, 8192, 8192, MREMAP_MAYMOVE | MREMAP_FIXED, place + 65536);
    fresh(place, MAP_FIXED_NOREPLACE), memcpy(place, next(), 6), check("moved away");
    printf("there %d\n", ((function *)away)() == number - 1);
    memcpy(away, next(), 6);
    mremap(away, 8192, 8192, MREMAP_MAYMOVE | MREMAP_FIXED, place), check("moved over");
    pwrite(file, next(), 6, 0);
    mmap(place, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, file, 0), check("file");
}

int main(void) {
    pipe(ends), socketpair(AF_UNIX, SOCK_DGRAM, 0, sockets);
    file = memfd_create("code", 0), ftruncate(file, 4096);
    // Apart from all else, with room behind; then where a program that is not PIE would have it.
    static void *const places[] = {(void *)0x200000000000, (void *)0x40000000};
    for (int i = 0; i < 2; i++) {
        place = fresh(places[i], MAP_FIXED_NOREPLACE);
        memcpy(place, next(), 6), check("new");
        place += 4096;
        by_calls();
        place -= 4096;
        by_mappings();
    }
    return 0;
}
