"""The virtual machine control block: each field's offset and size in bytes.

What the fields mean is in `svm`; who reads them, the processor's business and the hypervisor's.
"""

from __future__ import annotations

from typing import NamedTuple

CONTROL_SIZE = 0x400
SAVE_BASE = 0x400
SAVE_SIZE = 744
VMCB_SIZE = 4096


class Slot(NamedTuple):
    """Where a field stands, from the start of the VMCB."""

    offset: int
    size: int


# Control area (APM 2, "VMCB Layout, Control Area"); intercepts are six 32-bit words.
INTERCEPTS = Slot(0x000, 24)
PAUSE_FILTER_THRESH = Slot(0x03C, 2)
PAUSE_FILTER_COUNT = Slot(0x03E, 2)
IOPM_BASE_PA = Slot(0x040, 8)
MSRPM_BASE_PA = Slot(0x048, 8)
TSC_OFFSET = Slot(0x050, 8)
ASID = Slot(0x058, 4)
TLB_CTL = Slot(0x05C, 1)
INT_CTL = Slot(0x060, 4)
INT_VECTOR = Slot(0x064, 4)
INT_STATE = Slot(0x068, 4)
EXIT_CODE = Slot(0x070, 4)
EXIT_CODE_HI = Slot(0x074, 4)
EXIT_INFO_1 = Slot(0x078, 8)
EXIT_INFO_2 = Slot(0x080, 8)
EXIT_INT_INFO = Slot(0x088, 4)
EXIT_INT_INFO_ERR = Slot(0x08C, 4)
NESTED_CTL = Slot(0x090, 8)
AVIC_VAPIC_BAR = Slot(0x098, 8)
GHCB_GPA = Slot(0x0A0, 8)
EVENT_INJ = Slot(0x0A8, 4)
EVENT_INJ_ERR = Slot(0x0AC, 4)
NESTED_CR3 = Slot(0x0B0, 8)
VIRT_EXT = Slot(0x0B8, 8)
CLEAN = Slot(0x0C0, 4)
NEXT_RIP = Slot(0x0C8, 8)
INSN_LEN = Slot(0x0D0, 1)
INSN_BYTES = Slot(0x0D1, 15)
AVIC_BACKING_PAGE = Slot(0x0E0, 8)
AVIC_LOGICAL_ID = Slot(0x0F0, 8)
AVIC_PHYSICAL_ID = Slot(0x0F8, 8)
VMSA_PA = Slot(0x108, 8)
BUS_LOCK_COUNTER = Slot(0x120, 2)
ALLOWED_SEV_FEATURES = Slot(0x138, 8)
GUEST_SEV_FEATURES = Slot(0x140, 8)
RESERVED_SW = Slot(0x3E0, 32)

# State save area (APM 2, "VMCB Layout, State Save Area").
ES = Slot(SAVE_BASE + 0x000, 16)
CS = Slot(SAVE_BASE + 0x010, 16)
SS = Slot(SAVE_BASE + 0x020, 16)
DS = Slot(SAVE_BASE + 0x030, 16)
FS = Slot(SAVE_BASE + 0x040, 16)
GS = Slot(SAVE_BASE + 0x050, 16)
GDTR = Slot(SAVE_BASE + 0x060, 16)
LDTR = Slot(SAVE_BASE + 0x070, 16)
IDTR = Slot(SAVE_BASE + 0x080, 16)
TR = Slot(SAVE_BASE + 0x090, 16)
VMPL = Slot(SAVE_BASE + 0x0CA, 1)
CPL = Slot(SAVE_BASE + 0x0CB, 1)
EFER = Slot(SAVE_BASE + 0x0D0, 8)
CR4 = Slot(SAVE_BASE + 0x148, 8)
CR3 = Slot(SAVE_BASE + 0x150, 8)
CR0 = Slot(SAVE_BASE + 0x158, 8)
DR7 = Slot(SAVE_BASE + 0x160, 8)
DR6 = Slot(SAVE_BASE + 0x168, 8)
RFLAGS = Slot(SAVE_BASE + 0x170, 8)
RIP = Slot(SAVE_BASE + 0x178, 8)
RSP = Slot(SAVE_BASE + 0x1D8, 8)
S_CET = Slot(SAVE_BASE + 0x1E0, 8)
SSP = Slot(SAVE_BASE + 0x1E8, 8)
ISST_ADDR = Slot(SAVE_BASE + 0x1F0, 8)
RAX = Slot(SAVE_BASE + 0x1F8, 8)
STAR = Slot(SAVE_BASE + 0x200, 8)
LSTAR = Slot(SAVE_BASE + 0x208, 8)
CSTAR = Slot(SAVE_BASE + 0x210, 8)
SFMASK = Slot(SAVE_BASE + 0x218, 8)
KERNEL_GS_BASE = Slot(SAVE_BASE + 0x220, 8)
SYSENTER_CS = Slot(SAVE_BASE + 0x228, 8)
SYSENTER_ESP = Slot(SAVE_BASE + 0x230, 8)
SYSENTER_EIP = Slot(SAVE_BASE + 0x238, 8)
CR2 = Slot(SAVE_BASE + 0x240, 8)
G_PAT = Slot(SAVE_BASE + 0x268, 8)
DBGCTL = Slot(SAVE_BASE + 0x270, 8)
BR_FROM = Slot(SAVE_BASE + 0x278, 8)
BR_TO = Slot(SAVE_BASE + 0x280, 8)
LAST_EXCP_FROM = Slot(SAVE_BASE + 0x288, 8)
LAST_EXCP_TO = Slot(SAVE_BASE + 0x290, 8)
SPEC_CTRL = Slot(SAVE_BASE + 0x2E0, 8)

INTERCEPT_WORDS = 6

# Inside a segment's 16 bytes.
SEGMENT_SELECTOR = Slot(0, 2)
SEGMENT_ATTRIBUTES = Slot(2, 2)
SEGMENT_LIMIT = Slot(4, 4)
SEGMENT_BASE = Slot(8, 8)

SLOTS = {name.lower(): slot for name, slot in globals().items() if isinstance(slot, Slot)}


def attributes_of_rights(access_rights: int) -> int:
    """A VMCB segment's attributes from access rights in the VMCS's layout."""
    return access_rights & 0xFF | access_rights >> 4 & 0xF00


def rights_of_attributes(attributes: int) -> int:
    """Access rights in the VMCS's layout from a VMCB segment's attributes."""
    return attributes & 0xFF | (attributes & 0xF00) << 4
