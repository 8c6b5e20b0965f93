"""What a translation is: rights, frames of physical memory, and pages of linear memory."""

from __future__ import annotations

from typing import NamedTuple

# Kinds of access, and rights; the EPT's numbers.
READ, WRITE, FETCH = 1, 2, 4
# Of Page.quick: writing is allowed but where the page's bytes are translated code.
BESIDE_CODE = 8
# Under which rules an access is made; also the number of the table that caches it.
USER, SUPERVISOR, SUPERVISOR_AC = 0, 1, 2  # the last: RFLAGS.AC lifts SMAP


class Frame:
    """A page of physical (or guest-physical) memory: where it is and what may be done to it."""

    __slots__ = ("host", "physical", "rights", "memory_type", "ignores_pat")

    def __init__(
        self, host: int, physical: int, rights: int, memory_type: int, ignores_pat: bool
    ) -> None:
        self.host = host  # 0: no RAM here, a device answers
        self.physical = physical  # the last one, beyond any nested tables
        self.rights = rights
        self.memory_type = memory_type
        self.ignores_pat = ignores_pat


class Page:
    """A translated page of linear memory under one privilege.

    `rights` is what needs no further walk (writing: only once the dirty flags are set), `quick`
    the part of it that may go straight to host memory (or BESIDE_CODE, which only native code
    can tell).
    """

    __slots__ = (
        "linear",
        "privilege",
        "host",
        "physical",
        "memory_type",
        "rights",
        "quick",
        "is_large",
    )

    def __init__(
        self,
        linear: int,
        privilege: int,
        frame: Frame,
        rights: int,
        memory_type: int,
        is_large: bool,
    ) -> None:
        self.linear = linear
        self.privilege = privilege
        self.host = frame.host
        self.physical = frame.physical
        self.memory_type = memory_type
        self.rights = rights
        self.quick = 0
        self.is_large = is_large


class Translation(NamedTuple):
    """Where one linear address leads.  `host` is 0 where a device answers."""

    host: int
    physical: int
    memory_type: int
    rights: int
