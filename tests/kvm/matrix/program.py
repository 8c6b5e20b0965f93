"""What the guests of the matrix execute: steps with their bytes for 16-, 32- and 64-bit code.

RDI points at the operand, RSI at a word that holds SS's selector; RBX belongs to the handlers.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.kvm.matrix.modes import Mode

SIZES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Operation:
    """A read-modify-write of memory: its opcode, the number in ModRM.reg, its immediate."""

    name: str
    opcode: str
    number: int = 0
    immediate: str = ""
    sizes: tuple[int, ...] = (2, 4, 8)
    is_locked: bool = True
    prefix: str = "f0"

    def code(self, bits: int, size: int) -> bytes:
        modrm = self.number << 3 | (5 if bits == 16 else 7)  # [di], [edi], [rdi]
        start = "66" if size in (2, 4) and (size == 2) != (bits == 16) else ""
        rex = "48" if size == 8 and self.name != "cmpxchg8b" or size == 16 else ""
        text = f"{start}{self.prefix}{rex}{self.opcode}{modrm:02x}{self.immediate}"
        return bytes.fromhex(text)

    def fits(self, bits: int, size: int) -> bool:
        if size not in self.sizes:
            return False
        return size < 8 or bits == 64 or self.name == "cmpxchg8b"


# What reference A.1 lists as lockable; the immediate of ADD and its like is 1.
OPERATIONS = {
    one.name: one
    for one in (
        Operation("add", "83", 0, "01"),
        Operation("or", "83", 1, "01"),
        Operation("adc", "83", 2, "01"),
        Operation("sbb", "83", 3, "01"),
        Operation("and", "83", 4, "01"),
        Operation("sub", "83", 5, "01"),
        Operation("xor", "83", 6, "01"),
        Operation("inc", "ff", 0),
        Operation("dec", "ff", 1),
        Operation("not", "f7", 2),
        Operation("neg", "f7", 3),
        Operation("add register", "01", 0),
        Operation("xadd", "0fc1", 0),
        Operation("bts", "0fba", 5, "00"),
        Operation("btr", "0fba", 6, "00"),
        Operation("btc", "0fba", 7, "00"),
        Operation("bts register", "0fab", 1),
        # EAX holds what memory does not hold; "equal" compares ECX = 0 by way of XCHG's absence.
        Operation("cmpxchg failed", "0fb1", 2),
        Operation("cmpxchg8b", "0fc7", 1, sizes=(8,)),
        Operation("cmpxchg16b", "0fc7", 1, sizes=(16,)),
        Operation("inc byte", "fe", 0, sizes=(1,)),
        Operation("xchg", "87", 0, prefix=""),
        Operation("xchg with lock", "87", 0),
        Operation("xchg byte", "86", 0, sizes=(1,), prefix=""),
        # Controls: none of these may ever lock the bus.
        Operation("inc without lock", "ff", 0, is_locked=False, prefix=""),
        Operation("xadd without lock", "0fc1", 0, is_locked=False, prefix=""),
        Operation("store", "89", 0, is_locked=False, prefix=""),
        Operation("load", "8b", 0, is_locked=False, prefix=""),
    )
}
# LOCK where it is #UD: not a lockable instruction, or no memory destination.
LOCK_IS_UNDEFINED = {
    "mov store": "f08907",
    "mov load": "f08b07",
    "inc register": "f0ffc0",
    "xadd register": "f00fc1c0",
    "xchg register": "f087c8",
    "add from memory": "f00307",
    "bt": "f00fba2700",
    "cmp": "f0833f01",
    "shl": "f0d127",
    "nop": "f090",
    "movs": "f0a5",
    "stos": "f0ab",
    "push": "f0ff37",
    "imul": "f00faf07",
    "test": "f0f707000000ff",
    "int3": "f0cc",
}


@dataclass(frozen=True)
class Step:
    """One instruction; `kind` is what the model knows it by."""

    kind: str
    code: bytes


def prelude(kind: str, bits: int) -> list[Step]:
    """What stands before the locked instruction."""
    match kind:
        case "":
            return []
        case "mov ss":  # mov ss, [rsi]
            return [Step("mov ss", b"\x8e" + (b"\x14" if bits == 16 else b"\x16"))]
        case "sti":
            return [Step("sti", b"\xfb")]
        case "icebp":
            return [Step("icebp", b"\xf1")]
    raise ValueError(kind)


def steps(mode: Mode, operation: Operation, size: int, before: str, reads_dr0: bool) -> list[Step]:
    """[MOV SS or STI]; the operation; NOP; [MOV EAX, DR0]; UD2."""
    found = prelude(before, mode.bits)
    found.append(Step("operation", operation.code(mode.bits, size)))
    found.append(Step("nop", b"\x90"))
    if reads_dr0:
        found.append(Step("mov dr", b"\x0f\x21\xc0"))
    found.append(Step("ud2", b"\x0f\x0b"))
    return found


def code_of(steps: list[Step]) -> bytes:
    return b"".join(step.code for step in steps)
