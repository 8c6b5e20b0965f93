"""`trapline cpus`: the processor models, and what each can tell of bus locks."""

from __future__ import annotations

import argparse

from trapline.arch import cpuid
from trapline.kvm import abi, open_kvm
from trapline.processor import CHOICES, FEATURES, MODELS, Model

EPILOG = """\
examples:
  trapline cpus                                      the table
  trapline cpus --features                           what +FEATURE and -FEATURE may name
  trapline run --cpu zen5 guest.elf                  one of them
  trapline run --cpu max,-bus_lock_detect guest.elf  one of them without a feature

  #DB    bus lock debug exception: CPUID.(7,0):ECX[24] and DEBUGCTL bit 2
  #AC    split lock alignment check: MSR TEST_CTRL (33h) bit 29
  exit   what leaves a guest on a bus lock: VMX's bus-lock VM exit, or SVM's threshold

A guest sees both, unless its CPUID or a quirk (trapline.kvm.quirks) hides them.
"""
HEADINGS = ("MODEL", "VENDOR", "#DB", "#AC", "EXIT")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this verb."""
    parser.epilog = EPILOG
    parser.add_argument(
        "--features", action="store_true", help="list the features, and which models have each"
    )


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    if options.features:
        _print([("FEATURE", "MODELS"), *map(_feature_row, CHOICES)])
    else:
        _print([HEADINGS, *map(_row, MODELS.values())])
    return 0


def _print(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _feature_row(name: str) -> tuple[str, str]:
    having = [chosen.name for chosen in MODELS.values() if chosen.has(FEATURES[name])]
    return name, "all" if len(having) == len(MODELS) else ", ".join(having) or "-"


def _row(chosen: Model) -> tuple[str, ...]:
    kvm = open_kvm(cpu=chosen.name)
    return (
        chosen.name,
        "AMD" if chosen.is_amd else "Intel",
        _yes(chosen.has(cpuid.BUS_LOCK_DETECT)),
        _yes(chosen.has_split_lock_ac),
        _yes(bool(kvm.check_extension(abi.Capability.X86_BUS_LOCK_EXIT))),
    )


def _yes(has: bool) -> str:
    return "yes" if has else "-"
