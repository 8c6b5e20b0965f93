"""What the vector families share: operands in either register file, alignment, lanes, and the two
instructions whose names belong to string instructions too (MOVSD, CMPSD)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trapline.processor.isa.mmx import enter_mmx, write_mmx
from trapline.processor.language import GP, Cpu, Operand, Value, const, instruction

Table = dict[str, tuple[str, str, int]]  # name -> opcode, operation, lane width


def require_alignment(cpu: Cpu, operand: Operand, size: int = 16) -> None:
    """#GP(0) unless a memory operand lies on a multiple of `size`."""
    within = size.bit_length() - 1
    cpu.fault(cpu.linear_address(operand).low(within).differs(0), GP, 0)


def fetch(cpu: Cpu, src: Operand, width: int | None = None, *, aligned: bool = True) -> Value:
    """A source: `width` bits of a register, or a memory operand; 16 bytes must be aligned."""
    if not src.in_memory:
        return src.narrowed(width or src.width).get()
    if aligned and src.width == 128:
        require_alignment(cpu, src)
    return src.get()


def put(cpu: Cpu, dst: Operand, value: Value) -> None:
    """A whole result, in an XMM or MMX register."""
    if dst.kind == "mmx":
        write_mmx(cpu, dst, value)
    else:
        dst.set(value)


def enter(cpu: Cpu, *operands: Operand) -> None:
    """Before anything else, if one of the operands is an MMX register."""
    if any(operand.kind == "mmx" for operand in operands):
        enter_mmx(cpu)


def combine(
    cpu: Cpu, dst: Operand, src: Operand, operation: Callable[[Value, Value], Value]
) -> None:
    """dst := operation(dst, src), in whichever register file dst is."""
    enter(cpu, dst)
    right = fetch(cpu, src, dst.width)
    put(cpu, dst, operation(dst.get(), right))


def shuffle(cpu: Cpu, lane: int, indices: Sequence[int], *vectors: Value) -> Value:
    """A vector of lanes by number: those of the first of one or two vectors, then the second's."""
    width = lane * len(indices)
    return cpu.primitive("shuffle", *vectors, widths=(width,), of=(lane, tuple(indices)))[0]


def register_by_lane(table: Table, primitive: str, meanings: dict[str, str]) -> None:
    """Describe instructions dst := dst op src by a primitive of=(operation, lane)."""

    def describe(operation: str, lane: int) -> Callable[[Cpu, Operand, Operand], None]:
        def operate(cpu: Cpu, left: Value, right: Value) -> Value:
            widths, of = (left.width,), (operation, lane)
            return cpu.primitive(primitive, left, right, widths=widths, of=of)[0]

        def description(cpu: Cpu, dst: Operand, src: Operand) -> None:
            combine(cpu, dst, src, lambda left, right: operate(cpu, left, right))

        description.__doc__ = f"{meanings[operation]}, in lanes of {lane} bits."
        return description

    for name, (opcode, operation, lane) in table.items():
        instruction(opcode, name=name)(describe(operation, lane))


def insert(cpu: Cpu, lane: int, index: int, vector: Value, number: Value) -> Value:
    """The vector with one lane replaced."""
    of = (lane, index)
    return cpu.primitive("lanes_insert", vector, number, widths=(vector.width,), of=of)[0]


# An XMM register is always written whole.  It costs native code nothing, and a later read of all
# of it need not wait for stores of its parts to reach the cache.


def put_low(cpu: Cpu, dst: Operand, value: Value) -> None:
    """The low lane of an XMM register; the rest stays."""
    dst.set(insert(cpu, value.width, 0, dst.get(), value))


def put_alone(cpu: Cpu, dst: Operand, value: Value) -> None:
    """A register whose low bits are `value` and whose others are zero."""
    if value.width < dst.width:
        value = insert(cpu, value.width, 0, zeros(dst.width), value)
    put(cpu, dst, value)


def arithmetic(cpu: Cpu, operation: str, kind: str, *args: Value, immediate: int = 0) -> Value:
    """A floating-point instruction, `operation` + `kind`; see interp.sse_float."""
    of = (operation, kind, immediate)
    return cpu.primitive("float", *args, widths=(128,), unit="sse", of=of)[0]


def scalar_move(cpu: Cpu, dst: Operand, src: Operand, width: int) -> None:
    """MOVSS, MOVSD: a load clears the rest of the register, a move between two merges."""
    value = src.narrowed(width).get()
    if src.in_memory:
        put_alone(cpu, dst, value)
    elif dst.in_memory:
        dst.set(value)
    else:
        put_low(cpu, dst, value)


def scalar_move_double(cpu: Cpu, dst: Operand, src: Operand) -> None:
    """MOVSD xmm, xmm/m64 and back (F2 0F 10 /r, F2 0F 11 /r)."""
    scalar_move(cpu, dst, src, 64)


def float_compare(cpu: Cpu, dst: Operand, src: Operand, kind: str, width: int) -> None:
    """CMPPS and the like: all ones or zeros by predicate, of which three bits count."""
    predicate = (cpu.form.immediate or 0) & 7
    right = fetch(cpu, src, width)
    dst.set(arithmetic(cpu, "cmp", kind, dst.get(), right, immediate=predicate))


def scalar_compare_double(cpu: Cpu, dst: Operand, src: Operand, immediate: Operand) -> None:
    """CMPSD xmm, xmm/m64, imm8 (F2 0F C2 /r ib)."""
    float_compare(cpu, dst, src, "sd", 64)


def zeros(width: int) -> Value:
    """A vector of zeros."""
    return const(0, width)
