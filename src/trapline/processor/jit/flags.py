"""The lazy flags as native code: reading one with a known rule, storing a rule's operands."""

from __future__ import annotations

from trapline.processor.flags import CcKind
from trapline.processor.jit.text import Function, Ssa, integer
from trapline.processor.state import OFFSET

BITS = {"cf": 0, "pf": 2, "af": 4, "zf": 6, "sf": 7, "of": 11}
UNKNOWN = -1


class FlagState:
    """The flags between two points of a handler: a rule (or UNKNOWN) and its operands.

    `dst` and `src` None: they are still what the state holds.
    """

    __slots__ = ("kind", "dst", "src", "kind_value", "is_stored")

    def __init__(
        self,
        kind: int,
        dst: Ssa | None = None,
        src: Ssa | None = None,
        kind_value: Ssa | None = None,
    ) -> None:
        self.kind, self.dst, self.src, self.kind_value = kind, dst, src, kind_value
        # Whether the state already holds these flags.
        self.is_stored = dst is None and kind_value is None


class FlagWriter:
    """Reads and writes flags in one function."""

    def __init__(self, function: Function, state: Ssa, incoming: int) -> None:
        self.f, self.s = function, state
        self.now = FlagState(incoming)

    def _slot(self, name: str) -> Ssa:
        return self.f.load("i64", self.f.pointer(self.s, OFFSET[name]))

    def _dst(self) -> Ssa:
        return self.now.dst or self._slot("cc_dst")

    def _src(self) -> Ssa:
        return self.now.src or self._slot("cc_src")

    def set(self, kind: int, dst: Ssa, src: Ssa) -> None:
        """All flags by a rule; both operands sign-extended to 64 bits."""
        self.now = FlagState(kind, dst, src)

    def word(self) -> Ssa:
        """All six flags in RFLAGS positions."""
        if self.now.kind == CcKind.EXPLICIT:
            return self._src()
        f = self.f
        if self.now.dst is None and self.now.kind_value is None:
            return f.value("i64", f"call i64 @trapline_flags({self.s})")
        kind = self.now.kind_value or integer(self.now.kind, 64)
        return f.value("i64", f"call i64 @trapline_flags_of({kind}, {self._dst()}, {self._src()})")

    def read(self, name: str) -> Ssa:
        """One flag as i1."""
        f, kind = self.f, self.now.kind
        if kind == UNKNOWN or kind == CcKind.EXPLICIT:
            return f.cast("trunc", f.op("lshr", self.word(), integer(BITS[name], 64)), "i1")
        rule, width = kind & ~3, 8 << (kind & 3)
        if name == "zf":
            return f.compare("eq", self._dst(), integer(0, 64))
        if name == "sf":
            return f.compare("slt", self._dst(), integer(0, 64))
        if name == "pf":
            low = f.cast("trunc", self._dst(), "i8")
            count = f.value("i8", f"call i8 @llvm.ctpop.i8({low})")
            return f.op("xor", f.cast("trunc", count, "i1"), integer(1, 1))
        if rule == CcKind.LOGIC:
            return integer(0, 1)
        return self._carry_like(name, rule, width)

    def _carry_like(self, name: str, rule: int, width: int) -> Ssa:
        """CF, OF or AF after ADD, SUB, INC, DEC."""
        f, kind = self.f, f"i{width}"
        dst = f.cast("trunc", self._dst(), kind)
        src = f.cast("trunc", self._src(), kind)
        if rule in (CcKind.INC, CcKind.DEC):
            if name == "cf":
                return f.cast("trunc", src, "i1")
            if name == "of":
                edge = 1 << width - 1 if rule == CcKind.INC else (1 << width - 1) - 1
                return f.compare("eq", dst, integer(edge, width))
            low = f.op("and", dst, integer(15, width))
            return f.compare("eq", low, integer(0 if rule == CcKind.INC else 15, width))
        before = f.op("sub" if rule == CcKind.ADD else "add", dst, src)
        if name == "cf":
            if rule == CcKind.ADD:
                return f.compare("ult", dst, src)
            return f.compare("ult", before, src)
        if name == "of":
            if rule == CcKind.SUB:
                # before < src, signed, differs from the result's sign exactly on overflow
                less = f.compare("slt", before, src)
                return f.op("xor", less, f.compare("slt", dst, integer(0, width)))
            left, right = f.op("xor", before, dst), f.op("xor", src, dst)
            return f.compare("slt", f.op("and", left, right), integer(0, width))
        mixed = f.op("xor", f.op("xor", before, src), dst)
        return f.compare("ne", f.op("and", mixed, integer(16, width)), integer(0, width))

    def put(self, bits: dict[str, Ssa]) -> None:
        """Some flags by value; the others keep theirs."""
        f = self.f
        word: Ssa | None = None
        if len(bits) < len(BITS):
            mask = sum(1 << BITS[name] for name in bits)
            word = f.op("and", self.word(), integer(~mask, 64))
        for name, bit in bits.items():
            wide = f.op("shl", f.cast("zext", bit, "i64"), integer(BITS[name], 64))
            word = wide if word is None else f.op("or", word, wide)
        assert word is not None
        self.now = FlagState(CcKind.EXPLICIT, integer(0, 64), word)

    def commit(self) -> None:
        """Store what the state does not hold yet, and forget the operands."""
        self.store()
        self.now = FlagState(self.now.kind)

    def store(self) -> None:
        """Store what the state does not hold yet; reads still use the operands at hand."""
        now, f = self.now, self.f
        if now.is_stored:
            return
        kind = now.kind_value or integer(now.kind, 64)
        f.store(kind, f.pointer(self.s, OFFSET["cc_kind"]))
        if now.dst is not None and not (now.kind == CcKind.EXPLICIT and not now.kind_value):
            f.store(now.dst, f.pointer(self.s, OFFSET["cc_dst"]))
        if now.src is not None and now.kind & ~3 != CcKind.LOGIC:
            f.store(now.src, f.pointer(self.s, OFFSET["cc_src"]))
        now.is_stored = True

    def merge(self, other: FlagState, this_label: str, other_label: str) -> None:
        """After a conditional block: `now` came from this_label, `other` from other_label.

        Both operands must have been computed in (or before) their label's block.
        """
        now = self.now
        if now.dst is other.dst and now.src is other.src and now.kind == other.kind:
            return
        f = self.f
        kinds = [n.kind_value or integer(n.kind, 64) for n in (now, other)]
        dsts = [n.dst or integer(0, 64) for n in (now, other)]
        srcs = [n.src or integer(0, 64) for n in (now, other)]
        labels = (this_label, other_label)
        kind = f.phi("i64", *zip(kinds, labels, strict=True))
        dst = f.phi("i64", *zip(dsts, labels, strict=True))
        src = f.phi("i64", *zip(srcs, labels, strict=True))
        same = now.kind if now.kind == other.kind else UNKNOWN
        self.now = FlagState(same, dst, src, None if same != UNKNOWN else kind)

    def pin(self) -> None:
        """Before a conditional block: have the operands as values, so that `merge` can."""
        now = self.now
        if now.dst is None:
            kind = self._slot("cc_kind") if now.kind == UNKNOWN else None
            self.now = FlagState(now.kind, self._slot("cc_dst"), self._slot("cc_src"), kind)
