"""One vCPU of the host's KVM.

Registers come from kvm_run's synced area where KVM offers it (KVM_CAP_SYNC_REGS), else by ioctl
around each run.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import struct
import threading
from collections.abc import Iterable, Mapping

from trapline.arch.cpuid import CpuidEntry
from trapline.kvm import abi, exits
from trapline.kvm.host.run_area import REGS_OFFSET, SREGS_OFFSET, RunArea
from trapline.kvm.structures import (
    CPUID_ENTRY,
    DebugRegs,
    Fpu,
    Regs,
    Sregs,
    Translation,
    VcpuEvents,
    pack_cpuid,
    unpack_cpuid,
)

KICK_SIGNAL = signal.SIGRTMAX - 1
"""Blocked in every thread that runs a vCPU, but for the time the guest runs."""

_IMMEDIATE_EXIT = 1  # its offset in kvm_run
_TGKILL = 234
_libc = ctypes.CDLL(None, use_errno=True)
_SYNCED = abi.SYNC_X86_REGS | abi.SYNC_X86_SREGS


class HostVcpu:
    """One vCPU."""

    def __init__(self, fd: int, mmap_size: int, sync_regs: int) -> None:
        self._fd = fd
        self._sync = sync_regs & _SYNCED == _SYNCED
        self._area = RunArea(fd, mmap_size, _SYNCED if self._sync else 0)
        self._thread = 0
        self._refresh()

    # -- running --------------------------------------------------------------------------------

    @property
    def regs(self) -> RunArea:
        return self._area

    @property
    def fs_base(self) -> int:
        return self._area.fs_base

    @fs_base.setter
    def fs_base(self, base: int) -> None:
        self._area.fs_base = base

    @property
    def gs_base(self) -> int:
        return self._area.gs_base

    @gs_base.setter
    def gs_base(self, base: int) -> None:
        self._area.gs_base = base

    @property
    def request_interrupt_window(self) -> bool:
        return self._area.bytes[0] != 0

    @request_interrupt_window.setter
    def request_interrupt_window(self, wanted: bool) -> None:
        self._area.bytes[0] = wanted

    @property
    def ready_for_interrupt_injection(self) -> bool:
        return self._area.bytes[12] != 0

    @property
    def if_flag(self) -> bool:
        return self._area.bytes[13] != 0

    @property
    def flags(self) -> int:
        return self._area.bytes[14] | self._area.bytes[15] << 8

    def run(self) -> exits.Exit:
        area = self._area
        if self._thread != threading.get_native_id():
            self._adopt_thread()
        if not self._sync:
            self._flush()
        try:
            self._enter()
        except InterruptedError:
            self._forget_kicks()
            self._refresh_unless_synced()
            return exits.Interrupted()
        self._refresh_unless_synced()
        return area.exit()

    def _enter(self) -> None:
        """KVM_RUN; of a vCPU that has waited for INIT and SIPI it is to be asked again."""
        while True:
            try:
                fcntl.ioctl(self._fd, abi.RUN, 0)
                return
            except BlockingIOError:
                continue

    def kick(self) -> None:
        self._area.bytes[_IMMEDIATE_EXIT] = 1
        if self._thread:
            # By its number: a thread that has ended is then no longer found, instead of followed.
            _libc.syscall(_TGKILL, os.getpid(), self._thread, KICK_SIGNAL)

    @property
    def kick_places(self) -> tuple[int, ...]:
        return (ctypes.addressof(ctypes.c_char.from_buffer(self._area.bytes, _IMMEDIATE_EXIT)),)

    def _adopt_thread(self) -> None:
        """Let the kick signal through only inside KVM_RUN, so that no handler is needed."""
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {KICK_SIGNAL})
        self.set_signal_mask(sum(1 << (number - 1) for number in blocked))
        self._thread = threading.get_native_id()

    def set_signal_mask(self, mask: int) -> None:
        mask &= ~(1 << (KICK_SIGNAL - 1))
        fcntl.ioctl(self._fd, abi.SET_SIGNAL_MASK, struct.pack("<IQ", 8, mask))

    def _forget_kicks(self) -> None:
        self._area.bytes[_IMMEDIATE_EXIT] = 0
        while signal.sigtimedwait([KICK_SIGNAL], 0) is not None:
            pass

    # -- registers ------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Fill the synced area, which KVM itself does at the end of each run only."""
        area = self._area
        regs = self._read(abi.GET_REGS, Regs.layout.size)
        sregs = self._read(abi.GET_SREGS, 312)
        area.bytes[REGS_OFFSET : REGS_OFFSET + len(regs)] = regs
        area.bytes[SREGS_OFFSET : SREGS_OFFSET + len(sregs)] = sregs
        area.dirty = 0

    def _refresh_unless_synced(self) -> None:
        if not self._sync:
            self._refresh()

    def _flush(self) -> None:
        """Hand KVM what was written through the view."""
        area = self._area
        if area.dirty & abi.SYNC_X86_REGS:
            fcntl.ioctl(self._fd, abi.SET_REGS, bytes(area.bytes[REGS_OFFSET:][:144]))
        if area.dirty & abi.SYNC_X86_SREGS:
            fcntl.ioctl(self._fd, abi.SET_SREGS, bytes(area.bytes[SREGS_OFFSET:][:312]))
        area.dirty = 0

    def get_regs(self) -> Regs:
        return Regs.unpack(self._read(abi.GET_REGS, 144))

    def set_regs(self, regs: Regs) -> None:
        self._ioctl(abi.SET_REGS, regs.pack())
        self._refresh()

    def get_sregs(self) -> Sregs:
        return Sregs.unpack(self._read(abi.GET_SREGS, 312))

    def set_sregs(self, sregs: Sregs) -> None:
        self._ioctl(abi.SET_SREGS, sregs.pack())
        self._refresh()

    def _ioctl(self, request: int, argument: bytearray | bytes | int = 0) -> int:
        """Registers written through the view first: KVM_SET_REGS drops a pending exception."""
        self._flush()
        if isinstance(argument, int):
            return fcntl.ioctl(self._fd, request, argument)
        buffer = argument if isinstance(argument, bytearray) else bytearray(argument)
        done: int = fcntl.ioctl(self._fd, request, buffer, True)
        return done

    def _read(self, request: int, size: int) -> bytes:
        buffer = bytearray(size)
        self._ioctl(request, buffer)
        return bytes(buffer)

    # -- the rest, ioctl by ioctl -----------------------------------------------------------------

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        wanted = list(indices)
        buffer = bytearray(struct.pack("<II", len(wanted), 0))
        for index in wanted:
            buffer += struct.pack("<IIQ", index, 0, 0)
        done = self._ioctl(abi.GET_MSRS, buffer)
        return dict(struct.iter_unpack("<I4xQ", bytes(buffer[8 : 8 + 16 * done])))

    def set_msrs(self, msrs: Mapping[int, int]) -> int:
        rows = b"".join(struct.pack("<IIQ", index, 0, word) for index, word in msrs.items())
        buffer = bytearray(struct.pack("<II", len(msrs), 0) + rows)
        done = self._ioctl(abi.SET_MSRS, buffer)
        self._refresh()  # FS_BASE, GS_BASE and EFER are in the synced area too
        return done

    def set_cpuid2(self, entries: Iterable[CpuidEntry]) -> None:
        rows = pack_cpuid(entries)
        buffer = bytearray(struct.pack("<II", len(rows) // CPUID_ENTRY.size, 0) + rows)
        self._ioctl(abi.SET_CPUID2, buffer)

    def get_cpuid2(self) -> list[CpuidEntry]:
        size = CPUID_ENTRY.size
        buffer = bytearray(struct.pack("<II", 256, 0) + bytes(256 * size))
        self._ioctl(abi.GET_CPUID2, buffer)
        (count,) = struct.unpack_from("<I", buffer)
        return unpack_cpuid(buffer[8 : 8 + size * count])

    def get_debugregs(self) -> DebugRegs:
        return DebugRegs.unpack(self._read(abi.GET_DEBUGREGS, DebugRegs.layout.size))

    def set_debugregs(self, debugregs: DebugRegs) -> None:
        self._ioctl(abi.SET_DEBUGREGS, debugregs.pack())

    def get_vcpu_events(self) -> VcpuEvents:
        return VcpuEvents.unpack(self._read(abi.GET_VCPU_EVENTS, VcpuEvents.layout.size))

    def set_vcpu_events(self, events: VcpuEvents) -> None:
        self._ioctl(abi.SET_VCPU_EVENTS, events.pack())

    def set_guest_debug(self, control: int, debugreg: Mapping[int, int] | None = None) -> None:
        registers = [(debugreg or {}).get(i, 0) for i in range(8)]
        self._ioctl(abi.SET_GUEST_DEBUG, struct.pack("<II8Q", control, 0, *registers))
        self._refresh()  # KVM keeps TF for single step in RFLAGS

    def get_fpu(self) -> Fpu:
        return Fpu.unpack(self._read(abi.GET_FPU, Fpu.layout.size))

    def set_fpu(self, fpu: Fpu) -> None:
        self._ioctl(abi.SET_FPU, fpu.pack())

    def get_xsave(self) -> bytes:
        return self._read(abi.GET_XSAVE, 4096)

    def set_xsave(self, area: bytes) -> None:
        self._ioctl(abi.SET_XSAVE, bytearray(area))

    def get_xcrs(self) -> dict[int, int]:
        data = self._read(abi.GET_XCRS, 392)
        (count,) = struct.unpack_from("<I", data)
        return dict(struct.iter_unpack("<I4xQ", data[8 : 8 + 16 * count]))

    def set_xcrs(self, xcrs: Mapping[int, int]) -> None:
        rows = b"".join(struct.pack("<IIQ", index, 0, word) for index, word in xcrs.items())
        area = struct.pack("<II", len(xcrs), 0) + rows
        self._ioctl(abi.SET_XCRS, area.ljust(392, b"\0"))

    def get_mp_state(self) -> int:
        (state,) = struct.unpack("<I", self._read(abi.GET_MP_STATE, 4))
        return int(state)

    def set_mp_state(self, mp_state: int) -> None:
        self._ioctl(abi.SET_MP_STATE, struct.pack("<I", mp_state))

    def get_lapic(self) -> bytes:
        return bytes(self._read(abi.GET_LAPIC, 0x400))

    def set_lapic(self, area: bytes) -> None:
        self._ioctl(abi.SET_LAPIC, area)

    def translate(self, linear: int) -> Translation:
        buffer = bytearray(struct.pack("<QQ3B5x", linear, 0, 0, 0, 0))
        self._ioctl(abi.TRANSLATE, buffer)
        _, physical, valid, writeable, usermode = struct.unpack("<QQ3B5x", buffer)
        return Translation(linear, physical, bool(valid), bool(writeable), bool(usermode))

    def interrupt(self, vector: int) -> None:
        self._ioctl(abi.INTERRUPT, struct.pack("<I", vector))

    def nmi(self) -> None:
        self._ioctl(abi.NMI, 0)

    def report_counts(self) -> None:
        """The hardware tells nobody of bus locks."""

    def close(self) -> None:
        os.close(self._fd)
