"""Compiled handlers on disk: found again, merged, and never taken from where others may write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trapline.processor.jit.cache import Entry, PackFolder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackFolder:
    monkeypatch.setenv("TRAPLINE_CACHE", str(tmp_path))
    return PackFolder("k" * 64)


def _entry(symbol: str) -> Entry:
    return Entry(symbol, 4, [("offset", 0, 2, 16)])


def test_what_was_written_is_read(folder: PackFolder) -> None:
    assert folder.write([_entry("a"), _entry("b")], [b"one", b"two"])
    assert list(folder.read()) == [([_entry("a"), _entry("b")], [b"one", b"two"])]


def test_a_damaged_pack_is_skipped(folder: PackFolder) -> None:
    folder.write([_entry("a")], [b"one"])
    (pack,) = folder.path.glob("*.pack")
    content = bytearray(pack.read_bytes())
    content[-40] ^= 1
    pack.write_bytes(content)
    folder.path.joinpath("short.pack").write_bytes(b"TRAPLINE")
    assert list(folder.read()) == []


def test_a_folder_that_others_may_write_to_is_not_trusted(folder: PackFolder) -> None:
    folder.write([_entry("a")], [b"one"])
    os.chmod(folder.path, 0o777)
    assert list(folder.read()) == []


def test_merging_leaves_one_pack_with_everything(folder: PackFolder) -> None:
    for name in "abc":
        folder.write([_entry(name)], [name.encode()])
    packs = list(folder.read())
    folder.merge(
        [e for entries, _ in packs for e in entries], [o for _, code in packs for o in code]
    )
    again = PackFolder("k" * 64)
    ((entries, objects),) = list(again.read())
    assert sorted(e.symbol for e in entries) == ["a", "b", "c"]
    assert sorted(objects) == [b"a", b"b", b"c"]


def test_a_folder_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    obstacle = tmp_path / "file"
    obstacle.write_text("")
    monkeypatch.setenv("TRAPLINE_CACHE", str(obstacle))
    assert not PackFolder("k" * 64).write([_entry("a")], [b"one"])


def test_folders_nobody_used_for_a_month_go(folder: PackFolder) -> None:
    folder.write([_entry("a")], [b"one"])
    old, recent = folder.path.parent / "old", folder.path.parent / "recent"
    for other in (old, recent):
        other.mkdir()
    os.utime(old, (0, 0))
    folder.forget_others()
    assert not old.exists() and recent.exists() and folder.path.exists()
