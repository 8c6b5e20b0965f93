"""Compiled handlers on disk: packs of object code with the layout of each handler's record.

A pack is written whole under a name of its own and renamed into place, so that processes that
share the folder never see half of one.  Nothing here knows what is in the object code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_MAGIC = b"TRAPLINE PACK 2\n"
_KEEP_SECONDS = 30 * 24 * 3600
_SOURCES = ("isa", "language", "jit", "state.py", "flags.py")


@dataclass(slots=True)
class Entry:
    """One handler in a pack: its record's length in words and how its fields are filled."""

    symbol: str
    words: int
    plan: list[tuple[str, int, int, int]]


def cache_root() -> Path:
    """The folder of all packs: $TRAPLINE_CACHE, or trapline in the user's cache folder."""
    given = os.environ.get("TRAPLINE_CACHE")
    if given:
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "trapline"


@cache
def source_key() -> str:
    """Changes whenever the sources that decide what a handler does change."""
    digest = hashlib.sha256()
    here = Path(__file__).parent.parent
    for name in _SOURCES:
        root = here / name
        for path in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
            digest.update(path.relative_to(here).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


class PackFolder:
    """The packs for one combination of sources, LLVM and host processor."""

    def __init__(self, key: str) -> None:
        self.path = cache_root() / key[:24]
        self._read: list[Path] = []

    def read(self) -> Iterator[tuple[list[Entry], list[bytes]]]:
        """Every readable pack; a damaged one is skipped, and all of them if anybody else could
        have written them: what is in them will be executed."""
        if not _is_ours(self.path):
            return
        for path in sorted(self.path.glob("*.pack")):
            with contextlib.suppress(OSError, ValueError, struct.error, KeyError, TypeError):
                pack = _parse(path.read_bytes())
                self._read.append(path)
                yield pack

    def merge(self, entries: list[Entry], objects: list[bytes]) -> None:
        """Put one pack in the place of all those that were read."""
        if self.write(entries, objects):
            for path in self._read:
                with contextlib.suppress(OSError):
                    path.unlink()

    def forget_others(self) -> None:
        """Remove packs of other sources or processors that nobody has used for a month."""
        limit = time.time() - _KEEP_SECONDS
        with contextlib.suppress(OSError):
            os.utime(self.path)
            for folder in self.path.parent.iterdir():
                if folder != self.path and folder.stat().st_mtime < limit:
                    shutil.rmtree(folder, ignore_errors=True)

    def write(self, entries: list[Entry], objects: list[bytes]) -> bool:
        """Keep a pack: handlers, and the object files that hold them all.  False if the folder
        cannot be written (then nothing is lost but time)."""
        handlers = [[e.symbol, e.words, e.plan] for e in entries]
        head = json.dumps([handlers, [len(code) for code in objects]]).encode()
        blob = _MAGIC + struct.pack("<Q", len(head)) + head + b"".join(objects)
        blob += hashlib.sha256(blob).digest()
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.path, suffix=".part")
            with os.fdopen(handle, "wb") as file:
                file.write(blob)
            os.replace(temporary, temporary.removesuffix(".part") + ".pack")
        except OSError:
            return False
        return True


def _is_ours(folder: Path) -> bool:
    """Whether a folder belongs to this user and nobody else may write to it."""
    try:
        status = folder.stat()
    except OSError:
        return False
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _parse(blob: bytes) -> tuple[list[Entry], list[bytes]]:
    if not blob.startswith(_MAGIC) or hashlib.sha256(blob[:-32]).digest() != blob[-32:]:
        raise ValueError("not a pack")
    at = len(_MAGIC) + 8
    (head_size,) = struct.unpack_from("<Q", blob, len(_MAGIC))
    handlers, sizes = json.loads(blob[at : at + head_size])
    entries = [
        Entry(symbol, words, [(n, o, w, s) for n, o, w, s in plan])
        for symbol, words, plan in handlers
    ]
    at += head_size
    objects = []
    for size in sizes:
        objects.append(blob[at : at + size])
        at += size
    return entries, objects
