"""A small writer of LLVM IR text: one function, its blocks, fresh names.

Text instead of llvmlite's builder because it is several times faster to make and knows every
LLVM type (80-bit floats, calling conventions, musttail).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ssa:
    """An IR value: its name or constant text, and its LLVM type."""

    name: str
    type: str

    def __str__(self) -> str:
        return f"{self.type} {self.name}"

    @property
    def width(self) -> int:
        """Bits of an integer type."""
        return int(self.type[1:])


def integer(number: int, width: int) -> Ssa:
    """A constant."""
    number &= (1 << width) - 1
    if width == 1:
        return Ssa("true" if number else "false", "i1")
    return Ssa(str(number), f"i{width}")


class Function:
    """One IR function being written."""

    def __init__(self, header: str) -> None:
        self.header = header
        self._count = 0
        self._blocks: dict[str, list[str]] = {}
        self._current: list[str] = []
        self.label = ""
        self.open_block("entry")

    def new_block(self, hint: str = "b") -> str:
        """A name for a block that will be opened later."""
        self._count += 1
        return f"{hint}{self._count}"

    def open_block(self, label: str) -> None:
        """Continue writing in a new block."""
        self._current = self._blocks.setdefault(label, [])
        self.label = label

    def line(self, text: str) -> None:
        """One instruction without a result."""
        self._current.append("  " + text)

    def value(self, type_: str, text: str) -> Ssa:
        """One instruction with a result."""
        self._count += 1
        name = f"%v{self._count}"
        self._current.append(f"  {name} = {text}")
        return Ssa(name, type_)

    # -- shorthands ------------------------------------------------------------------------------

    def op(self, operation: str, left: Ssa, right: Ssa) -> Ssa:
        return self.value(left.type, f"{operation} {left.type} {left.name}, {right.name}")

    def compare(self, predicate: str, left: Ssa, right: Ssa) -> Ssa:
        return self.value("i1", f"icmp {predicate} {left.type} {left.name}, {right.name}")

    def cast(self, operation: str, source: Ssa, type_: str) -> Ssa:
        if source.type == type_:
            return source
        return self.value(type_, f"{operation} {source} to {type_}")

    def select(self, condition: Ssa, left: Ssa, right: Ssa) -> Ssa:
        return self.value(left.type, f"select i1 {condition.name}, {left}, {right}")

    def pointer(self, base: Ssa, offset: Ssa | int) -> Ssa:
        if isinstance(offset, int):
            if not offset:
                return base
            offset = integer(offset, 64)
        return self.value("ptr", f"getelementptr i8, ptr {base.name}, {offset}")

    def load(self, type_: str, pointer: Ssa, note: str = "") -> Ssa:
        return self.value(type_, f"load {type_}, ptr {pointer.name}, align 1{note}")

    def store(self, value: Ssa, pointer: Ssa) -> None:
        self.line(f"store {value}, ptr {pointer.name}, align 1")

    def branch(self, condition: Ssa, yes: str, no: str, likely: bool | None = None) -> None:
        note = "" if likely is None else f", !prof !{1 if likely else 2}"
        self.line(f"br i1 {condition.name}, label %{yes}, label %{no}{note}")

    def jump(self, label: str) -> None:
        self.line(f"br label %{label}")

    def phi(self, type_: str, *incoming: tuple[Ssa, str]) -> Ssa:
        arms = ", ".join(f"[ {value.name}, %{label} ]" for value, label in incoming)
        return self.value(type_, f"phi {type_} {arms}")

    def text(self) -> str:
        """The finished function."""
        parts = [self.header + " {"]
        for label, lines in self._blocks.items():
            parts.append(f"{label}:")
            parts.extend(lines)
        parts.append("}\n")
        return "\n".join(parts)


METADATA = """
!0 = !{}
!1 = !{!"branch_weights", i32 10000, i32 1}
!2 = !{!"branch_weights", i32 1, i32 10000}
!llvm.module.flags = !{!3}
!3 = !{i32 1, !"override-stack-alignment", i32 8}
"""
# With the ABI's alignment of 16 every handler that may call out of line would begin with a push
# and end with a pop, for the sake of a call it hardly ever makes.  What is called realigns.
