"""PUSH, POP, CALL, RET, ENTER and the like: where RSP points; and where branches go."""

from __future__ import annotations

from iced_x86 import Instruction, Mnemonic, Register

from tests.against import values
from tests.against.addressing import Unreachable
from tests.against.assemble import Memory
from tests.against.draft import Draft
from tests.against.layout import CODE, DATA, HIGH, NON_CANONICAL, READ_ONLY, UNMAPPED
from tests.against.shapes.registry import RBP, RCX, RSP, finishes, prepares
from tests.against.state import AC, TF

_M, _R = Mnemonic, Register
_ALL_REGISTERS = 32  # so large that no place cuts it in two
_MANY = (_M.PUSHA, _M.PUSHAD, _M.POPA, _M.POPAD)


def place_stack(draft: Draft) -> None:
    """Point RSP at a place for what is pushed, or at what is popped."""
    sample = Instruction()
    sample.code = draft.form.code
    change = sample.stack_pointer_increment
    if draft.form.mnemonic in (_M.ENTER, _M.LEAVE):
        return
    size = _ALL_REGISTERS if draft.form.mnemonic in _MANY else abs(change) or 8
    if change < 0:
        draft.pin(RSP, draft.put(size, writes=True) + size)
    else:
        linear = draft.put(size, writes=False)
        draft.pin(RSP, linear)
        draft.memory.append((linear, values.integer(draft.source, 64).to_bytes(8, "little")))


@prepares("LEAVE")
def _leave(draft: Draft) -> None:
    draft.pin(RBP, draft.put(8, writes=False))


@prepares("ENTER")
def _enter(draft: Draft) -> None:
    """Far from an end: how much is written before a fault is not stated."""
    draft.pin(RSP, DATA.linear + draft.source.randrange(0x600, 0x1F00))
    draft.pin(RBP, DATA.linear + draft.source.randrange(0x600, 0x1F00))
    draft.faulty = True


@finishes("ENTER")
def _enter_operands(draft: Draft) -> None:
    size = draft.source.choice((0, 8, 16, 1, draft.source.randrange(0x400)))
    draft.flags &= ~AC  # see undefined.DIVERGENCES
    draft.operands = [size, draft.source.choice((0, 0, 1, 2, 3, 31, 32, 33, 63, 64, 255))]


@finishes("PUSH", "POP")
def _stack_operand_beside_rsp(draft: Draft) -> None:
    """PUSH [RSP+n] uses RSP as it was; POP [RSP+n] uses it as it will be (SDM 2, POP)."""
    if not draft.operands or not isinstance(draft.operands[0], Memory) or draft.form.bits != 64:
        return
    if draft.source.random() < 0.12 and draft.way.shape == "base+8":
        displacement = draft.source.randrange(0, 100)
        small = draft.way.address_bits == 32
        draft.operands[0] = Memory(
            _R.ESP if small else _R.RSP, displacement=displacement, displacement_size=1
        )
        draft.linear = None


@finishes("POPF", "POPFQ", "POPFD")
def _popped_flags(draft: Draft) -> None:
    """Anything but TF, which would trap."""
    linear, content = draft.memory[-1]
    flags = int.from_bytes(content, "little") & ~TF
    draft.memory[-1] = (linear, flags.to_bytes(8, "little"))


def _target(draft: Draft) -> int:
    chance = draft.source.random()
    if chance < 0.8:
        draft.landing = CODE.linear + draft.source.randrange(CODE.size)
    elif chance < 0.97 or draft.faulty:  # which of two faults comes first is not stated
        draft.landing = draft.source.choice(
            (DATA.linear, UNMAPPED, HIGH.linear + 5, READ_ONLY.linear)
        )
    else:
        draft.landing = NON_CANONICAL + draft.source.getrandbits(32)
    return draft.landing


@finishes("JMP", "CALL")
def _indirect(draft: Draft) -> None:
    operand = draft.operands[0]
    is_free = isinstance(operand, Memory) or draft.names_register(0)
    if is_free and not draft.write(operand, _target(draft)) and draft.faulty:
        raise Unreachable  # CALL RSP, where RSP leads nowhere: two faults at once


@finishes("RET")
def _return(draft: Draft) -> None:
    linear, _content = draft.memory[-1]
    draft.memory[-1] = (linear, _target(draft).to_bytes(8, "little"))


@prepares("LOOP", "LOOPE", "LOOPNE", "JRCXZ", "JECXZ", "JCXZ")
def _counted_branch(draft: Draft) -> None:
    edges = (0, 1, 2, 1 << 16, 1 << 32, (1 << 32) + 1, (1 << 64) - 1, draft.registers[RCX])
    draft.pin(RCX, draft.source.choice(edges))
