"""Descriptors of the VMM: out of the way, and nobody else's."""

from __future__ import annotations

import fcntl
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


def test_own_files_are_made_above_the_programs_limit(own: OwnFiles) -> None:
    """RLIMIT_NOFILE counts when a number is given out; open files stay (fs/file.c)."""
    first = own.keep(os.dup(0))
    own.allow(first - 100)
    with pytest.raises(OSError, match="Invalid argument"):
        fcntl.fcntl(0, fcntl.F_DUPFD, first - 100)
    second = own.keep(os.dup(0))
    assert second > first
    assert os.fstat(first) == os.fstat(second)
    with own.room():
        os.close(fcntl.fcntl(0, fcntl.F_DUPFD, first))
        with own.room():
            pass
        os.close(fcntl.fcntl(0, fcntl.F_DUPFD, first))
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == first - 100
