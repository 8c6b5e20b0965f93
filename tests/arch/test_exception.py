"""Exceptions: classes, error codes, and the double-fault table."""

from __future__ import annotations

import pytest

from trapline.arch.exception import (
    TITLES,
    Combination,
    Kind,
    Vector,
    combine,
    has_error_code,
    kind_of,
    mnemonic,
)

BENIGN, CONTRIBUTORY, PAGE_FAULT = Vector.UD, Vector.GP, Vector.PF


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        (BENIGN, BENIGN, Combination.SERIAL),
        (BENIGN, CONTRIBUTORY, Combination.SERIAL),
        (BENIGN, PAGE_FAULT, Combination.SERIAL),
        (CONTRIBUTORY, BENIGN, Combination.SERIAL),
        (CONTRIBUTORY, CONTRIBUTORY, Combination.DOUBLE_FAULT),
        (CONTRIBUTORY, PAGE_FAULT, Combination.SERIAL),
        (PAGE_FAULT, BENIGN, Combination.SERIAL),
        (PAGE_FAULT, CONTRIBUTORY, Combination.DOUBLE_FAULT),
        (PAGE_FAULT, PAGE_FAULT, Combination.DOUBLE_FAULT),
        (Vector.DF, BENIGN, Combination.SERIAL),
        (Vector.DF, CONTRIBUTORY, Combination.SHUTDOWN),
        (Vector.DF, PAGE_FAULT, Combination.SHUTDOWN),
    ],
)
def test_double_fault_table(first, second, outcome):
    """SDM 3A, "Conditions for Generating a Double Fault"."""
    assert combine(first, second) is outcome


def test_a_debug_exception_is_benign_on_either_side():
    for other in Vector:
        if other is not Vector.DF:
            assert combine(Vector.DB, other) is Combination.SERIAL
        assert combine(other, Vector.DB) is Combination.SERIAL


def test_vectors_that_push_an_error_code():
    pushing = {vector for vector in range(256) if has_error_code(vector)}
    assert pushing == {8, 10, 11, 12, 13, 14, 17, 21, 29, 30}


def test_classes():
    assert kind_of(Vector.DB) is Kind.TRAP
    assert kind_of(Vector.BP) is Kind.TRAP
    assert kind_of(Vector.PF) is Kind.FAULT
    assert kind_of(Vector.AC) is Kind.FAULT
    assert kind_of(Vector.DF) is Kind.ABORT
    assert kind_of(Vector.NMI) is Kind.INTERRUPT
    assert kind_of(0x80) is Kind.INTERRUPT


def test_every_vector_has_a_title_and_a_mnemonic():
    assert set(TITLES) == set(Vector)
    assert mnemonic(13) == "#GP"
    assert mnemonic(2) == "NMI"
    assert mnemonic(9) == "vector 9"
