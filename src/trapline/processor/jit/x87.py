"""x87 by the host's own instructions, under the guest's control word with every exception masked.

The host's flags are sticky: an operation that leaves one up which the guest's status word has not
is done again after FNCLEX.  Transcendental results are the host's: their last bit may differ from
the reference engine's, which are correctly rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from trapline.arch.registers import FCW_MASKS, FSW_C0, FSW_C1, FSW_C2, FSW_C3
from trapline.processor.jit import layout
from trapline.processor.jit.primitives import primitive
from trapline.processor.jit.text import Function, Ssa, integer
from trapline.processor.state import OFFSET

if TYPE_CHECKING:
    from trapline.processor.jit.lowering import Lowering
    from trapline.processor.language import Primitive

_STATE = Ssa("%s", "ptr")
_FLAGS = 0x3F
_CODES = FSW_C0 | FSW_C1 | FSW_C2 | FSW_C3
_LONG = "x86_fp80"
_NEXT = "\\0A\\09"  # between two instructions
_CLOBBERS = "~{memory},~{dirflag},~{fpsr},~{flags}"

Answer = tuple[list[Ssa], int]  # results, and which condition codes are this operation's


# -- readiness -------------------------------------------------------------------------------------


@primitive("x87_ready")
@primitive("x87_wait")
def _ready(lowering: Lowering, effect: Primitive, args: Sequence[Ssa]) -> Sequence[Ssa]:
    """Native code runs only where nothing is pending, and the unit is switched on."""
    return ()


@primitive("x87_rare")
def _rare(lowering: Lowering, effect: Primitive, args: Sequence[Ssa]) -> Sequence[Ssa]:
    _leave_if(lowering, args[0])
    return (integer(0, 1),)


@primitive("x87_unmasked")
def _unmasked(lowering: Lowering, effect: Primitive, args: Sequence[Ssa]) -> Sequence[Ssa]:
    """All exceptions are masked while native code runs."""
    return (integer(0, 6),)


@primitive("x87_control")
def _control(lowering: Lowering, effect: Primitive, args: Sequence[Ssa]) -> Sequence[Ssa]:
    """The host's register follows; a word that unmasks an exception ends native execution."""
    f = lowering.f
    masks = f.op("and", args[0], integer(FCW_MASKS, 16))
    _leave_if(lowering, f.compare("ne", masks, integer(FCW_MASKS, 16)))
    scratch = _scratch(f)
    f.store(args[0], scratch)
    f.line(f'call void asm sideeffect "fldcw ($0)", "r,~{{memory}}"({scratch})')
    return ()


def _leave_if(lowering: Lowering, condition: Ssa) -> None:
    """To the reference engine, which starts the instruction anew."""
    f = lowering.f
    stop, go = f.new_block("rare"), f.new_block("usual")
    f.branch(condition, stop, go, likely=False)
    f.open_block(stop)
    lowering.note_exit(layout.Exit.INTERPRET)
    f.line("ret void")
    f.open_block(go)


# -- one operation ---------------------------------------------------------------------------------


def _scratch(f: Function) -> Ssa:
    return f.pointer(_STATE, OFFSET["scratch0"])


def _long(f: Function, value: Ssa) -> Ssa:
    return f.cast("bitcast", value, _LONG)


def _number(f: Function, value: Ssa) -> Ssa:
    return f.cast("bitcast", value, "i80")


def _run(lowering: Lowering, text: str, outputs: str, inputs: str, *args: Ssa) -> list[Ssa]:
    """An operation of the host and what it leaves: its numbers, and last its status word.

    `outputs` and `inputs` are constraints, with st for a register of the stack.
    """
    f = lowering.f
    guest = f.load("i16", f.pointer(_STATE, OFFSET["fsw"]))
    *numbers, word = _once(f, text, outputs, inputs, args)
    fresh = f.op("and", word, integer(_FLAGS, 16))
    fresh = f.op("and", fresh, f.op("xor", guest, integer(-1, 16)))
    hot, again, known = f.label, f.new_block("again"), f.new_block("known")
    f.branch(f.compare("ne", fresh, integer(0, 16)), again, known, likely=False)
    f.open_block(again)
    f.line(f'call void asm sideeffect "fnclex", "{_CLOBBERS}"()')
    second = _once(f, text, outputs, inputs, args)[-1]
    f.jump(known)
    f.open_block(known)
    return [*numbers, f.phi("i16", (word, hot), (second, again))]


