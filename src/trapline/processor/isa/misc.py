"""Hints and barriers, the instructions that are undefined for ever, and BOUND."""

from __future__ import annotations

from trapline.processor.language import UD, Cpu, Operand, const, instruction

_BR = 5  # #BR, BOUND Range Exceeded

# Encodings that processors without the feature (shadow stacks, MPX, cache hints) execute as NOP.
_HINTS = {
    "nop": ("90", "0F 1F /0"),
    "reservednop": (
        "0F 0D /r", "0F 18 /r", "0F 19 /r", "0F 1A /r", "0F 1B /r", "0F 1C /r", "0F 1D /r",
        "0F 1E /r",
    ),
    "pause": ("F3 90",),
    "endbr32": ("F3 0F 1E FB",),
    "endbr64": ("F3 0F 1E FA",),
    "rdsspd": ("F3 0F 1E /1",),
    "rdsspq": ("F3 REX.W 0F 1E /1",),
    "prefetch": ("0F 0D /0",),
    "prefetchw": ("0F 0D /1",),
    "prefetchwt1": ("0F 0D /2",),
    "prefetchnta": ("0F 18 /0",),
    "prefetcht0": ("0F 18 /1",),
    "prefetcht1": ("0F 18 /2",),
    "prefetcht2": ("0F 18 /3",),
    "prefetchit1": ("0F 18 /6",),
    "prefetchit0": ("0F 18 /7",),
    "cldemote": ("0F 1C /0",),
    # Program order is kept for loads among themselves and for stores among themselves anyway.
    "lfence": ("0F AE /5",),
    "sfence": ("0F AE /7",),
}  # fmt: skip


def _hint(cpu: Cpu, *operands: Operand) -> None:
    """Nothing: no access, no fault."""


for _name, _opcodes in _HINTS.items():
    instruction(*_opcodes, name=_name)(_hint)


@instruction("0F AE /6")
def mfence(cpu: Cpu) -> None:
    """Earlier stores are visible to every processor before a later load."""
    cpu.primitive("fence", widths=())


def _flush(cpu: Cpu, line: Operand) -> None:
    """Nothing to flush, but the access is checked as a byte's read (SDM 2A, CLFLUSH)."""
    line.narrowed(8).get()


instruction("0F AE /7", name="clflush")(_flush)
instruction("66 0F AE /7", name="clflushopt")(_flush)


def _undefined(cpu: Cpu, *operands: Operand) -> None:
    """#UD, in this processor and all to come."""
    cpu.fault(const(1, 1), UD)


instruction("0F FF /r", name="ud0")(_undefined)
instruction("0F B9 /r", name="ud1")(_undefined)
instruction("0F 0B", name="ud2")(_undefined)


@instruction("62 /r")
def bound(cpu: Cpu, index: Operand, bounds: Operand) -> None:
    """#BR unless the signed index lies within the two bounds at `bounds`."""
    width = index.width
    start = cpu.effective_address(bounds)
    second = (start + width // 8).low(cpu.form.address_width).zero_extend(64)
    lower = cpu.memory(bounds.index, start, width).get()
    upper = cpu.memory(bounds.index, second, width).get()
    position = index.get()
    cpu.fault(position.less(lower) | upper.less(position), _BR)
