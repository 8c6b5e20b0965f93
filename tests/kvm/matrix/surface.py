"""Where the matrix's guests run: a bare processor, and a vCPU of the hypervisor.

Both are driven alike: start, stop at the HLT of a handler, look at its frame, go on.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

from tests.kvm.guest import Memory
from tests.kvm.matrix import modes
from tests.kvm.matrix.model import AC, DB, Event
from tests.kvm.matrix.modes import Mode
from trapline.arch import msr, paging
from trapline.arch.cpuid import BUS_LOCK_DETECT
from trapline.arch.registers import CR0_CD, CR4_PAE, RFLAGS_RF, RFLAGS_VM
from trapline.kvm import DebugRegs, Quirk, Sregs, exits, open_kvm
from trapline.kvm.structures import SREGS_SEGMENTS
from trapline.processor import Core, Ram

_FEATURES = ",+la57,+umip,+pku,+pcid,+invpcid,+fsgsbase"
MODELS = {"intel": "sapphire-rapids" + _FEATURES, "amd": "zen5" + _FEATURES}
WITHOUT = {"intel": "icelake" + _FEATURES, "amd": "zen4" + _FEATURES}  # no bus lock detection
NO_QUIRKS = Quirk(0)
ENOUGH = 12  # handlers that one guest may enter before it is given up
_FIRST_CODE, _CODE_END = 0x100, 0x10000
_SREGS_NAMES = {name: "ldtr" if name == "ldt" else name for name in SREGS_SEGMENTS}


@dataclass(frozen=True)
class Start:
    """What a guest starts with.  `code_hits` are code breakpoints, passed by setting RF."""

    code: bytes
    operand: int  # offset in DATA
    stack_word: int  # offset in DATA of what MOV SS loads
    rflags: int = 2
    breakpoints: tuple[int, int, int, int] = (0, 0, 0, 0)
    dr6: int = 0xFFFF0FF0
    dr7: int = 0x400
    debugctl: int = 0
    test_ctrl: int = 0
    is_cache_disabled: bool = False
    code_hits: int = 0
    general: dict[str, int] = field(default_factory=dict)


class Memories(Protocol):
    def read(self, offset: int, size: int) -> bytes: ...

    def write(self, offset: int, data: bytes) -> None: ...


class _Bytes:
    """Reading and writing a processor's own RAM."""

    def __init__(self, ram: Ram) -> None:
        self._ram = ram

    def read(self, offset: int, size: int) -> bytes:
        return self._ram.bytes[offset : offset + size]

    def write(self, offset: int, data: bytes) -> None:
        self._ram.load(offset, data)


