"""One ELF file of a traced program: its segments, build-id, and the file with its debug info.

Knows files and link-time addresses ("vaddr"); nothing here knows where anything was loaded.
"""

from __future__ import annotations

import errno
import importlib
import io
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from trapline.trace.file import open_high

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

DEBUG_ROOT = Path("/usr/lib/debug")
BUFFER = 1 << 16
PAGE = 4096
PF_X = 1


_Found = TypeVar("_Found")


class _once(Generic[_Found]):
    """functools.cached_property without the lock that it has up to Python 3.11: one for all
    images, which a fork may find taken."""

    def __init__(self, find: Callable[[Any], _Found]) -> None:
        self._find, self.__doc__ = find, find.__doc__

    def __get__(self, image: Image, owner: type[Image]) -> _Found:
        found = image.__dict__[self._find.__name__] = self._find(image)
        return found


class Segment(NamedTuple):
    """A loadable part of the file: link-time address, bytes in the file, bytes in memory."""

    vaddr: int
    offset: int
    file_size: int
    memory_size: int
    is_executable: bool


class PathStream(io.RawIOBase):
    """A file that is open only while it is read, unless it is held open by `descriptor`.

    Images are read inside the traced process, whose program closes, counts and reuses descriptors
    as it likes.
    """

    def __init__(self, path: str, descriptor: int | None = None) -> None:
        self._path, self._held, self._at = path, descriptor, 0
        status = os.stat(path) if descriptor is None else os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        self._identity, self._size = (status.st_dev, status.st_ino), status.st_size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        if self._held is not None:
            done = os.preadv(self._held, [buffer], self._at)
            self._at += done
            return done
        descriptor = open_high(self._path, os.O_RDONLY)
        try:
            status = os.fstat(descriptor)
            if (status.st_dev, status.st_ino) != self._identity:
                raise OSError(errno.ESTALE, "the file was replaced", self._path)
            done = os.preadv(descriptor, [buffer], self._at)
        finally:
            os.close(descriptor)
        self._at += done
        return done


