"""The files that the programs in these tests work on; the same bytes and times on every run."""

from __future__ import annotations

import os
import random
from functools import cache
from pathlib import Path

_TIME = 1_600_000_000


@cache
def _contents() -> dict[str, bytes]:
    source = random.Random(1)
    numbers = [source.randrange(10**9) for _ in range(5000)]
    floats = [source.gauss(0, 1) * 10 ** source.randint(-20, 20) for _ in range(3000)]
    letters = "abcdefghij"
    words = ["".join(source.choices(letters, k=source.randint(1, 12))) for _ in range(20000)]
    return {
        "numbers": "".join(f"{number}\n" for number in numbers).encode(),
        "floats": "".join(f"{number!r}\n" for number in floats).encode(),
        "words": "".join(f"{word}\n" for word in words).encode(),
        "columns": "".join(
            f"{a} {b}:{a % 7}\n" for a, b in zip(numbers, words, strict=False)
        ).encode(),
        "sorted": "".join(f"{word}\n" for word in sorted(set(words[:3000]))).encode(),
        "bytes": source.randbytes(200_000),
        "tree/one": b"1\n",
        "tree/deep/two": b"22\n" * 22,
        "tree/deep/deeper/three": b"",
    }


def write_material(folder: Path) -> None:
    """Put all of it into a folder."""
    for name, content in _contents().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o644)
    (folder / "tree/link").symlink_to("deep/two")
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (_TIME, _TIME), follow_symlinks=False)
