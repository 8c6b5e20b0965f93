"""Descriptors of the VMM: out of the way, and nobody else's."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import pytest

from trapline.process.own_files import OwnFiles


@pytest.fixture
def own() -> Iterator[OwnFiles]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = OwnFiles()
    yield files
    for fd in files:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_kept_file_moves_up_and_its_old_number_is_free(own: OwnFiles) -> None:
    fd = os.open("/dev/null", os.O_WRONLY)
    kept = own.keep(fd)
    assert kept > 500
    assert os.write(kept, b"x") == 1
    assert not os.get_inheritable(kept)
    assert os.open("/dev/null", os.O_WRONLY) == fd
    os.close(fd)
    assert list(own) == [kept]
    assert kept in own
    assert fd not in own


def test_keeping_twice_is_keeping_once(own: OwnFiles) -> None:
    kept = own.keep(os.dup(0))
    assert own.keep(kept) == kept


def test_what_has_been_closed_is_forgotten(own: OwnFiles) -> None:
    one, two = own.keep(os.dup(0)), own.keep(os.dup(0))
    os.close(one)
    own.forget_closed()
    assert list(own) == [two]


def test_the_limits_are_those_from_before(own: OwnFiles) -> None:
    assert own.limits[0] <= resource.getrlimit(resource.RLIMIT_NOFILE)[0]
