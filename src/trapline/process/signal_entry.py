"""Where the host's signals come in: machine code that notes a signal in its thread's block.

The handler runs at any point of the VMM or of native guest code, so it touches that block alone.
What a signal means, and when the program gets it, is `signals`' business.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence

from trapline.process.native import AGAIN, NOT_MADE, WINDOW, WINDOW_SIZE, HostCalls

SIGNALS = 64
SIGINFO_SIZE = 128
# Ours: the host's KVM takes one to have a vCPU come out, the other ends a thread's host call.
KICK_SIGNAL, INTERRUPT_SIGNAL = 63, 64
INTERRUPT_CODE = -60  # its si_code, which programs have no use for
ALL = (1 << 64) - 1

_RT_SIGACTION, _RT_SIGPROCMASK, _SIGALTSTACK = 13, 14, 131
_SETMASK = 2
_SS_DISABLE = 2

# The block is what lies below the stack that its thread's signals are handled on.
_BLOCK_SIZE = 0x140
_STACK_SIZE = 0xDFF0  # an odd size: the handler knows our threads by it
_SIGNAL, _SIGINFO, _PLACES, _WINDOW_WORDS, _NOWHERE = 0x40, 0x48, 0xC8, 0xE0, 0xF8
_LOST = 0x100

# rdi = signal, rsi = siginfo, rdx = ucontext
_CODE = bytes.fromhex(
    "837e0800"  # cmp dword [rsi+8], 0      si_code: sent by somebody?
    "7e0f"  # jle sent
    "b9b0090000"  # mov ecx, 0x9b0           SIGILL SIGTRAP SIGBUS SIGFPE SIGSEGV
    "480fa3f9"  # bt rcx, rdi
    "0f82b2000000"  # jc fault
    # sent:
    "48817a20f0df0000"  # cmp qword [rdx+32], _STACK_SIZE   uc_stack.ss_size
    "0f8586000000"  # jne foreign
    "488b4210"  # mov rax, [rdx+16]         uc_stack.ss_sp
    "482d40010000"  # sub rax, _BLOCK_SIZE
    "837e08c4"  # cmp dword [rsi+8], INTERRUPT_CODE
    "741b"  # je kick
    # Keep this one, and let no other come until it has been dealt with.
    "48897840"  # mov [rax+_SIGNAL], rdi
    "488d7848"  # lea rdi, [rax+_SIGINFO]
    "b910000000"  # mov ecx, 16
    "f348a5"  # rep movsq
    "48c78228010000ffffffff"  # mov qword [rdx+296], -1     uc_sigmask
    # kick:
    "c70001000000"  # mov dword [rax], 1
    "488b88c8000000 c60101"  # mov rcx, [rax+_PLACES]; mov byte [rcx], 1
    "488b88d0000000 c60101"  # mov rcx, [rax+_PLACES+8]; mov byte [rcx], 1
    "488b88d8000000 c60101"  # mov rcx, [rax+_PLACES+16]; mov byte [rcx], 1
    # Turn a host call of the program's back that has not been made yet.
    "48398280000000"  # cmp [rdx+128], rax  rbx: the thread's own calls
    "752d"  # jne done
    "488b8aa8000000"  # mov rcx, [rdx+168]  rip
    "482b88e0000000"  # sub rcx, [rax+_WINDOW_WORDS]
    "721d"  # jb done
    "4883f905"  # cmp rcx, WINDOW_SIZE
    "7717"  # ja done
    "488b88e8000000"  # mov rcx, [rax+_WINDOW_WORDS+8]
    "7407"  # je turn
    "488b88f0000000"  # mov rcx, [rax+_WINDOW_WORDS+16]
    # turn:
    "48898aa8000000"  # mov [rdx+168], rcx
    # done:
    "c3"  # ret
    # foreign: a thread that runs no guest.  Not here: block all, and kill(getpid(), signal).
    "48c78228010000ffffffff"  # mov qword [rdx+296], -1
    "57"  # push rdi
    "b827000000 0f05"  # mov eax, 39; syscall
    "89c7"  # mov edi, eax
    "5e"  # pop rsi
    "b83e000000 0f05"  # mov eax, 62; syscall
    "c3"  # ret
    # fault: SIGBUS is for a page of a file that has been cut short.  An empty page takes its
    # place, for the few instructions until the processor comes out.
    "83ff07 755b"  # cmp edi, 7; jne own
    "48817a20f0df0000 7551"  # cmp qword [rdx+32], _STACK_SIZE; jne own
    "57 56 52"  # push rdi; push rsi; push rdx
    "488b7e10"  # mov rdi, [rsi+16]         si_addr
    "4881e700f0ffff"  # and rdi, -4096
    "be00100000"  # mov esi, 4096
    "ba03000000"  # mov edx, 3              PROT_READ | PROT_WRITE
    "41ba32000000"  # mov r10d, 0x32        MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS
    "49c7c0ffffffff"  # mov r8, -1
    "4531c9"  # xor r9d, r9d
    "b809000000 0f05"  # mov eax, 9; syscall
    "5a 5e 5f"  # pop rdx; pop rsi; pop rdi
    "4885c0 781a"  # test rax, rax; js own
    "488b4e10"  # mov rcx, [rsi+16]
    "488b4210"  # mov rax, [rdx+16]
    "482d40010000"  # sub rax, _BLOCK_SIZE
    "48898800010000"  # mov [rax+_LOST], rcx
    "e927ffffff"  # jmp kick
    # own: a fault of the VMM.  Back to the instruction with the default action, which ends us.
    "31d2"  # xor edx, edx
    "52525252"  # push rdx, four times
    "4889e6"  # mov rsi, rsp
    "41ba08000000"  # mov r10d, 8
    "b80d000000 0f05"  # mov eax, 13; syscall
    "4883c420"  # add rsp, 32
    "c3"  # ret
    # restorer:
    "b80f000000 0f05"  # mov eax, 15; syscall
)
_RESTORER = len(_CODE) - 7
assert WINDOW_SIZE == 5


def _place_code() -> mmap.mmap:
    rights = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=rights)
    page[: len(_CODE)] = _CODE
    return page


_page = _place_code()
HANDLER = ctypes.addressof(ctypes.c_char.from_buffer(_page))
RESTORER = HANDLER + _RESTORER


class SignalBlock:
    """What the handler and one thread share.  `calls` are the program's own host calls."""

    def __init__(self) -> None:
        size = _BLOCK_SIZE + _STACK_SIZE
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._words = memoryview(self._map).cast("B")[:_BLOCK_SIZE].cast("Q")
        at = _WINDOW_WORDS >> 3
        self._words[at : at + 3] = memoryview(
            b"".join(place.to_bytes(8, "little") for place in (WINDOW, AGAIN, NOT_MADE))
        ).cast("Q")
        self.watch(())
        self.calls = HostCalls(self._start)

    def watch(self, places: Sequence[int]) -> None:
        """The bytes that a signal sets: those that kick the thread's processor."""
        nowhere = self._start + _NOWHERE
        for index, place in enumerate([*places, nowhere, nowhere, nowhere][: max(3, len(places))]):
            if index == 3:
                raise ValueError("a processor has more than three bytes to kick it by")
            self._words[(_PLACES >> 3) + index] = place

    @property
    def signal(self) -> int:
        """The signal that waits here, or 0; while there is one, the thread gets no other."""
        return self._words[_SIGNAL >> 3]

    def take(self) -> tuple[int, bytes]:
        """The signal that waits and its siginfo; no longer here then."""
        signal = self.signal
        siginfo = bytes(self._words[_SIGINFO >> 3 : _SIGINFO + SIGINFO_SIZE >> 3].cast("B"))
        self._words[_SIGNAL >> 3] = 0
        return signal, siginfo

    def take_lost(self) -> int:
        """The host address of a page that the host had no longer, or 0."""
        lost, self._words[_LOST >> 3] = self._words[_LOST >> 3], 0
        return lost

    def adopt(self, calls: HostCalls) -> None:
        """Have the calling host thread's signals handled here."""
        self._set_stack(calls, self._start + _BLOCK_SIZE, 0, _STACK_SIZE)

    def leave(self, calls: HostCalls) -> None:
        """The calling host thread's signals are handled here no longer."""
        self._set_stack(calls, 0, _SS_DISABLE, 0)

    def _set_stack(self, calls: HostCalls, start: int, flags: int, size: int) -> None:
        stack = (ctypes.c_uint64 * 3)(start, flags, size)
        result = calls(_SIGALTSTACK, ctypes.addressof(stack), 0)
        if result < 0:
            raise OSError(-result, "the host refuses a signal stack")


def get_host_action(calls: HostCalls, signal: int) -> bytes:
    """The host's struct sigaction: handler, flags, restorer, mask."""
    buffer = ctypes.create_string_buffer(32)
    calls(_RT_SIGACTION, signal, 0, ctypes.addressof(buffer), 8)
    return buffer.raw


def set_host_action(calls: HostCalls, signal: int, action: bytes) -> int:
    buffer = ctypes.create_string_buffer(action, 32)
    return calls(_RT_SIGACTION, signal, ctypes.addressof(buffer), 0, 8)


def set_host_mask(calls: HostCalls, mask: int) -> int:
    """Block exactly these signals on the calling thread; the kernel's answer."""
    buffer = ctypes.c_uint64(mask)
    return calls(_RT_SIGPROCMASK, _SETMASK, ctypes.addressof(buffer), 0, 8)


def get_host_mask(calls: HostCalls) -> int:
    buffer = ctypes.c_uint64()
    calls(_RT_SIGPROCMASK, 0, 0, ctypes.addressof(buffer), 8)
    return buffer.value
