"""The names of the sixteen conditions, in the order of their codes (SDM vol. 1, appendix B)."""

from __future__ import annotations

CONDITIONS = (
    "o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g",
)  # fmt: skip
