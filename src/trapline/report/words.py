"""Small words that reports share."""

from __future__ import annotations


def plural(count: int, thing: str) -> str:
    """`1 bus lock`, `2,000 bus locks`."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def plain(text: str) -> str:
    """Names from files and programs, without what would steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