def _once(f: Function, text: str, outputs: str, inputs: str, args: Sequence[Ssa]) -> list[Ssa]:
    given = [part for part in outputs.split(",") if part]
    types = [_LONG] * len(given) + ["i16"]
    result = "{" + ", ".join(types) + "}" if given else "i16"
    constraints = ",".join([*given, "={ax}", *filter(None, inputs.split(",")), _CLOBBERS])
    listed = ", ".join(str(arg) for arg in args)
    body = text if "fnstsw" in text else text + _NEXT + "fnstsw %ax"
    call = f.value(result, f'call {result} asm sideeffect "{body}", "{constraints}"({listed})')
    if not given:
        return [call]
    return [f.value(kind, f"extractvalue {call}, {i}") for i, kind in enumerate(types)]


def _one_register(lowering: Lowering, text: str, value: Ssa) -> list[Ssa]:
    """ST(0) := op ST(0)."""
    return _run(lowering, text, "={st}", "0", _long(lowering.f, value))


def _keep(f: Function, value: Ssa) -> Ssa:
    """A memory operand where the host's instruction finds it."""
    scratch = _scratch(f)
    f.store(value, scratch)
    return scratch


@primitive("x87")
def _x87(lowering: Lowering, effect: Primitive, args: Sequence[Ssa]) -> Sequence[Ssa]:
    """of=(operation, *attributes); see interp.x87.  The control word is the host's already."""
    operation, *attributes = effect.attributes
    (*results, word), codes = _OPERATIONS[operation](lowering, attributes, args[1:])
    return [*results, lowering.f.op("and", word, integer(_FLAGS | codes, 16))]


_LETTERS = {"f32": "s", "f64": "l", "i16": "s", "i32": "l"}
_STACK = {  # two numbers of the stack: does the host's instruction pop the second?
    "scale": False, "yl2x": True, "yl2xp1": True, "patan": True,
}  # fmt: skip


def _two(lowering: Lowering, attributes: Sequence[str], args: Sequence[Ssa]) -> Answer:
    f, (operation, kind) = lowering.f, attributes
    left = _long(f, args[0])
    if kind != "f80":
        mnemonic = ("fi" if kind[0] == "i" else "f") + operation + _LETTERS[kind]
        found = _run(lowering, f"{mnemonic} ($3)", "={st}", "0,r", left, _keep(f, args[1]))
    elif operation in _STACK:
        pops = ",~{st(1)}" if _STACK[operation] else ""
        right = _long(f, args[1])
        found = _run(lowering, "f" + operation, "={st}", "0,{st(1)}" + pops, left, right)
    else:
        text = f"f{operation} %st(1), %st"
        found = _run(lowering, text, "={st}", "0,{st(1)}", left, _long(f, args[1]))
    return [_number(f, found[0]), found[1]], FSW_C1


def _one(lowering: Lowering, attributes: Sequence[str], args: Sequence[Ssa]) -> Answer:
    found = _one_register(lowering, "f" + attributes[0], args[0])
    codes = FSW_C1 | (FSW_C2 if attributes[0] in ("sin", "cos") else 0)
    return [_number(lowering.f, found[0]), found[1]], codes


def _remainder(lowering: Lowering, attributes: Sequence[str], args: Sequence[Ssa]) -> Answer:
    f = lowering.f
    operands = [_long(f, arg) for arg in args]
    found = _run(lowering, "f" + attributes[0], "={st}", "0,{st(1)}", *operands)
    return [_number(f, found[0]), found[1]], _CODES


def _pair(lowering: Lowering, attributes: Sequence[str], args: Sequence[Ssa]) -> Answer:
    """The host pushes its second result, unless it sets C2: then push one in its place."""
    f, operation = lowering.f, attributes[0]
    text = f"f{operation}"
    if operation != "xtract":
        text += f"{_NEXT}fnstsw %ax{_NEXT}testw $$0x400, %ax{_NEXT}jz 1f{_NEXT}fldz{_NEXT}1:"
    pushed, kept, word = _run(lowering, text, "={st},={st(1)}", "0", _long(f, args[0]))
    codes = FSW_C1 if operation == "xtract" else FSW_C1 | FSW_C2
    return [_number(f, kept), _number(f, pushed), word], codes


