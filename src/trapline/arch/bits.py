"""The notation for bit fields: a class of named bits over a plain int, active-low ones included.

For descriptions, tests and cold paths; code that runs often uses the int constants of its module.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Self, overload


class _Part:
    """A run of bits with a name; asked of the class it describes itself, of a view it reads."""

    def __init__(self, offset: int, width: int, *, active_low: bool = False) -> None:
        self.offset = offset
        self.width = width
        self.active_low = active_low
        self.mask = ((1 << width) - 1) << offset
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def read(self, raw: int) -> int:
        """The value that `raw` holds here, with the polarity undone."""
        if self.active_low:
            raw = ~raw
        return (raw & self.mask) >> self.offset

    def write(self, raw: int, value: int) -> int:
        """`raw` with `value` put here, in the field's polarity."""
        shifted = value << self.offset
        if value < 0 or shifted & ~self.mask:
            raise ValueError(f"{self.name} holds {self.width} bits, {value:#x} does not fit")
        if self.active_low:
            shifted ^= self.mask
        return (raw & ~self.mask) | shifted


class Bit(_Part):
    """One bit; reads as a bool that is true when the condition it names holds."""

    @overload
    def __get__(self, view: None, owner: type) -> Bit: ...
    @overload
    def __get__(self, view: Bits, owner: type) -> bool: ...
    def __get__(self, view: Bits | None, owner: type) -> Bit | bool:
        return self if view is None else bool(self.read(int(view)))


class Field(_Part):
    """Several bits; reads as an unsigned number."""

    @overload
    def __get__(self, view: None, owner: type) -> Field: ...
    @overload
    def __get__(self, view: Bits, owner: type) -> int: ...
    def __get__(self, view: Bits | None, owner: type) -> Field | int:
        return self if view is None else self.read(int(view))


def bit(position: int, *, active_low: bool = False) -> Bit:
    """Declares one bit; `active_low` says that 0 in the register means yes."""
    return Bit(position, 1, active_low=active_low)


def field(high: int, low: int) -> Field:
    """Declares bits high..low, both included, as the manuals write it."""
    return Field(low, high - low + 1)


class Bits(int):
    """An int that knows the names of its bits; arithmetic on it gives plain ints again."""

    width: ClassVar[int] = 64
    reset: ClassVar[int] = 0
    fixed_ones: ClassVar[int] = 0
    parts: ClassVar[tuple[Bit | Field, ...]] = ()
    defined: ClassVar[int] = 0
    active_low: ClassVar[int] = 0

    def __init_subclass__(cls, *, width: int = 64, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        cls.width = width
        declared = [part for part in vars(cls).values() if isinstance(part, Bit | Field)]
        cls.parts = tuple(sorted(declared, key=lambda part: part.offset))
        cls.defined = cls.active_low = 0
        for part in cls.parts:
            if part.mask & cls.defined or part.mask >> width:
                raise TypeError(f"{cls.__name__}.{part.name} overlaps another field or the width")
            cls.defined |= part.mask
            cls.active_low |= part.mask if part.active_low else 0

    def __new__(cls, raw: int | None = None) -> Self:
        raw = cls.reset if raw is None else raw
        if raw < 0 or raw >> cls.width:
            raise ValueError(f"{raw:#x} does not fit the {cls.width} bits of {cls.__name__}")
        return super().__new__(cls, raw)

    @classmethod
    def of(cls, **values: int) -> Self:
        """The register's reset value with these fields set."""
        return cls().replace(**values)

    def replace(self, **values: int) -> Self:
        """A copy with these fields changed, each in its own polarity."""
        named = {part.name: part for part in self.parts}
        raw = int(self)
        for name, value in values.items():
            if name not in named:
                raise AttributeError(f"{type(self).__name__} has no field {name}")
            raw = named[name].write(raw, int(value))
        return type(self)(raw)

    def fields(self) -> Iterator[tuple[str, int]]:
        """Every field's name and value, lowest bit first."""
        for part in self.parts:
            yield part.name, part.read(int(self))

    @property
    def asserted(self) -> tuple[str, ...]:
        """The names of the fields that are not zero, active-low ones when they are."""
        return tuple(name for name, value in self.fields() if value)

    def __repr__(self) -> str:
        shown = (
            part.name if part.width == 1 else f"{part.name}={part.read(int(self)):#x}"
            for part in self.parts
            if part.read(int(self))
        )
        return f"{type(self).__name__}({int(self):#x}: {' '.join(shown) or '-'})"
