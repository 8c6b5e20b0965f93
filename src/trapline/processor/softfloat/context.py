"""What surrounds one floating-point instruction: rounding, masks, and the exceptions it raised.

Nothing here computes; the names are those of MXCSR and of the x87 control and status words.
"""

from __future__ import annotations

IE = 0x01
DE = 0x02
ZE = 0x04
OE = 0x08
UE = 0x10
PE = 0x20
ALL = 0x3F

# Detected on the operands, before there is a result (SDM 1, "Overview of Floating-Point
# Exceptions"); the other three need the computed result.
BEFORE = IE | DE | ZE

NEAREST = 0
DOWN = 1
UP = 2
ZERO = 3

_PRECISION_CONTROL = (24, 64, 53, 64)  # 01b is reserved


class Context:
    """The environment of one instruction: make one, run all its lanes through it, then settle.

    `flags` and `rounded_up` gather over every operation that is given this context, so an
    instruction starts with a fresh one and ORs `flags` into MXCSR or the status word itself.
    `masks` has a one for each *masked* exception, as bits 5:0 of the x87 control word have.
    """

    __slots__ = ("rounding", "daz", "ftz", "precision", "masks", "flags", "rounded_up")

    def __init__(
        self,
        rounding: int = NEAREST,
        *,
        daz: bool = False,
        ftz: bool = False,
        precision: int = 64,
        masks: int = ALL,
    ) -> None:
        self.rounding = rounding
        self.daz = daz
        self.ftz = ftz
        self.precision = precision
        self.masks = masks
        self.flags = 0
        self.rounded_up = False

    @classmethod
    def from_mxcsr(cls, mxcsr: int) -> Context:
        """The context MXCSR asks for; the sticky flags in it are left where they are."""
        return cls(
            mxcsr >> 13 & 3,
            daz=bool(mxcsr & 0x40),
            ftz=bool(mxcsr & 0x8000),
            masks=mxcsr >> 7 & ALL,
        )

    @classmethod
    def from_control_word(cls, control_word: int) -> Context:
        """The context the x87 control word asks for."""
        return cls(
            control_word >> 10 & 3,
            precision=_PRECISION_CONTROL[control_word >> 8 & 3],
            masks=control_word & ALL,
        )

    def settle(self) -> int:
        """The unmasked exceptions of the instruction; call it once, after the last lane.

        An unmasked exception on the operands stops the instruction before anything could be
        found out about its result, so OE, UE and PE are then taken out of `flags`.
        With SSE any answer but 0 means: set the flags, store nothing, #XM. With x87 only one
        of `BEFORE`, or OE or UE on a store to memory, forbids the result to be stored.
        """
        unmasked = self.flags & ~self.masks
        if unmasked & BEFORE:
            self.flags &= BEFORE
            unmasked &= BEFORE
        return unmasked
