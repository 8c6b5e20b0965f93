"""The seam between the core and guest execution (VMX, SVM).

The core asks `core.guest` wherever the manual lets a hypervisor intercept; this file knows no
VMCS and no VMCB, and never what the answer will be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NoReturn, Protocol

# What the boundary between two instructions must look at while a guest runs (Guest.watches).
WATCH_MONITOR_TRAP: Final = 1
WATCH_NMI_WINDOW: Final = 2
WATCH_INTERRUPT_WINDOW: Final = 4
WATCH_PAUSE: Final = 8  # not the boundary: PAUSE, which native code otherwise does as a NOP

# Whose format nested page tables have (Guest.nested_format).
NESTED_EPT: Final = 0
NESTED_NPT: Final = 1

# Event types in the interruption-information format (SDM 3C, "VM-Exit Interruption Information");
# the types SVM knows have the same numbers in EXITINTINFO.
EXTERNAL_INTERRUPT: Final = 0
NMI: Final = 2
HARDWARE_EXCEPTION: Final = 3
SOFTWARE_INTERRUPT: Final = 4
PRIVILEGED_SOFTWARE_EXCEPTION: Final = 5
SOFTWARE_EXCEPTION: Final = 6


@dataclass(init=False)
class VmExit:
    """Why the guest was left, as the exit-information fields hold it; one object an exit.

    `reason` is the whole exit-reason field, flags included; `interruption_info` and
    `vectoring_info` are zero when they are not valid.
    """

    reason: int
    qualification: int = 0
    instruction_length: int = 0
    interruption_info: int = 0
    error_code: int = 0
    vectoring_info: int = 0
    vectoring_error_code: int = 0
    guest_physical: int = 0
    guest_linear: int = 0
    instruction_information: int = 0

    def __init__(
        self,
        reason: int,
        qualification: int = 0,
        instruction_length: int = 0,
        interruption_info: int = 0,
        error_code: int = 0,
        **others: int,
    ) -> None:
        # What most exits do not have stays with the class.
        self.reason = reason
        self.qualification = qualification
        self.instruction_length = instruction_length
        self.interruption_info = interruption_info
        self.error_code = error_code
        if others:
            vars(self).update(others)


class Leave(Exception):  # a way out of the guest, not an error
    """Unwinds from an intercepted place in the core to `enter`; nobody else catches it."""

    def __init__(self, exit: VmExit) -> None:
        self.exit = exit


class Guest(Protocol):
    """What the core asks while a guest runs (`core.guest`, None on a bare core).

    An `intercept...` method returns when the hypervisor does not want the event, and raises
    `Leave` when it does.  At each call the register file holds what the manual says the exit
    saves: for an instruction, `rip` is that instruction, and nothing of it has been done; for a
    trap, `rip` is the next instruction.  `length` is the instruction's length in bytes.
    """

    ept_pointer: int | None
    """The root of the nested tables: the EPTP, or nCR3; None without nested paging."""

    nested_format: int
    """NESTED_*: what the entries of these tables look like."""

    watches: int
    """WATCH_* bits; not zero: the core asks `intercept_boundary` wherever it stops, which is after
    each instruction for the monitor trap, and for the windows at least where they open."""

    mov_dr_exits: bool
    """Whether `intercept_dr` may leave, so that native code must come back for MOV DR."""

    io_exits: bool
    """Whether `intercept_io` leaves whatever the port, so that native code need not look."""

    vectoring_info: int
    vectoring_error_code: int
    vectoring_length: int
    """The event being delivered through the IDT, in the interruption-information format, and the
    length of the instruction that caused it, if it is software's.

    The delivery code sets them before its first memory access and clears `vectoring_info` when
    the event's first instruction is next; an exit in between reports them.
    """

    tsc_offset: int
    """Added to every RDTSC, RDTSCP and read of IA32_TIME_STAMP_COUNTER, to the core's own
    offset."""

    bus_lock_exits: bool
    """Whether `bus_lock_exit` leaves, so that native code must come back for every bus lock."""

    bus_lock_threshold: bool
    """Whether `before_bus_lock` may leave, so that native code must come back before each."""

    def intercept_exception(
        self, vector: int, error_code: int | None, payload: int, kind: int, length: int
    ) -> None:
        """An exception, before any of its delivery (and before it is merged into a #DF).

        `payload`: #DB the causes, positive polarity, bits 0-3, 11, 13, 14, 16; #PF the linear
        address.  DR6, DR7 and CR2 have not been written.  `kind` tells #BP, #OF
        (SOFTWARE_EXCEPTION) and INT1 (PRIVILEGED_SOFTWARE_EXCEPTION) from hardware's; `length`
        matters for these only.
        """

    def intercept_triple_fault(self) -> None:
        """A fault while #DF was being delivered; the processor shuts down."""

    def intercept(self, instruction: str, length: int, operand: int = 0) -> None:
        """An instruction whose exit says little but its name.

        `instruction` is its mnemonic, lower case: cpuid, hlt, rdtsc, rdtscp, rdpmc, invlpg
        (operand: the linear address), invpcid, invd, wbinvd, monitor, mwait, pause, rdrand,
        rdseed, xsetbv, vmcall, getsec, rsm and the other VMX instructions.  Faults that need
        privilege (#UD, #GP by CPL) come before the call.
        """

    def intercept_io(
        self,
        port: int,
        size: int,
        is_input: bool,
        length: int,
        string: int = 0,
        linear: int = 0,
    ) -> None:
        """IN, OUT, INS, OUTS after the I/O permission check (#GP comes first).

        `string` is the exit qualification's bits 4 (string), 5 (REP) and 6 (immediate port),
        `linear` the memory operand of INS and OUTS.
        """

    def intercept_msr(self, index: int, is_write: bool, length: int) -> None:
        """RDMSR or WRMSR at CPL 0, before the MSR is looked up."""

    def intercept_dr(self, register: int, is_read: bool, gpr: int, length: int) -> None:
        """MOV DR, after #UD and #GP and before the general-detect #DB (DR7.GD)."""

    def read_cr(self, register: int, gpr: int, length: int) -> int:
        """MOV from CR0, CR3, CR4, CR8, SMSW: the value the guest may see."""

    def write_cr(self, register: int, source: int, gpr: int, length: int) -> int:
        """MOV to CR0, CR3, CR4, CR8: the value to be loaded, after the guest/host masks."""

    def write_cr0_part(self, source: int, is_clts: bool, length: int) -> int | None:
        """CLTS, and LMSW of `source`: the whole CR0 to be loaded, or None to change nothing."""

    def intercept_task_switch(self, selector: int, source: int, length: int) -> None:
        """A task switch: source 0 CALL, 1 IRET, 2 JMP, 3 a task gate in the IDT."""

    def intercept_interrupt(self) -> None:
        """An external interrupt (or a kick from another thread) is there and may be taken."""

    def intercept_nmi(self) -> None:
        """An NMI is there and not blocked."""

    def intercept_boundary(self, before_traps: bool) -> None:
        """Between two instructions, while `watches` is not zero.

        Called twice at each boundary, the one before the guest's first instruction included:
        with True where the monitor trap flag stands (before debug traps), with False where the
        NMI and interrupt windows stand (after them).
        """

    def before_bus_lock(self) -> None:
        """The instruction is about to lock the bus; every other check has passed."""

    def bus_lock_exit(self) -> None:
        """The instruction just completed locked the bus.

        Its debug traps are in `state.pending_debug` already, for an exit leaves them pending
        (SDM 3C, "Saving Non-Register State").
        """

    def ept_violation(
        self, guest_physical: int, access: int, allowed: int, linear: int | None, is_walk: bool
    ) -> NoReturn:
        """An access the nested tables do not allow.

        `access`: 1 read, 2 write, 4 fetch, as attempted; `allowed`: the same bits, as the tables
        allow; `linear` None where there is none (loading PDPTEs); `is_walk` when the access was
        to a guest paging-structure entry, not to the final address.
        """

    def ept_misconfiguration(self, guest_physical: int) -> NoReturn:
        """An EPT entry the manual calls misconfigured."""
