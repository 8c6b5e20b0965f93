"""Named quirks: what upstream KVM does otherwise than the processor, and Trapline only if asked.

In the manner of KVM_CAP_DISABLE_QUIRKS2, the other way round: the right behaviour is the default,
and enabling `CAPABILITY` on a VM brings back upstream's, quirk by quirk.  What each of them
changes stands where it is changed; nothing here acts.
"""

from __future__ import annotations

from enum import IntFlag
from typing import Final

CAPABILITY: Final = 0x74726170
"""KVM_CHECK_EXTENSION answers the mask of valid quirks, KVM_ENABLE_CAP takes those to switch on.
Far above KVM's own numbers, so that a real /dev/kvm answers 0."""


class Quirk(IntFlag):
    """Each is upstream's behaviour (Linux 6.16); none is on by default."""

    DR6_BUS_LOCK_SET = 1 << 0
    """Every #DB that the hypervisor delivers sets DR6[11], unless a bus lock is its cause
    (kvm_deliver_exception_payload); the processor leaves the bit as software left it."""

    DEBUG_EXIT_HIDES_CAUSES = 1 << 1
    """KVM_EXIT_DEBUG on VMX: dr6 is the exit qualification OR 0xFFFF0FF0, in which neither a bus
    lock nor an RTM region can be seen (handle_exception_nmi)."""

    SVM_NO_BUS_LOCK_DETECT = 1 << 2
    """AMD guests get no bus lock debug exception: CPUID hides it and DEBUGCTL refuses the bit
    (svm_set_cpu_caps, svm_set_msr)."""

    NO_SPLIT_LOCK_AC = 1 << 3
    """Guests get no split-lock #AC: CPUID hides it, and MSRs 0x33 and 0xCF do not exist."""

    DEBUGCTL_NOT_LISTED = 1 << 4
    """KVM_GET_MSR_INDEX_LIST leaves out DEBUGCTL, so that who moves a guest by it loses BLD."""

    DR6_FIXED_BY_PROCESSOR = 1 << 5
    """MOV to DR6 goes to the processor even where the guest's CPUID hides what the processor has:
    the guest can clear a bit that it must read as 1 (handle_dr, dr_interception)."""

    EMULATOR_LOCKS_NOTHING = 1 << 6
    """Instructions that the hypervisor emulates raise no bus lock debug exception and are no
    bus-lock exit (x86_emulate_instruction)."""

    PORT_BREAKPOINTS_IGNORED = 1 << 7
    """IN and OUT, which the hypervisor does, meet no I/O breakpoint (kvm_fast_pio)."""

    STEP_LOSES_HELD_TRAPS = 1 << 8
    """On VMX, traps that MOV SS held back are lost where a single step of the next instruction,
    done by the hypervisor, is injected (kvm_vcpu_do_singlestep)."""


NONE: Final = Quirk(0)
EVERY: Final = Quirk(sum(Quirk))
