"""What was compared, form by form, and the table of it that ends a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass

NATIVE, INTERPRETED, MISSING = "native", "interp only", "not implemented"

# Mnemonics, as iced-x86 spells them, that raise #UD for now.
NOT_IMPLEMENTED: frozenset[str] = frozenset()


@dataclass
class Tally:
    """One form's cases on the engines."""

    form: str
    bits: int
    mnemonic: str
    cases: int = 0  # on the fast engine; the reference engine did them all, too
    native: int = 0  # of these, without the reference engine's help
    done: int = 0  # on either, as the host, to the instruction's end
    refused: int = 0  # on either, with #UD, as not implemented

    def count(self, engine: str, native: bool) -> None:
        if engine == "jit":
            self.cases += 1
            self.native += native

    @property
    def status(self) -> str:
        if self.refused:
            return MISSING
        return NATIVE if self.native else INTERPRETED

    def as_dict(self) -> dict[str, object]:
        """For a report from another process."""
        return asdict(self)


def table(tallies: list[Tally]) -> list[str]:
    """The lines to print."""
    lines = [f"{'':8}{'forms':>8}{NATIVE:>10}{INTERPRETED:>14}{MISSING:>18}{'cases':>11}{'':>3}"]
    for bits in (64, 32):
        chosen = [tally for tally in tallies if tally.bits == bits]
        if not chosen:
            continue
        count = Counter(tally.status for tally in chosen)
        cases = sum(tally.cases for tally in chosen)
        native = sum(tally.native for tally in chosen)
        lines.append(
            f"{bits}-bit  {len(chosen):>8}{count[NATIVE]:>10}{count[INTERPRETED]:>14}"
            f"{count[MISSING]:>18}{cases:>11}, {native / max(cases, 1):.0%} of them native"
        )
        for status in (INTERPRETED, MISSING):
            lines += _listed(bits, status, chosen)
        lines += _fewest(bits, chosen)
    return lines


def _listed(bits: int, status: str, tallies: list[Tally]) -> list[str]:
    names = Counter(tally.mnemonic for tally in tallies if tally.status == status)
    return _wrapped(
        f"{bits}-bit, {status}: ", [f"{n}*{c}" if c > 1 else n for n, c in names.items()]
    )


def _fewest(bits: int, tallies: list[Tally]) -> list[str]:
    """The native forms of which the fewest cases ran natively."""
    native = sorted(
        (tally for tally in tallies if tally.status == NATIVE), key=lambda t: t.native / t.cases
    )
    shown = [f"{tally.form} {tally.native}/{tally.cases}" for tally in native[:6]]
    return _wrapped(f"{bits}-bit, seldom native: ", shown)


def _wrapped(head: str, words: list[str]) -> list[str]:
    if not words:
        return []
    lines = [head.rstrip()]
    for word in words:
        if len(lines[-1]) + len(word) > 98:
            lines.append("   ")
        lines[-1] += " " + word
    return lines
