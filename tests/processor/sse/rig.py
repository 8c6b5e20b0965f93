"""Both engines on one case of tests.against, without the rest of a processor around them.

The regions of tests.against.layout are host memory; the native TLB points into it.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence

from tests.against.layout import CODE, FS_BASE, GS_BASE, PAGE, REGIONS, background, pieces
from tests.against.state import AC, FIXED_FLAGS, FLAGS, REGISTERS, Case, Fault, FloatState, Outcome
from trapline.arch.registers import CR0_NE, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_OSXSAVE
from trapline.processor import isa
from trapline.processor import fault as faults
from trapline.processor.decode import Decoded, decode
from trapline.processor.interp import execute
from trapline.processor.jit import CodeCache, layout
from trapline.processor.jit.engine import JumpCache
from trapline.processor.memory.tlb import Table
from trapline.processor.state import State

__all__ = ["Rig", "isa"]

_WHOLE = (1 << 64) - 1
_NON_CANONICAL_FROM, _NON_CANONICAL_TO = 1 << 47, _WHOLE - (1 << 47) + 1
_BASES = {"fs": FS_BASE, "gs": GS_BASE}
_PRESENT, _WRITE, _USER = 1, 2, 4
_MASKS = 0x1F80
ALIGNMENT = {2: 2, 4: 4, 8: 8, 10: 8, 16: 16}


class Memory:
    """The regions, page by page, with their rights; faults as a user's access does."""

    def __init__(self) -> None:
        self.pristine = background()
        self._block = mmap.mmap(-1, len(self.pristine))
        self.bytes = memoryview(self._block)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._block))
        self.pages: dict[int, tuple[int, bool]] = {}  # page number -> offset, may be written
        self.is_aligning = False  # RFLAGS.AC
        start = 0
        for region in REGIONS:
            for page in range(region.size // PAGE):
                number = (region.linear + page * PAGE) // PAGE
                self.pages[number] = (start + page * PAGE, region.writable)
            start += region.size
        self.reset()

    def reset(self) -> None:
        self.bytes[:] = self.pristine

    def put(self, linear: int, content: bytes) -> None:
        for offset, piece in pieces(linear, content):
            self.bytes[offset : offset + len(piece)] = piece

    def changes(self) -> dict[int, bytes]:
        """Aligned 8 bytes that differ from the background, by linear address."""
        before, after = self.pristine, bytes(self.bytes)
        found = {}
        for number, (offset, _) in self.pages.items():
            if number == CODE.linear // PAGE:
                continue
            for i in range(offset, offset + PAGE, 8):
                if before[i : i + 8] != after[i : i + 8]:
                    found[number * PAGE + i - offset] = after[i : i + 8]
        return found

    def _places(self, linear: int, size: int, is_write: bool) -> list[int]:
        if self.is_aligning and linear % ALIGNMENT.get(size, 1):
            raise faults.Fault(17, 0)
        places = []
        for at in range(linear, linear + size):
            page = self.pages.get((at & _WHOLE) // PAGE)
            if page is None or (is_write and not page[1]):
                error = _USER | _WRITE * is_write | _PRESENT * (page is not None)
                raise faults.Fault(14, error, at & _WHOLE)
            places.append(page[0] + at % PAGE)
        return places

    def read(self, linear: int, size: int) -> int:
        places = self._places(linear, size, is_write=False)
        return int.from_bytes(bytes(self.bytes[at] for at in places), "little")

    def write(self, linear: int, size: int, word: int) -> None:
        places = self._places(linear, size, is_write=True)
        for at, byte in zip(places, word.to_bytes(size, "little"), strict=True):
            self.bytes[at] = byte

    def update(self, linear: int, size: int, change: Callable[[int], int], locked: bool) -> int:
        before = self.read(linear, size)
        self.write(linear, size, change(before))
        return before


class Rig:
    """Runs cases on the reference engine or as native code."""

    def __init__(self) -> None:
        self.state = State()
        self.memory = Memory()
        self.code = CodeCache()
        self.table = Table()
        self.jumps = JumpCache()
        self.state.jump_cache = self.jumps.address
        self.bitness = 64
        self.native = 0  # instructions that native code did to the end
        self._enter = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(
            self.code.compiler.runtime["trapline_enter"]
        )

    # -- what the reference engine asks ------------------------------------------------------------

    def linearize(self, segment: str, offset: int, size: int, is_write: bool) -> int:
        linear = offset + _BASES.get(segment, 0) & _WHOLE
        if self.bitness != 64:
            return linear & 0xFFFF_FFFF
        if _NON_CANONICAL_FROM <= linear < _NON_CANONICAL_TO:
            raise faults.Fault(12 if segment == "ss" else 13, 0)
        return linear

    def run_microcode(self, name: str, instruction: Decoded, args: Sequence[int]) -> int | None:
        raise AssertionError(f"microcode {name}")

    # -- running -----------------------------------------------------------------------------------

    def interp(self, case: Case) -> Outcome:
        return self._run(case, lambda instruction: execute(self, instruction))

    def jit(self, case: Case) -> Outcome:
        return self._run(case, self._natively)

    def _run(self, case: Case, engine: Callable[[Decoded], object]) -> Outcome:
        self._load(case)
        instruction = decode(case.code, case.entry, case.bits, case.bits)
        assert instruction is not None
        fault = None
        try:
            engine(instruction)
        except faults.Fault as raised:
            fault = Fault(raised.vector, raised.error_code or 0, raised.cr2 or 0)
        return self._outcome(fault)

    def _load(self, case: Case) -> None:
        state, image = self.state, FloatState.unpack(case.fx)
        self.bitness = case.bits
        self.memory.reset()
        self.memory.is_aligning = bool(case.flags & AC)
        self.memory.put(case.entry, case.code)
        for linear, content in case.memory:
            self.memory.put(linear, content)
        for name, word in zip(REGISTERS, case.registers, strict=True):
            setattr(state, name, word)
        state.rip, state.cpl = case.entry, 3
        state.rflags = case.flags & FLAGS | FIXED_FLAGS
        state.cr0, state.cr4 = CR0_NE, CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE
        state.xcr0 = 3
        state.fs_base, state.gs_base = FS_BASE, GS_BASE
        state.mxcsr, state.fcw, state.fsw, state.ftw = (
            image.mxcsr, image.fcw, image.fsw, image.ftw,
        )  # fmt: skip
        state.fop, state.fip, state.fdp = image.fop, image.fip, image.fdp
        top = image.fsw >> 11 & 7
        for number in range(8):
            state.set_x87(top + number & 7, int.from_bytes(image.st[number], "little"))
        for number in range(16):
            state.set_xmm(number, int.from_bytes(image.xmm[number], "little"))

    def _outcome(self, fault: Fault | None) -> Outcome:
        state = self.state
        top = state.fsw >> 11 & 7
        image = FloatState(
            state.fcw, state.fsw, state.ftw, state.fop, state.fip, state.fdp, state.mxcsr,
            [state.x87(top + n & 7).to_bytes(10, "little") for n in range(8)],
            [state.xmm(n).to_bytes(16, "little") for n in range(16)],
        )  # fmt: skip
        return Outcome(
            [getattr(state, name) for name in REGISTERS], state.rip, state.rflags & FLAGS,
            image.pack(), self.memory.changes(), fault,
        )  # fmt: skip

    def _natively(self, instruction: Decoded) -> None:
        """As the fast engine does it; what it leaves to the reference engine is done there."""
        state = self.state
        if state.mxcsr & _MASKS != _MASKS or self.memory.is_aligning:
            execute(self, instruction)
            return
        self.table.clear()
        state.tlb = self.table.address
        mode = (self.bitness, self.bitness)
        block = self.code.translate(instruction.code, instruction.rip, (0,), mode, False)
        while True:
            self._enter(state.address, block.record)
            reason = state.exit_reason
            if reason == layout.Exit.MEMORY and self._fill(state.exit_linear, state.exit_detail):
                continue
            break
        if reason in (layout.Exit.MEMORY, layout.Exit.INTERPRET):
            execute(self, instruction)
        elif reason == layout.Exit.FAULT:
            detail = state.exit_detail
            raise faults.Fault(detail & 0xFF, detail >> 8 & 0xFFFF if detail >> 40 & 1 else None)
        else:
            assert reason in (layout.Exit.LOOKUP, layout.Exit.LINK), reason
            state.rip = state.exit_rip
            self.native += 1

    def _fill(self, linear: int, access: int) -> bool:
        page = self.memory.pages.get(linear // PAGE)
        if page is None or (access != layout.Access.READ and not page[1]):
            return False
        at = linear >> 10 & 0x3FFFC
        base = linear & -PAGE
        words = self.table.words
        words[at + 3] = self.memory.address + page[0] - base & _WHOLE
        words[at] = base | 0xFFF
        words[at + 1] = words[at + 2] = base | 0xFFF if page[1] else 0
        self.table.filled.append(at)
        return True
