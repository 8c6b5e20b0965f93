"""The table of what is undefined, held against iced-x86's own and against the host's answers."""

from __future__ import annotations

import pytest
from iced_x86 import Instruction, Mnemonic, RflagsBits

from tests.against.cases import cases
from tests.against.compare import decode, differences
from tests.against.forms import Form, all_forms
from tests.against.host import Host
from tests.against.state import AF, CF, OF, PF, SF, ZF
from tests.against.undefined import (
    C0,
    C1,
    C2,
    C3,
    CONDITIONS,
    DIVERGENCES,
    FLAGS,
    Count,
    mask,
    shift_count,
)

_R = RflagsBits
_ICED = {
    _R.CF: CF, _R.PF: PF, _R.AF: AF, _R.ZF: ZF, _R.SF: SF, _R.OF: OF,
    _R.C0: C0, _R.C1: C1, _R.C2: C2, _R.C3: C3,
}  # fmt: skip
# iced-x86 lists no flags for these, whose page in the SDM says "C0, C1, C2, C3 undefined".
_UNLISTED = frozenset(("FNOP", "WAIT", "FNENI", "FNDISI", "FNSETPM"))


def iced_says(form: Form) -> int:
    instruction = Instruction()
    instruction.code = form.code
    undefined = instruction.rflags_undefined
    return sum(ours for theirs, ours in _ICED.items() if undefined & theirs)


def table_says(form: Form) -> int:
    """All that any count could leave undefined."""
    name = next(name for name, value in vars(Mnemonic).items() if value == form.mnemonic)
    return _joined(entry.flags for entry in (*FLAGS, *CONDITIONS) if name in entry.names)


def _joined(parts: object) -> int:
    whole = 0
    for part in parts:  # type: ignore[attr-defined]
        whole |= part
    return whole


def _name(form: Form) -> str:
    return next(name for name, value in vars(Mnemonic).items() if value == form.mnemonic)


@pytest.mark.parametrize("bits", [64, 32])
def test_the_table_agrees_with_iced_x86(bits: int) -> None:
    """iced-x86 knows no counts, so for shifts it may say less than the table."""
    counted = {name for entry in FLAGS if entry.when for name in entry.names}
    for form in all_forms(bits):
        if _name(form) in counted:
            assert iced_says(form) & ~table_says(form) == 0, form.name
        elif _name(form) in _UNLISTED:
            assert iced_says(form) == 0, form.name
        else:
            assert iced_says(form) == table_says(form), form.name


def test_every_entry_cites_its_page_and_names_real_instructions() -> None:
    for entry in (*FLAGS, *CONDITIONS):
        assert entry.citation.startswith(("SDM", "APM"))
        for name in entry.names:
            assert hasattr(Mnemonic, name), name
    for divergence in DIVERGENCES:
        assert "SDM" in divergence.citation and "APM" in divergence.citation or divergence.what


@pytest.mark.parametrize(
    "name, shift, undefined",
    [
        ("SHL", Count(0, 32), 0),
        ("SHL", Count(1, 32), AF),
        ("SHL", Count(2, 32), AF | OF),
        ("SHL", Count(8, 8), AF | OF | CF),
        ("SAR", Count(8, 8), AF | OF),
        ("ROL", Count(1, 8), 0),
        ("RCR", Count(9, 8), OF),
        ("SHLD", Count(16, 16), AF | OF),
        ("SHLD", Count(17, 16), CF | PF | AF | ZF | SF | OF),
    ],
)
def test_shifts_leave_undefined_what_their_count_says(
    name: str, shift: Count, undefined: int
) -> None:
    found = _joined(
        entry.flags
        for entry in FLAGS
        if name in entry.names and (entry.when is None or entry.when(shift))
    )
    assert found == undefined


def test_the_count_is_masked_by_the_operand_size() -> None:
    for form in all_forms():
        if _name(form) in ("SHL", "ROR", "SHLD"):
            for made in cases(form, 5):
                shift = shift_count(made, decode(made))
                assert shift is not None
                assert shift.count < (64 if shift.width == 64 else 32)


def test_the_host_agrees_with_itself() -> None:
    """The same cases twice: nothing that is compared varies."""
    made = [one for form in all_forms()[::7] for one in cases(form, 8)]
    with Host() as host:
        for one, first, second in zip(made, host.run(made), host.run(made), strict=True):
            assert differences(one, first, second) == [], one


def test_a_mask_never_hides_what_a_fault_left() -> None:
    """A fault changes nothing, so nothing is undefined."""
    form = next(form for form in all_forms() if form.name == "mul_rm32 [m]")
    made = list(cases(form, 100))
    with Host() as host:
        ended = zip(made, host.run(made), strict=True)
        faulted = [(one, done) for one, done in ended if done.fault]
    assert faulted
    for one, done in faulted:
        assert mask(one, decode(one), done).flags == 0
        assert done.flags & ~0x1_0002 == one.flags & ~0x1_0002 | 0x200
