"""From the raw addresses of a trace to what a person reads: module, function, line, and data.

Opens the program's files, each once; checks that they are still the ones that were traced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from trapline.trace.image import Image
from trapline.trace.model import Mapped, TracedFrame, TracedSite
from trapline.trace.symbols import Symbol, Symbols
from trapline.trace.variables import Field

if TYPE_CHECKING:
    from trapline.trace.source import Source


class Location(NamedTuple):
    """Where code is; `module_offset` is the link-time address, as objdump and addr2line take it."""

    module: str | None
    module_offset: int | None
    function: str | None
    file: str | None
    line: int | None
    is_inlined: bool = False


class Place(NamedTuple):
    """Where data is, in words, and the symbol where there is one."""

    kind: str  # "global", "thread-local", "stack", "heap", "file", "anonymous", ...
    text: str
    symbol: str | None = None
    field: Field | None = None


class _Module:
    """One file, with its symbols and lines read when first needed."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self._symbols: Symbols | None = None
        self._source: Source | None = None

    @property
    def symbols(self) -> Symbols:
        if self._symbols is None:
            self._symbols = Symbols(self.image)
        return self._symbols

    @property
    def source(self) -> Source:
        if self._source is None:
            from trapline.trace.source import Source  # DWARF, which the recorder never reads

            self._source = Source(self.image)
        return self._source


class Locator:
    """Finds names and lines; `changed` lists files that are not what they were when traced."""

    def __init__(self) -> None:
        self._modules: dict[str, _Module | None] = {}
        self.changed: set[str] = set()
        self.without_lines: set[str] = set()

    def locate(self, linear: int, mapped: Mapped | None) -> list[Location]:
        """Where an address is, innermost inlined function first; never empty."""
        if mapped is None:
            return [Location(None, None, None, None, None)]
        region = mapped.region
        name = region.path or region.name or None
        if mapped.bias is None:
            return [Location(name, None, None, None, None)]
        vaddr = linear - mapped.bias
        module = self._module(mapped)
        if module is None:
            return [Location(name, vaddr, None, None, None)]
        positions = module.source.positions(vaddr)
        symbol = module.symbols.function(vaddr)
        if not positions:
            self.without_lines.add(name or "")
            return [Location(name, vaddr, symbol.name if symbol else None, None, None)]
        fallback = symbol.name if symbol else None
        return [
            Location(name, vaddr, at.function or fallback, at.file, at.line, at.is_inlined)
            for at in positions
        ]

    def describe_memory(self, site: TracedSite) -> Place | None:
        """What the data is, or None where the trace does not say."""
        memory = site.fields.get("memory")
        if memory is None:
            return None
        linear: int = site.fields["linear"]
        found = (
            self._global(linear, site.memory_map, site)
            or self._global(linear, site.below_map, site)
            or self._thread_local(linear, site)
        )
        if found is not None:
            return found
        kind: str = memory["kind"]
        region = site.memory_map.region if site.memory_map is not None else None
        match kind:
            case "stack":
                return self._local(linear, site, f"stack of thread {memory['tid']}")
            case "heap":
                return Place(kind, "heap")
            case "file":
                return Place(kind, f"file mapping {region.path if region else ''}".rstrip())
            case "special":
                return Place(kind, region.name if region else "special mapping")
            case "anonymous":
                return Place(kind, "anonymous mapping")
        return Place(kind, "unmapped memory")

    def _global(self, linear: int, mapped: Mapped | None, site: TracedSite) -> Place | None:
        """The global an address lies in, .bss included."""
        if mapped is None or mapped.bias is None or mapped.region.path is None:
            return None
        module = self._module(mapped)
        if module is None:
            return None
        vaddr = linear - mapped.bias
        first, last = module.image.extent()
        if not first <= vaddr < last:
            return None
        where = mapped.region.path.rsplit("/", 1)[-1]
        symbol = module.symbols.data(vaddr)
        if symbol is None:
            return Place("global", f"static data of {where}")
        return self._with_field("global {} of " + where, symbol, vaddr, site)

    def _thread_local(self, linear: int, site: TracedSite) -> Place | None:
        """A thread-local of the executable: its block ends at fs_base (x86-64 ABI, variant II)."""
        fs_base = site.fields["memory"].get("fs_base")
        executable = site.owner.executable
        if not fs_base or not executable or not fs_base - (1 << 20) <= linear < fs_base:
            return None
        module = self._open(executable)
        if module is None:
            return None
        for segment in module.image.elf.iter_segments("PT_TLS"):
            start = (fs_base - segment["p_memsz"]) & -max(segment["p_align"], 1)
            symbol = module.symbols.thread_local(linear - start) if linear >= start else None
            if symbol is not None:
                words = f"thread-local {{}} of thread {site.fields['tid']}"
                return self._with_field(words, symbol, linear - start, site, "thread-local")
        return None

    def _with_field(
        self, words: str, symbol: Symbol, vaddr: int, site: TracedSite, kind: str = "global"
    ) -> Place:
        """A symbol's place with the field's name, if the code that used it knows the type."""
        inside = vaddr - symbol.value
        for frame in site.stack or [TracedFrame(site.rip, site.rip, site.mapped)]:
            source = self._source(frame)
            found = (
                source[0].global_field(source[1], symbol, inside, kind == "thread-local")
                if source is not None
                else None
            )
            if found is not None:
                name, field = found
                text = words.replace("{}", _offset(name, inside), 1)
                return Place(kind, f"{text} ({field.path})", name, field)
        return Place(kind, words.replace("{}", _offset(symbol.name, inside), 1), symbol.name)

    def _local(self, linear: int, site: TracedSite, text: str) -> Place:
        """A place on the stack, with the variable's name: the innermost frame that reaches it."""
        for frame in site.stack:
            if frame.bases.cfa is None or linear >= frame.bases.cfa:
                continue
            found = self._source(frame)
            field = found[0].local_field(found[1], frame.bases, linear) if found else None
            if field is None:
                break
            function = self.locate(frame.lookup, frame.mapped)[-1].function
            return Place("stack", f"{text} ({field.path} of {function})", None, field)
        return Place("stack", text)

    def _source(self, frame: TracedFrame) -> tuple[Source, int] | None:
        """The DWARF of a frame's code, and its link-time address in it."""
        module = self._module(frame.mapped) if frame.mapped is not None else None
        if module is None or frame.mapped is None or frame.mapped.bias is None:
            return None
        return module.source, frame.lookup - frame.mapped.bias

    def _module(self, mapped: Mapped) -> _Module | None:
        path = mapped.region.path
        if path is None:
            return None
        module = self._open(path)
        if module is not None and mapped.build_id and module.image.build_id != mapped.build_id:
            self.changed.add(path)
            return None
        return module

    def _open(self, path: str) -> _Module | None:
        if path not in self._modules:
            image = Image.open(path)
            self._modules[path] = _Module(image) if image is not None else None
        return self._modules[path]


def _offset(name: str, inside: int) -> str:
    return f"{name}+{inside:#x}" if inside else name