def _load(lowering: Lowering, attributes: Sequence[str], args: Sequence[Ssa]) -> Answer:
    f, kind, word = lowering.f, attributes[0], args[0]
    if kind[0] == "i":
        whole = f.cast("sext", word, "i64")
        return [_number(f, f.cast("sitofp", whole, _LONG)), integer(0, 16)], 0
    if kind == "bcd":
        found = _run(lowering, "fbld ($2)", "={st}", "r", _keep(f, word))
    else:
        found = _load_float(lowering, kind, word)
    return [_number(f, found[0]), found[1]], FSW_C1


def _load_float(lowering: Lowering, kind: str, word: Ssa) -> list[Ssa]:
    """A number that is normal or zero raises nothing, so the slow status word is not asked."""
    f = lowering.f
    fraction, top, type_ = (23, 0xFE, "float") if kind == "f32" else (52, 0x7FE, "double")
    magnitude = f.op("shl", word, integer(1, word.width))
    exponent = f.op("lshr", magnitude, integer(fraction + 1, word.width))
    below = f.op("sub", exponent, integer(1, word.width))
    normal = f.compare("ult", below, integer(top, word.width))
    plain = f.op("or", normal, f.compare("eq", magnitude, integer(0, word.width)))
    quick, odd, done = f.new_block("plain"), f.new_block("odd"), f.new_block("loaded")
    f.branch(plain, quick, odd, likely=True)
    f.open_block(odd)
    slow, status = _run(lowering, f"fld{_LETTERS[kind]} ($2)", "={st}", "r", _keep(f, word))
    after = f.label
    f.jump(done)
    f.open_block(quick)
    fast = f.cast("fpext", f.cast("bitcast", word, type_), _LONG)
    f.jump(done)
    f.open_block(done)
    value = f.phi(_LONG, (fast, quick), (slow, after))
    return [value, f.phi("i16", (integer(0, 16), quick), (status, after))]


# The host's store of each kind, and whether it pops.
_STORES = {
    "f32": ("fsts", False), "f64": ("fstl", False), "bcd": ("fbstp", True),
    "i16": ("fists", False), "i32": ("fistl", False), "i64": ("fistpll", True),
    "t16": ("fisttps", True), "t32": ("fisttpl", True), "t64": ("fisttpll", True),
}  # fmt: skip


def _store(lowering: Lowering, attributes: Sequence[str], args: Sequence[Ssa]) -> Answer:
    f, kind = lowering.f, attributes[0]
    mnemonic, pops = _STORES[kind]
    width = 80 if kind == "bcd" else int(kind[1:])
    scratch = _scratch(f)
    inputs = "{st},r" + (",~{st}" if pops else "")
    (word,) = _run(lowering, f"{mnemonic} ($2)", "", inputs, _long(f, args[0]), scratch)
    return [f.load(f"i{width}", scratch), word], FSW_C1


def _compare(lowering: Lowering, attributes: Sequence[str], args: Sequence[Ssa]) -> Answer:
    f, (kind, quiet) = lowering.f, attributes
    left = _long(f, args[0])
    if kind == "f80":
        text = ("fucom" if quiet else "fcom") + " %st(1)"
        found = _run(lowering, text, "", "{st},{st(1)}", left, _long(f, args[1]))
    else:
        mnemonic = ("ficom" if kind[0] == "i" else "fcom") + _LETTERS[kind]
        found = _run(lowering, f"{mnemonic} ($2)", "", "{st},r", left, _keep(f, args[1]))
    return found, _CODES


def _examine(lowering: Lowering, attributes: Sequence[str], args: Sequence[Ssa]) -> Answer:
    return _run(lowering, "fxam", "", "{st}", _long(lowering.f, args[0])), _CODES


def _constant(lowering: Lowering, attributes: Sequence[str], args: Sequence[Ssa]) -> Answer:
    found = _run(lowering, attributes[0], "={st}", "")
    return [_number(lowering.f, found[0]), found[1]], FSW_C1


_OPERATIONS: dict[str, Callable[[Lowering, Sequence[str], Sequence[Ssa]], Answer]] = {
    "two": _two,
    "one": _one,
    "remainder": _remainder,
    "pair": _pair,
    "load": _load,
    "store": _store,
    "compare": _compare,
    "examine": _examine,
    "constant": _constant,
}
