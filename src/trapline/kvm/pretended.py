"""MSRs that KVM answers for though there is nothing behind them, as systems go by a processor's
model and not only by CPUID (kvm_get_msr_common, kvm_set_msr_common).
"""

from __future__ import annotations

from typing import Final

IA32_PLATFORM_ID: Final = 0x17
EBL_CR_POWERON: Final = 0x2A
FSB_FREQUENCY: Final = 0xCD
IA32_PERF_STATUS: Final = 0x198
IA32_PERF_CTL: Final = 0x199
RAPL_POWER_UNIT: Final = 0x606
ENERGY_STATUS: Final = (0x611, 0x619, 0x639, 0x641)  # package, DRAM, and both power planes
SYSCFG: Final = 0xC0010010
HWCR: Final = 0xC0010015
PATCH_LOADER: Final = 0xC0010020
NB_CFG: Final = 0xC001001F
INT_PENDING: Final = 0xC0010055
MMIO_CONF_BASE: Final = 0xC0010058
TSEG: Final = (0xC0010112, 0xC0010113)
VM_HSAVE_PA: Final = 0xC0010117
BU_CFG2: Final = 0xC001102A
DC_CFG: Final = 0xC0011022
TW_CFG: Final = 0xC0011023
F15H_EX_CFG: Final = 0xC001102C

_MULTIPLIER_FROM: Final = 40
CONSTANT: Final[dict[int, int]] = {
    **dict.fromkeys((IA32_PLATFORM_ID, EBL_CR_POWERON, IA32_PERF_CTL, RAPL_POWER_UNIT), 0),
    **dict.fromkeys(ENERGY_STATUS, 0),
    **dict.fromkeys((SYSCFG, NB_CFG, INT_PENDING, MMIO_CONF_BASE, *TSEG, VM_HSAVE_PA), 0),
    **dict.fromkeys((BU_CFG2, DC_CFG, TW_CFG, F15H_EX_CFG), 0),
    FSB_FREQUENCY: 3,
    IA32_PERF_STATUS: 4 << _MULTIPLIER_FROM | 1000,
}
"""What reading gives."""

IGNORED: Final = frozenset(
    {PATCH_LOADER, NB_CFG, VM_HSAVE_PA, BU_CFG2, DC_CFG, TW_CFG, F15H_EX_CFG}
)
"""What may be written to no effect; the others refuse."""

_HWCR_IGNORED: Final = 1 << 3 | 1 << 6 | 1 << 8  # cache disable, flush filter, IGNNE emulation
_HWCR_KEPT: Final = 1 << 18 | 1 << 24  # McStatusWrEn, TscFreqSel


def hwcr(word: int) -> int | None:
    """What a write leaves in HWCR, or None where it is refused."""
    word &= ~_HWCR_IGNORED
    return None if word & ~_HWCR_KEPT else word
