"""The grammar refuses what the engines may not be given, one rule at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from trapline.processor.language import (
    DE,
    GP,
    Cpu,
    FormFacts,
    OperandKind,
    Place,
    Read,
    Value,
    Write,
    concat,
    const,
    divide,
)
from trapline.processor.language.check import GrammarError, check

REGISTERS = frozenset({"rax", "rcx", "system_flags"})
REGISTER, MEMORY, IMMEDIATE = OperandKind("reg", 32), OperandKind("mem", 32), OperandKind("imm", 32)
FORM = FormFacts("made_up", (REGISTER, MEMORY, IMMEDIATE))


def recorded(describe: Callable[[Cpu], None], form: FormFacts = FORM) -> None:
    """Record a description and check it."""
    cpu = Cpu(form, form.lock)
    describe(cpu)
    check(form, cpu.effects, REGISTERS)


def refused(describe: Callable[[Cpu], None], why: str, form: FormFacts = FORM) -> None:
    with pytest.raises(GrammarError, match=why):
        recorded(describe, form)


def eax(cpu: Cpu) -> Value:
    return cpu.register("rax", 32).get()


def test_a_plain_description_is_well_formed() -> None:
    def describe(cpu: Cpu) -> None:
        left, right = eax(cpu), cpu.register("rcx", 32).get()
        cpu.fault(right.equals(0), DE)
        place = cpu.memory(1, const(8, 64), 32)
        before = place.update(lambda old: old + left)
        cpu.flags.after_add(before + left, left)
        with cpu.when(left.equals(right)):
            cpu.register("rax", 32).set(before)
        cpu.branch(cpu.next_rip)

    recorded(describe)


def test_widths_agree() -> None:
    refused(lambda cpu: cpu.flags.put(cf=eax(cpu)), "temp of 32 bits, not 1")
    mixed = Value("add", 32, (const(1, 32), const(1, 16)))
    refused(lambda cpu: cpu.register("rax", 32).set(mixed), "add")
    with pytest.raises(TypeError, match="writing 16 bits to 32"):
        recorded(lambda cpu: cpu.register("rax", 32).set(eax(cpu).low(16)))


def test_writing_another_width_is_refused_even_past_the_recorder() -> None:
    def describe(cpu: Cpu) -> None:
        cpu.effects.append(Write(Place("register", 32, name="rax"), const(0, 16)))

    refused(describe, "const of 16 bits, not 32")


def test_an_extension_widens_and_a_truncation_narrows() -> None:
    refused(lambda cpu: cpu.branch(Value("zext", 64, (const(0, 64),))), "zext")
    refused(lambda cpu: cpu.branch(Value("trunc", 64, (const(0, 32),))), "trunc")


def test_a_constant_fits() -> None:
    refused(lambda cpu: cpu.flags.put(cf=Value("const", 1, (2,))), "2 in 1 bits")


def test_a_temporary_is_read_after_it_is_defined() -> None:
    def inside(cpu: Cpu) -> None:
        with cpu.when(const(1, 1)):
            conditional = eax(cpu)
        cpu.register("rax", 32).set(conditional)

    refused(lambda cpu: cpu.register("rax", 32).set(Value("temp", 32, (9,))), "before it is")
    refused(inside, "before it is defined")


def test_a_temporary_is_defined_once() -> None:
    def describe(cpu: Cpu) -> None:
        eax(cpu)
        cpu.effects.append(cpu.effects[0])

    refused(describe, "defined twice")


def test_a_repeated_body_stands_for_itself() -> None:
    def describe(cpu: Cpu) -> None:
        outside = eax(cpu)
        with cpu.repeat(cpu.register("rcx", 64)):
            cpu.memory("es", const(0, 64), 32).set(outside)

    refused(describe, "before it is defined")


def test_a_shift_stays_below_the_width() -> None:
    refused(lambda cpu: cpu.register("rax", 32).set(eax(cpu) << eax(cpu)), "shl of 32 bits")
    refused(lambda cpu: cpu.register("rax", 32).set(eax(cpu) >> (eax(cpu) & 32)), "up to 32")
    recorded(lambda cpu: cpu.register("rax", 32).set(eax(cpu) >> (eax(cpu) & 31)))


def test_a_shift_amount_may_be_bounded_in_other_ways() -> None:
    def describe(cpu: Cpu) -> None:
        count = eax(cpu)
        rest = divide("urem", const(0, 32), count, const(9, 32))
        amounts = (
            count.low(4).zero_extend(32) + 16,
            const(20, 32) - (count & 15),
            rest,
            count.equals(0).select(const(3, 32), count >> 27),
            concat(const(0, 27), count.low(5)),
        )
        for amount in amounts:
            cpu.register("rax", 32).set(count.ashr(amount))

    recorded(describe)


def test_a_sum_that_may_wrap_is_not_bounded() -> None:
    refused(
        lambda cpu: cpu.register("rax", 32).set(eax(cpu) >> (const(31, 32) - eax(cpu))),
        "up to 4294967295",
    )


def test_a_division_comes_after_the_fault_that_makes_it_safe() -> None:
    def divided(cpu: Cpu, safely: bool) -> None:
        high, low, by = eax(cpu), eax(cpu), eax(cpu)
        if safely:
            cpu.fault(high.below(by) ^ 1, DE)
        cpu.register("rax", 32).set(divide("udiv", high, low, by))

    recorded(lambda cpu: divided(cpu, safely=True))
    refused(lambda cpu: divided(cpu, safely=False), "a division before a fault")


def test_a_constant_divisor_needs_no_fault_but_a_quotient_that_fits() -> None:
    refused(
        lambda cpu: cpu.register("rax", 32).set(
            divide("urem", const(9, 32), eax(cpu), const(9, 32))
        ),
        "may not fit",
    )


def test_faults_come_before_stores() -> None:
    def describe(cpu: Cpu) -> None:
        cpu.memory(1, const(0, 64), 32).set(const(0, 32))
        cpu.fault(const(1, 1), GP, 0)

    refused(describe, "after memory was written")


def test_a_fault_has_an_error_code_if_its_vector_has_one() -> None:
    refused(lambda cpu: cpu.fault(const(1, 1), GP), "error code")
    refused(lambda cpu: cpu.fault(const(1, 1), DE, 0), "error code")
    refused(lambda cpu: cpu.fault(const(1, 1), 32), "vector 32")


def test_microcode_comes_last() -> None:
    def after(cpu: Cpu) -> None:
        cpu.microcode("something")
        eax(cpu)

    def after_a_condition(cpu: Cpu) -> None:
        with cpu.when(const(1, 1)):
            cpu.microcode("something")
        eax(cpu)

    def in_a_loop(cpu: Cpu) -> None:
        with cpu.repeat(cpu.register("rcx", 64)):
            cpu.microcode("something")

    refused(after, "after microcode")
    refused(after_a_condition, "after microcode")
    refused(in_a_loop, "microcode in a repeat")


def test_places_exist() -> None:
    refused(lambda cpu: cpu.register("eax", 32).set(const(0, 32)), "no register eax")
    refused(lambda cpu: cpu.register("rax", 12).set(const(0, 12)), "odd width")
    refused(lambda cpu: cpu.memory("xs", const(0, 64), 8).set(const(0, 8)), "no segment xs")
    refused(lambda cpu: cpu.memory(0, const(0, 64), 8).set(const(0, 8)), "not a memory operand")
    refused(lambda cpu: cpu.memory(1, const(0, 32), 8).set(const(0, 8)), "not 64")
    refused(lambda cpu: cpu.branch(Value("ea", 64, (2,))), "not a memory operand")
    refused(lambda cpu: cpu.write(Place("operand", 32, 2), const(0, 32)), "writing to imm")
    refused(lambda cpu: cpu.write(Place("operand", 32, 1), const(0, 32)), "as a register")
    refused(lambda cpu: cpu.write(Place("operand", 64, 0), const(0, 64)), "wider than")
    refused(lambda cpu: cpu.write(Place("flag", 1, name="cf"), const(0, 1)), "as flags")
    refused(lambda cpu: cpu.effects.append(Read(cpu.temp(1), Place("hat", 1))), "kind hat")


def test_flags_have_their_names_and_rules() -> None:
    refused(lambda cpu: cpu.flags.put(df=const(0, 1)), "wrong name")
    refused(lambda cpu: cpu.flags._rule("MUL", const(0, 32), const(0, 32)), "rule MUL")
    refused(lambda cpu: cpu.flags.after_logic(const(0, 33)), "odd width")


def test_a_branch_is_direct_when_it_has_a_target_in_the_instruction() -> None:
    near = FormFacts("made_up", (OperandKind("branch", 64),))
    refused(lambda cpu: cpu.branch(cpu.next_rip), "direct", near)
    refused(lambda cpu: cpu.branch(cpu.next_rip, direct=True), "direct")
    refused(lambda cpu: cpu.branch(cpu.next_rip, kind="leap"), "branch leap")


def test_only_known_operations() -> None:
    refused(lambda cpu: cpu.branch(Value("guess", 64)), "no operation guess")
    refused(lambda cpu: cpu.register("rax", 16).set(const(1, 16).unary("bswap")), "bswap of 16")
