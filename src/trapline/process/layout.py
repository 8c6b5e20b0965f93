"""Where things are: linear addresses of the guest, guest-physical addresses, selectors, ports.

Only numbers that several files of the room must agree on.
"""

from __future__ import annotations

PAGE = 4096
GIB = 1 << 30

# Linear addresses.  The program has what Linux gives a program; the monitor sits in the upper half.
LOW_SIZE = 4 * GIB  # displaced on the host, where the VMM's own code may sit
LOWEST = 0x10000  # vm.mmap_min_addr
USER_END = 0x7FFF_FFFF_F000
PIE_BASE = 0x5555_5555_4000  # where Linux puts position-independent programs
MONITOR = 0xFFFF_8000_0000_0000
MONITOR_CODE = MONITOR
MONITOR_TABLES = MONITOR + PAGE
MONITOR_VCPUS = MONITOR + 2 * PAGE  # one page a vCPU
VCPU_LIMIT = 2046
MONITOR_END = MONITOR_VCPUS + VCPU_LIMIT * PAGE

# Guest-physical addresses: the arena (monitor and page tables), then windows of 1 GiB made when
# the program first uses the linear addresses they stand for.  Handed out one after the other, so
# that processors with few physical address bits can hold them.
ARENA = 4 * GIB
ARENA_SIZE = GIB
WINDOW = GIB
FIRST_WINDOW = 8 * GIB

# Selectors as Linux has them, since programs can read them.
KERNEL_CS = 0x10
KERNEL_SS = 0x18
USER_CS = 0x33
USER_SS = 0x2B
TSS_SELECTOR = 0x40

# The ports through which the monitor leaves.
PORT_VECTOR = 0x80  # + vector
PORT_SYSCALL = 0xC0
PORT_READY = 0xC1
