"""The files of `trapline run`: the image, and the modules that QEMU's -initrd would give it."""

from __future__ import annotations

from pathlib import Path

from trapline.cli.failure import Failure, reason
from trapline.machine import Module

_LARGEST = 1 << 27


def read_image(path: str) -> bytes:
    """The file, if it can be one."""
    try:
        with Path(path).open("rb") as stream:
            image = stream.read(_LARGEST + 1)
    except (OSError, ValueError) as error:
        raise Failure(f"cannot read {path}: {_reason(error)}") from None
    if len(image) > _LARGEST:
        raise Failure(f"{path} is larger than any image can be (128 MiB)")
    return image


def read_modules(text: str) -> list[Module]:
    """`FILE[ words],FILE2...`: a comma that is doubled belongs to a name or its words."""
    modules = []
    for string in split_list(text):
        path = string.split(" ", 1)[0]
        if not path:
            raise Failure(f"a file name is missing in --initrd {text!r}", "trapline run --help")
        modules.append(Module(read_image(path), string))
    return modules


def split_list(text: str) -> list[str]:
    """The parts between single commas."""
    parts = text.replace(",,", "\0").split(",")
    return [part.replace("\0", ",") for part in parts]


def _reason(error: Exception) -> str:
    """A name with a null byte is no OSError to Python."""
    return reason(error) if isinstance(error, OSError) else str(error)
