"""Compiled handlers on disk: found again, merged, and never taken from where others may write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trapline.processor.jit.cache import Entry, PackFolder
from trapline.processor.jit.compiler import Compiler


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


def test_packs_that_two_processes_merged_at_once_do_not_add_up(
    folder: PackFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each holds what both had read, and something of its own."""
    shared = [(_entry(f"s{i}"), f"shared {i}".encode()) for i in range(30)]
    for name in ("a", "b"):
        both = [*shared, (_entry(name), name.encode())]
        folder.write([one for one, _ in both], [code for _, code in both])
    for i in range(30):
        folder.write([_entry(f"n{i}")], [f"new {i}".encode()])
    made = Compiler.__new__(Compiler)
    made.handlers, made._folder = {}, folder
    added: list[bytes] = []
    monkeypatch.setattr(Compiler, "_add", lambda self, *objects: added.extend(objects))
    monkeypatch.setattr(
        Compiler,
        "_bind",
        lambda self, entries: self.handlers.update((one.symbol, None) for one in entries),
    )
    made._load_handlers(list(folder.read()), b"runtime")
    assert len(added) == len(set(added)) == 62
    ((entries, objects),) = list(PackFolder("k" * 64).read())
    assert len(objects) == len(set(objects)) == 63  # the runtime's is kept with them
    assert len(entries) == len({one.symbol for one in entries}) == 63


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
