"""The book of instructions: name -> description, and the recording of a form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from trapline.processor.language.effect import Effect, Place
from trapline.processor.language.recorder import Cpu, FormFacts, Operand
from trapline.processor.language.value import Value

Description = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction's description, under the mnemonic the decoder uses."""

    name: str
    opcodes: tuple[str, ...]
    lock: str  # "never" | "allowed" | "always" (with a memory destination)
    describe: Description
    unit: str = ""  # what must be switched on: see processor.units


INSTRUCTIONS: dict[str, Instruction] = {}


def instruction(
    *opcodes: str, lock: str = "never", name: str | None = None, unit: str = ""
) -> Callable[[Description], Description]:
    """Register a description; its name is the function's, less a trailing underscore."""

    def register(describe: Description) -> Description:
        mnemonic = name or describe.__name__.rstrip("_")
        if mnemonic in INSTRUCTIONS:
            raise ValueError(f"{mnemonic} is described twice")
        INSTRUCTIONS[mnemonic] = Instruction(mnemonic, opcodes, lock, describe, unit)
        return describe

    return register


def record(form: FormFacts) -> list[Effect]:
    """The effects of one instruction in one form."""
    entry = INSTRUCTIONS[form.name]
    cpu = Cpu(form, form.lock or entry.lock == "always")
    operands = []
    for index, kind in enumerate(form.operands):
        if kind.kind == "mem":
            place = Place(
                "memory", kind.width, index, address=Value("ea", 64, (index,)), segment=index
            )
        else:
            place = Place("operand", kind.width, index)
        operands.append(Operand(cpu, index, place, kind.kind))
    entry.describe(cpu, *operands)
    return cpu.effects


@cache
def recording(form: FormFacts) -> list[Effect]:
    """The effects of a form, recorded once; both engines replay this list."""
    return record(form)