class Surface:
    """One mode and privilege on one processor; each program gets a place of its own."""

    memory: Memories
    limit: int = ENOUGH
    software: frozenset[int] = frozenset()
    """Vectors of software's own that the guest comes back from."""

    def __init__(self, mode: Mode, cpl: int) -> None:
        self.mode, self.cpl = mode, cpl
        self._places: dict[bytes, int] = {}
        self._next = _FIRST_CODE

    def place(self, code: bytes) -> int:
        """The offset of a program from CODE, which it keeps."""
        at = self._places.get(code)
        if at is None:
            at = self._places[code] = self._next
            self._next += len(code) + 0x1F & ~0xF
            assert self._next < _CODE_END, "too many programs"
            self.memory.write(modes.CODE + at, code)
        return at

    @property
    def next_place(self) -> int:
        """Where the next new program will stand, from CODE."""
        return self._next

    def run(self, start: Start) -> list[Event]:
        """The handlers that the guest enters, up to one that it does not come back from."""
        at = self.place(start.code) + self.mode.code_offset
        selector = modes.stack_selector(self.mode, self.cpl)
        self.memory.write(modes.DATA + start.stack_word, selector.to_bytes(2, "little"))
        self.memory.write(modes.DATA + start.operand, bytes(16))
        self.begin(start, self.registers(start, at))
        events: list[Event] = []
        while len(events) < self.limit:
            self.go()
            event = self.look(at)
            events.append(event)
            if event.vector == DB:
                assert event.dr6 is not None
                if event.dr6 & start.code_hits:
                    self._set_rf()
            elif event.vector == AC and start.test_ctrl:
                self._pass_alignment_check()
            elif event.vector not in self.software:
                break
        return events

    def registers(self, start: Start, rip: int) -> dict[str, int]:
        """The general registers that the guest starts with."""
        return {
            "rip": rip,
            "rsp": modes.stack_pointer(self.mode, self.cpl),
            "rdi": self.mode.data_offset + start.operand,
            "rsi": self.mode.data_offset + start.stack_word,
            "rflags": start.rflags | 3 << 12 | (RFLAGS_VM if self.mode.is_virtual else 0),
            **start.general,
        }

    def look(self, at: int) -> Event:
        """At the handler that has just halted."""
        vector = modes.handler_of(self.get("rip"))
        if vector is None:
            raise AssertionError(f"stopped at {self.get('rip'):#x}, in no handler")
        size = self.mode.gate_bits // 8
        has_code = vector in modes.WITH_ERROR_CODE and not self.mode.is_real
        words = [self._frame(i) for i in range(2)]
        rip = words[1] if has_code else words[0]
        error_code = words[0] if has_code else None
        dr6 = None
        if vector == DB:
            dr6 = self.get("rbx") & (1 << 8 * max(size, 4)) - 1
            assert dr6 & 0xFFFFFFFF == self.dr6(), "the guest and its owner see the same DR6"
        return Event(vector, rip - at, dr6, error_code)

    def _frame_at(self, index: int) -> int:
        size, rsp = self.mode.gate_bits // 8, self.get("rsp")
        rsp &= 0xFFFF if self.mode.gate_bits == 16 else 0xFFFFFFFF
        return self.mode.frame_base + rsp + size * index

    def _frame(self, index: int) -> int:
        size = self.mode.gate_bits // 8
        return int.from_bytes(self.memory.read(self._frame_at(index), size), "little")

    def _set_rf(self) -> None:
        at = self._frame_at(2)
        flags = int.from_bytes(self.memory.read(at, 4), "little") | RFLAGS_RF
        self.memory.write(at, flags.to_bytes(4, "little"))

    def _pass_alignment_check(self) -> None:
        """Off with the #AC, and off the stack with its error code."""
        self.allow_split_locks()
        if not self.mode.is_real:
            self.set("rsp", self.get("rsp") + self.mode.gate_bits // 8)

    # -- what the two kinds do differently -----------------------------------------------------

    def begin(self, start: Start, registers: dict[str, int]) -> None:
        raise NotImplementedError

    def system_registers(self) -> Sregs:
        """What `begin` loads; a test may change it."""
        raise NotImplementedError

    def go(self) -> None:
        """Until the next HLT of a handler."""
        raise NotImplementedError

    def get(self, name: str) -> int:
        raise NotImplementedError

    def set(self, name: str, word: int) -> None:
        raise NotImplementedError

    def dr6(self) -> int:
        raise NotImplementedError

    def allow_split_locks(self) -> None:
        raise NotImplementedError

    def operand(self, start: Start, size: int) -> int:
        """What is in memory at the operand now."""
        data = self.memory.read(modes.DATA + start.operand, size)
        return int.from_bytes(data, "little")


def load_system_registers(core: Core, sregs: Sregs, cpl: int) -> None:
    """System registers of KVM's structure into a bare processor."""
    state = core.state
    for name, slot in _SREGS_NAMES.items():
        segment = getattr(sregs, name)
        setattr(state, f"{slot}_selector", segment.selector)
        setattr(state, f"{slot}_base", segment.base)
        setattr(state, f"{slot}_limit", segment.limit)
        setattr(state, f"{slot}_attributes", segment.attributes)
    for table in ("gdt", "idt"):
        setattr(state, f"{table}r_base", getattr(sregs, table).base)
        setattr(state, f"{table}r_limit", getattr(sregs, table).limit)
    state.cr0, state.cr3, state.cr4 = sregs.cr0, sregs.cr3, sregs.cr4
    state.efer, state.cpl = sregs.efer, cpl


class Bare(Surface):
    """No hypervisor.  MTRRs are the processor's, TEST_CTRL too."""

    def __init__(
        self, vendor: str, engine: str, mode: Mode, cpl: int, has_bld: bool = True
    ) -> None:
        super().__init__(mode, cpl)
        ram = Ram(modes.SIZE)
        ram.load(0, modes.image(mode, cpl))
        self.memory = _Bytes(ram)
        model = (MODELS if has_bld else WITHOUT)[vendor]
        self.core = Core(model, ram, engine=engine)
        self.state = self.core.state
        msrs = self.core.msrs
        for i, (page, kind) in enumerate(modes.MTRR_PAGES.items()):
            msrs.write(msr.IA32_MTRR_PHYSBASE0 + 2 * i, modes.DATA + 0x1000 * page | kind)
            mask = (1 << self.core.model.physical_bits) - 0x1000
            msrs.write(msr.IA32_MTRR_PHYSBASE0 + 2 * i + 1, mask | msr.MTRR_PHYSMASK_VALID)
        msrs.write(msr.IA32_MTRR_DEF_TYPE, msr.MTRR_DEF_TYPE_ENABLE | paging.MemoryType.WB)
        self._sregs = modes.start(mode, cpl, Sregs())
        self.state.pat, self.state.mxcsr, self.state.fcw = modes.PAT, 0x1F80, 0x37F

    def system_registers(self) -> Sregs:
        return self._sregs

    def begin(self, start: Start, registers: dict[str, int]) -> None:
        core, state = self.core, self.state
        load_system_registers(core, self._sregs, self.cpl)
        if start.is_cache_disabled:
            state.cr0 |= CR0_CD
        for name, word in registers.items():
            setattr(state, name, word)
        state.dr0, state.dr1, state.dr2, state.dr3 = start.breakpoints
        state.dr6, state.dr7, state.debugctl = start.dr6, start.dr7, start.debugctl
        state.test_ctrl = start.test_ctrl
        state.activity = state.interrupt_shadow = state.pending_debug = 0
        memory = core.memory
        memory.mode_changed()
        if state.cr4 & CR4_PAE and not state.efer:
            memory.walker.pdptes = memory.walker.read_pdptes(state.cr3)
            memory.mode_changed()
        memory.privilege_changed()
        memory.breakpoints_changed()

    def go(self) -> None:
        self.state.activity = 0
        self.core.run()

    def get(self, name: str) -> int:
        return int(getattr(self.state, name))

    def set(self, name: str, word: int) -> None:
        setattr(self.state, name, word)

    def dr6(self) -> int:
        return self.state.dr6

    def allow_split_locks(self) -> None:
        self.state.test_ctrl = 0


class Virtual(Surface):
    """A vCPU, through the hypervisor's public API and nothing else."""

    def __init__(
        self,
        vendor: str,
        engine: str,
        mode: Mode,
        cpl: int,
        has_bld: bool = True,
        quirks: Quirk = NO_QUIRKS,
    ) -> None:
        """Without `has_bld` the guest's CPUID hides what its processor has."""
        super().__init__(mode, cpl)
        kvm = open_kvm(cpu=MODELS[vendor], engine=engine, quirks=quirks)
        self.vm = kvm.create_vm()
        self.set_up_vm()
        memory = Memory(modes.SIZE)
        memory.write(0, bytes(modes.image(mode, cpl)))
        self.memory = memory
        self.vm.set_user_memory_region(0, 0, 0, modes.SIZE, memory.address)
        self.vcpu = self.vm.create_vcpu(0)
        entries = kvm.get_supported_cpuid()
        if not has_bld:
            entries = [
                one.with_feature(BUS_LOCK_DETECT, False)
                if (one.function, one.index) == (7, 0)
                else one
                for one in entries
            ]
        self.vcpu.set_cpuid2(entries)
        assert self.vcpu.set_msrs({msr.IA32_PAT: modes.PAT}) == 1
        self._sregs = modes.start(mode, cpl, self.vcpu.get_sregs())

    def set_up_vm(self) -> None:
        """What must be asked of the VM before it has a vCPU."""

    def system_registers(self) -> Sregs:
        return self._sregs

    def begin(self, start: Start, registers: dict[str, int]) -> None:
        vcpu, sregs = self.vcpu, self._sregs
        if start.is_cache_disabled:
            sregs = replace(sregs, cr0=sregs.cr0 | CR0_CD)
        vcpu.set_sregs(sregs)
        regs = vcpu.get_regs()
        for name, word in registers.items():
            setattr(regs, name, word)
        vcpu.set_regs(regs)
        vcpu.set_debugregs(DebugRegs(list(start.breakpoints), start.dr6, start.dr7))
        assert vcpu.set_msrs({msr.IA32_DEBUGCTL: start.debugctl}) == 1
        if start.test_ctrl:
            assert vcpu.set_msrs({msr.TEST_CTRL: start.test_ctrl}) == 1

    def go(self) -> None:
        answer = self.vcpu.run()
        assert isinstance(answer, exits.Hlt), answer

    def get(self, name: str) -> int:
        return int(getattr(self.vcpu.regs, name))

    def set(self, name: str, word: int) -> None:
        setattr(self.vcpu.regs, name, word)

    def dr6(self) -> int:
        return self.vcpu.get_debugregs().dr6

    def allow_split_locks(self) -> None:
        assert self.vcpu.set_msrs({msr.TEST_CTRL: 0}) == 1