class Image:
    """An ELF file that is (or was) mapped into a traced program."""

    def __init__(self, stream: IO[bytes], path: str | None = None) -> None:
        # Here, not above: most programs take no bus lock, and need no pyelftools.
        from elftools.common.exceptions import ELFError
        from elftools.elf.elffile import ELFFile

        self.path = path
        try:
            self.elf: ELFFile = ELFFile(stream)
        except ELFError as error:
            raise ValueError(str(error)) from None
        if self.elf.get_machine_arch() not in ("x64", "x86"):
            raise ValueError(f"{path} is for another processor")

    @classmethod
    def open(cls, path: str, descriptor: int | None = None) -> Image | None:
        """The image in a file, or None where there is no readable x86 ELF file."""
        try:
            return cls(io.BufferedReader(PathStream(path, descriptor), BUFFER), path)
        except (OSError, ValueError):
            return None

    @classmethod
    def from_bytes(cls, content: bytes) -> Image | None:
        """The image in memory, as of the vDSO, or None where it is none."""
        try:
            return cls(io.BytesIO(content))
        except ValueError:
            return None

    def read_ahead(self) -> Image:
        """Read now what threads ask of an image they share: files have one position for all."""
        _ = self.segments, self.build_id
        return self

    @_once
    def segments(self) -> list[Segment]:
        """The PT_LOAD segments, in the order of their addresses."""
        return [
            Segment(
                s["p_vaddr"], s["p_offset"], s["p_filesz"], s["p_memsz"], bool(s["p_flags"] & PF_X)
            )
            for s in self.elf.iter_segments("PT_LOAD")
        ]

    @_once
    def is_relocatable(self) -> bool:
        """May be loaded at any address: a PIE or a shared library."""
        return bool(self.elf["e_type"] == "ET_DYN")

    def bias(self, start: int, offset: int, is_executable: bool) -> int | None:
        """What was added to link-time addresses, given that file `offset` is mapped at `start`.

        None where no segment holds that offset: the mapping is not the loader's.  Two segments
        may share a page of the file; ask with the lowest mapping, or an executable one.
        """
        found = []
        for segment in self.segments:
            if segment.offset & -PAGE <= offset < segment.offset + segment.file_size:
                bias = start - (offset - segment.offset + segment.vaddr)
                found.append((segment.is_executable != is_executable, bias))
        return min(found, key=lambda entry: entry[0])[1] if found else None

    def extent(self) -> tuple[int, int]:
        """First and last+1 link-time address, .bss included."""
        ends = [(s.vaddr, s.vaddr + s.memory_size) for s in self.segments]
        return (min(a for a, _ in ends), max(b for _, b in ends)) if ends else (0, 0)

    @_once
    def build_id(self) -> str | None:
        """The GNU build-id in hex, or None."""
        for segment in self.elf.iter_segments("PT_NOTE"):
            notes: Any = segment  # a NoteSegment
            for note in notes.iter_notes():
                if note["n_type"] == "NT_GNU_BUILD_ID":
                    return str(note["n_desc"])
        return None

    def section(self, name: str) -> tuple[int, bytes] | None:
        """(link-time address, bytes) of a section with contents, decompressed."""
        section = self.elf.get_section_by_name(name)
        if section is None or section["sh_type"] == "SHT_NOBITS":
            return None
        return section["sh_addr"], section.data()

    def segment_bytes(self, kind: str) -> tuple[int, bytes] | None:
        """(link-time address, bytes) of the first segment of a kind, as PT_GNU_EH_FRAME."""
        for segment in self.elf.iter_segments(kind):
            return segment["p_vaddr"], segment.data()
        return None

    def read(self, vaddr: int, size: int) -> bytes:
        """Bytes of the file at a link-time address; short at the end of its segment."""
        for segment in self.segments:
            inside = vaddr - segment.vaddr
            if 0 <= inside < segment.file_size:
                self.elf.stream.seek(segment.offset + inside)
                return self.elf.stream.read(min(size, segment.file_size - inside))
        return b""

    @_once
    def debug(self) -> Image | None:
        """The image that holds DWARF for this one: itself, a separate debug file, or None."""
        if self.elf.has_dwarf_info(strict=True) and not self.is_absent(".debug_info"):
            return self
        for candidate in self._debug_files():
            found = Image.open(str(candidate))
            if found is not None and found.elf.has_dwarf_info(strict=True):
                return found
        return None

    @_once
    def mini_debug(self) -> Image | None:
        """The compressed symbol table some distributions leave in a stripped file."""
        found = self.section(".gnu_debugdata")
        if found is None:
            return None
        try:
            return Image.from_bytes(lzma.decompress(found[1]))
        except lzma.LZMAError:
            return None

    def symbol_tables(self) -> Iterator[tuple[ELFFile, Any]]:
        """The symbol tables there are, the richest first."""
        for image in (self.debug, self, self.mini_debug):
            if image is not None and not image.is_absent(".symtab"):
                yield image.elf, image.elf.get_section_by_name(".symtab")
        if not self.is_absent(".dynsym"):
            yield self.elf, self.elf.get_section_by_name(".dynsym")

    def is_absent(self, name: str) -> bool:
        """There is no such section, or its contents are in another file."""
        section = self.elf.get_section_by_name(name)
        return section is None or section["sh_type"] == "SHT_NOBITS"

    def _debug_files(self) -> Iterator[Path]:
        """Where gdb would look: by build-id, debuginfod's cache, then by .gnu_debuglink."""
        if self.build_id:
            yield DEBUG_ROOT / ".build-id" / self.build_id[:2] / f"{self.build_id[2:]}.debug"
            cache = os.environ.get("DEBUGINFOD_CACHE_PATH")
            base = Path(cache) if cache else Path("~/.cache/debuginfod_client").expanduser()
            yield base / self.build_id / "debuginfo"
        link = self.elf.get_dwarf_link()
        if link is None or self.path is None:
            return
        folder = Path(os.path.realpath(self.path)).parent
        name = os.fsdecode(link["filename"])
        inside = DEBUG_ROOT / str(folder).lstrip("/")
        for candidate in (folder / name, folder / ".debug" / name, inside / name):
            if candidate.is_file() and _crc32(candidate) == link["checksum"]:
                yield candidate


def import_reader() -> None:
    """Import now what images are read with: the interpreter may soon not find its library."""
    importlib.import_module("elftools.elf.elffile")


def _crc32(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def find_debug_file(path: str) -> str | None:
    """The file with the DWARF of a program or library: itself, a separate one, or None."""
    image = Image.open(path)
    return image.debug.path if image is not None and image.debug is not None else None
