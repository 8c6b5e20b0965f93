"""The system calls of x86-64: number, name, and what the arguments are."""

from __future__ import annotations

# Arguments: i a number, f a descriptor, s a path, n a path whose last link is not followed, p what
# the call reads, b as many bytes as the next argument says, o a structure, a an array, all of which
# it writes, u a structure that it reads and writes.  "*" is a handler of our own: structures
# that hold pointers, or the VMM's business; after it may stand what the call writes all the same.
# "!" is a call a program under Trapline does not have: after it, the errno it gets.
_TABLE = """
0 read fbi; 1 write fpi; 2 open *; 3 close *; 4 stat so; 5 fstat fo; 6 lstat no; 7 poll aii
8 lseek fii; 9 mmap *; 10 mprotect *; 11 munmap *; 12 brk *; 13 rt_sigaction *
14 rt_sigprocmask *; 15 rt_sigreturn *; 16 ioctl *iia; 17 pread64 fbii; 18 pwrite64 fpii
19 readv *; 20 writev *; 21 access si; 22 pipe o; 23 select iuuuu; 24 sched_yield; 25 mremap *
26 msync *; 27 mincore *iia; 28 madvise *; 29 shmget iii; 30 shmat *; 31 shmctl iio; 32 dup f
33 dup2 *; 34 pause; 35 nanosleep po; 36 getitimer io; 37 alarm i; 38 setitimer ipo; 39 getpid
40 sendfile ffui; 41 socket iii; 42 connect fpi; 43 accept foo; 44 sendto fpiipi
45 recvfrom fbiioo; 46 sendmsg *; 47 recvmsg *; 48 shutdown fi; 49 bind fpi; 50 listen fi
51 getsockname foo; 52 getpeername foo; 53 socketpair iiio; 54 setsockopt fiipi
55 getsockopt fiiao; 56 clone *; 57 fork *; 58 vfork *; 59 execve *; 60 exit *; 61 wait4 ioio
62 kill *; 63 uname o; 64 semget iii; 65 semop ipi; 66 semctl *iiia; 67 shmdt *; 68 msgget ii
69 msgsnd ipii; 70 msgrcv iaiii; 71 msgctl iio; 72 fcntl *iio; 73 flock fi; 74 fsync f
75 fdatasync f; 76 truncate si; 77 ftruncate fi; 78 getdents fbi; 79 getcwd bi; 80 chdir s
81 fchdir f; 82 rename nn; 83 mkdir ni; 84 rmdir n; 85 creat si; 86 link nn; 87 unlink n
88 symlink nn; 89 readlink *ibi; 90 chmod si; 91 fchmod fi; 92 chown sii; 93 fchown fii
94 lchown nii; 95 umask i; 96 gettimeofday oo; 97 getrlimit *; 98 getrusage io; 99 sysinfo o
100 times o; 101 ptrace !EPERM; 102 getuid; 103 syslog ibi; 104 getgid; 105 setuid i
106 setgid i; 107 geteuid; 108 getegid; 109 setpgid ii; 110 getppid; 111 getpgrp; 112 setsid
113 setreuid ii; 114 setregid ii; 115 getgroups ia; 116 setgroups ip; 117 setresuid iii
118 getresuid ooo; 119 setresgid iii; 120 getresgid ooo; 121 getpgid i; 122 setfsuid i
123 setfsgid i; 124 getsid i; 125 capget oo; 126 capset pp; 127 rt_sigpending *o
128 rt_sigtimedwait *io; 129 rt_sigqueueinfo iip; 130 rt_sigsuspend *; 131 sigaltstack *io
132 utime sp; 133 mknod nii; 134 uselib !ENOSYS; 135 personality *; 136 ustat io; 137 statfs so
138 fstatfs fo; 139 sysfs iii; 140 getpriority ii; 141 setpriority iii; 142 sched_setparam ip
143 sched_getparam io; 144 sched_setscheduler iip; 145 sched_getscheduler i
146 sched_get_priority_max i; 147 sched_get_priority_min i; 148 sched_rr_get_interval io
149 mlock *; 150 munlock *; 151 mlockall *; 152 munlockall *; 153 vhangup
154 modify_ldt !ENOSYS; 155 pivot_root ss; 156 _sysctl !ENOSYS; 157 prctl *; 158 arch_prctl *
159 adjtimex u; 160 setrlimit *; 161 chroot s; 162 sync; 163 acct s; 164 settimeofday pp
165 mount sssip; 166 umount2 si; 167 swapon si; 168 swapoff s; 169 reboot iiip
170 sethostname pi; 171 setdomainname pi; 172 iopl !EPERM; 173 ioperm !EPERM
175 init_module pip; 176 delete_module pi; 179 quotactl isia; 186 gettid; 187 readahead fii
188 setxattr sppii; 189 lsetxattr nppii; 190 fsetxattr fppii; 191 getxattr spbi
192 lgetxattr npbi; 193 fgetxattr fpbi; 194 listxattr sbi; 195 llistxattr nbi
196 flistxattr fbi; 197 removexattr sp; 198 lremovexattr np; 199 fremovexattr fp; 200 tkill *
201 time o; 202 futex *; 203 sched_setaffinity iip; 204 sched_getaffinity iia
205 set_thread_area !ENOSYS; 206 io_setup *; 207 io_destroy *; 208 io_getevents *
209 io_submit *; 210 io_cancel *; 211 get_thread_area !ENOSYS; 212 lookup_dcookie ibi
213 epoll_create i; 216 remap_file_pages !ENOSYS; 217 getdents64 *ibi; 218 set_tid_address *
219 restart_syscall *; 220 semtimedop ipip; 221 fadvise64 fiii; 222 timer_create ipo
223 timer_settime iipo; 224 timer_gettime io; 225 timer_getoverrun i; 226 timer_delete i
227 clock_settime ip; 228 clock_gettime io; 229 clock_getres io; 230 clock_nanosleep iipo
231 exit_group *; 232 epoll_wait faii; 233 epoll_ctl fifp; 234 tgkill *; 235 utimes sp
237 mbind piipii; 238 set_mempolicy ipi; 239 get_mempolicy oaipi; 240 mq_open piip
241 mq_unlink p; 242 mq_timedsend fpiip; 243 mq_timedreceive fbiop; 244 mq_notify fp
245 mq_getsetattr fpo; 246 kexec_load !EPERM; 247 waitid iioio; 248 add_key pppii
249 request_key pppi; 250 keyctl iiiii; 251 ioprio_set iii; 252 ioprio_get ii; 253 inotify_init
254 inotify_add_watch fsi; 255 inotify_rm_watch fi; 256 migrate_pages iipp; 257 openat *
258 mkdirat fni; 259 mknodat fnii; 260 fchownat fsiii; 261 futimesat fsp; 262 newfstatat *iio
263 unlinkat fni; 264 renameat fnfn; 265 linkat fnfni; 266 symlinkat nfn; 267 readlinkat *iibi
268 fchmodat fsi; 269 faccessat fsi; 270 pselect6 *iuuu; 271 ppoll *a; 272 unshare i
273 set_robust_list *; 274 get_robust_list *; 275 splice fufuii; 276 tee ffii
277 sync_file_range fiii; 278 vmsplice *; 279 move_pages iippai; 280 utimensat fspi
281 epoll_pwait *ia; 282 signalfd *; 283 timerfd_create ii; 284 eventfd i; 285 fallocate fiii
286 timerfd_settime fipo; 287 timerfd_gettime fo; 288 accept4 fooi; 289 signalfd4 *
290 eventfd2 ii; 291 epoll_create1 i; 292 dup3 *; 293 pipe2 oi; 294 inotify_init1 i
295 preadv *; 296 pwritev *; 297 rt_tgsigqueueinfo iiip; 298 perf_event_open piifi
299 recvmmsg *; 300 fanotify_init ii; 301 fanotify_mark fiifs; 302 prlimit64 *
303 name_to_handle_at fsuoi; 304 open_by_handle_at fpi; 305 clock_adjtime iu; 306 syncfs f
307 sendmmsg *; 308 setns fi; 309 getcpu ooo; 310 process_vm_readv *; 311 process_vm_writev *
312 kcmp iiiii; 313 finit_module fpi; 314 sched_setattr ipi; 315 sched_getattr ioii
316 renameat2 fnfni; 317 seccomp *; 318 getrandom bii; 319 memfd_create pi
320 kexec_file_load !EPERM; 321 bpf iui; 322 execveat *; 323 userfaultfd !ENOSYS
324 membarrier iii; 325 mlock2 *; 326 copy_file_range fufuii; 327 preadv2 *; 328 pwritev2 *
329 pkey_mprotect *; 330 pkey_alloc !ENOSYS; 331 pkey_free !ENOSYS; 332 statx *iiiio
333 io_pgetevents !ENOSYS; 334 rseq !ENOSYS; 424 pidfd_send_signal fipi; 425 io_uring_setup *
426 io_uring_enter fiiipi; 427 io_uring_register fipi; 428 open_tree fsi; 429 move_mount fsfsi
430 fsopen pi; 431 fsconfig fippi; 432 fsmount fii; 433 fspick fsi; 434 pidfd_open ii
435 clone3 *; 436 close_range *; 437 openat2 *; 438 pidfd_getfd fii; 439 faccessat2 *
440 process_madvise *; 441 epoll_pwait2 *ia; 442 mount_setattr fsipi; 443 quotactl_fd fiip
444 landlock_create_ruleset !ENOSYS; 445 landlock_add_rule !ENOSYS
446 landlock_restrict_self !ENOSYS; 447 memfd_secret i; 448 process_mrelease fi
449 futex_waitv *; 450 set_mempolicy_home_node piii; 451 cachestat fpoi; 452 fchmodat2 *
"""


def _parse() -> dict[int, tuple[str, str]]:
    rows = {}
    for row in _TABLE.replace("\n", ";").split(";"):
        fields = row.split()
        if fields:
            rows[int(fields[0])] = (fields[1], fields[2] if len(fields) > 2 else "")
    return rows


CALLS = _parse()
NUMBERS = {name: number for number, (name, _) in CALLS.items()}
