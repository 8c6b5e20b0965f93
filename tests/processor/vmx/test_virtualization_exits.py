"""VMX instructions, MONITOR, MWAIT, PAUSE and the rest in a VMX guest: what exits tell of them."""

from __future__ import annotations

import pytest

from tests.processor.vmx.machine import CODE, HLT, PRIMARY, Machine
from tests.processor.vmx.modes import MODES
from trapline.arch import vmx
from trapline.arch.vmx import ExitReason

UD = 0x80000306
GP = 0x80000B0D
# Instruction information: scale, address size, register, segment, index, base, second register.
DS, FS = 3 << 15, 4 << 15
NO_INDEX, NO_BASE, SIZE_32, SIZE_64, BY_REGISTER = 1 << 22, 1 << 27, 1 << 7, 2 << 7, 1 << 10

WITHOUT_OPERANDS = {
    "vmcall": (b"\x0f\x01\xc1", ExitReason.VMCALL),
    "vmlaunch": (b"\x0f\x01\xc2", ExitReason.VMLAUNCH),
    "vmresume": (b"\x0f\x01\xc3", ExitReason.VMRESUME),
    "vmxoff": (b"\x0f\x01\xc4", ExitReason.VMXOFF),
}
WITH_OPERANDS = {
    "vmptrld [rdi]": ("0fc737", ExitReason.VMPTRLD, 0, DS | SIZE_64 | NO_INDEX | 7 << 23),
    "vmptrst [rbx+rsi*4-8]": (
        "0fc77cb3f8",
        ExitReason.VMPTRST,
        (1 << 64) - 8,
        2 | DS | SIZE_64 | 6 << 18 | 3 << 23,
    ),
    "vmclear fs:[r12d+0x100]": (
        "64676641 0fc7b42400010000".replace(" ", ""),
        ExitReason.VMCLEAR,
        0x100,
        FS | SIZE_32 | NO_INDEX | 12 << 23,
    ),
    "vmxon [0x1234]": (
        "f30fc7342534120000",
        ExitReason.VMXON,
        0x1234,
        DS | SIZE_64 | NO_INDEX | NO_BASE,
    ),
    "vmread [rdi], r9": (
        "440f780f",
        ExitReason.VMREAD,
        0,
        DS | SIZE_64 | NO_INDEX | 7 << 23 | 9 << 28,
    ),
    "vmread rcx, rdx": ("0f78d1", ExitReason.VMREAD, 0, BY_REGISTER | 1 << 3 | 2 << 28),
    "vmwrite rdx, [rsi]": (
        "0f7916",
        ExitReason.VMWRITE,
        0,
        DS | SIZE_64 | NO_INDEX | 6 << 23 | 2 << 28,
    ),
    "vmwrite rdx, rcx": ("0f79d1", ExitReason.VMWRITE, 0, BY_REGISTER | 1 << 3 | 2 << 28),
    "invept rax, [rdi]": (
        "660f388007",
        ExitReason.INVEPT,
        0,
        DS | SIZE_64 | NO_INDEX | 7 << 23,
    ),
    "invvpid r11, [rip+0x10]": (
        "66440f38811d10000000",
        ExitReason.INVVPID,
        CODE + 10 + 0x10,
        DS | SIZE_64 | NO_INDEX | NO_BASE | 11 << 28,
    ),
}


@pytest.mark.parametrize("name", WITHOUT_OPERANDS)
@pytest.mark.parametrize("cpl", [0, 3])
def test_vmx_instructions_exit_at_any_cpl(engine: str, name: str, cpl: int) -> None:
    """SDM 3C: in VMX non-root operation the exit comes before the check of the CPL."""
    code, reason = WITHOUT_OPERANDS[name]
    machine = Machine(code, cpl, engine)
    exit = machine.enter()
    assert (exit.reason, exit.qualification, exit.instruction_length) == (reason, 0, 3)
    assert exit.instruction_information == 0
    assert machine.read("guest_rip") == CODE


@pytest.mark.parametrize("name", WITH_OPERANDS)
def test_an_exit_tells_the_operands(engine: str, name: str) -> None:
    """SDM 3C, "VM-Exit Instruction-Information Field"."""
    text, reason, displacement, information = WITH_OPERANDS[name]
    code = bytes.fromhex(text)
    machine = Machine(code, 0, engine)
    exit = machine.enter()
    assert (exit.reason, exit.instruction_length) == (reason, len(code))
    assert exit.qualification == displacement
    assert exit.instruction_information == information
    assert machine.read("vmx_instruction_info") == information


def test_invpcid_exits_by_two_controls_and_is_undefined_without_its_own(engine: str) -> None:
    code = bytes.fromhex("660f38820f")  # invpcid rcx, [rdi]
    controls = vmx.PROC2_INVPCID
    for secondary, primary, expected in (
        (controls, vmx.PROC_INVLPG, ExitReason.INVPCID),
        (controls, 0, ExitReason.HLT),
        (0, vmx.PROC_INVLPG, ExitReason.EXCEPTION_OR_NMI),
        (0, 0, ExitReason.EXCEPTION_OR_NMI),
    ):
        machine = Machine(code + HLT, 0, engine)
        machine.state.rdi, machine.state.rcx = 0x50000, 2
        machine.write(secondary_vm_exec_control=secondary, exception_bitmap=1 << 6)
        machine.clear_bits("cpu_based_vm_exec_control", vmx.PROC_INVLPG)
        machine.set_bits("cpu_based_vm_exec_control", primary)
        exit = machine.enter()
        assert exit.reason == expected
        if expected == ExitReason.INVPCID:
            assert exit.instruction_information == DS | SIZE_64 | NO_INDEX | 7 << 23 | 1 << 28
        if expected == ExitReason.EXCEPTION_OR_NMI:
            assert exit.interruption_info == UD


@pytest.mark.parametrize("primary", [0, vmx.PROC_RDTSC])
def test_rdtscp_is_undefined_without_its_control(engine: str, primary: int) -> None:
    machine = Machine(b"\x0f\x01\xf9" + HLT, 0, engine)
    machine.write(exception_bitmap=1 << 6)
    machine.set_bits("cpu_based_vm_exec_control", primary)
    assert machine.enter().interruption_info == UD


@pytest.mark.parametrize("mode", ["real_mode", "virtual_8086", "protected_mode", "compatibility"])
@pytest.mark.parametrize("code", ["0fc737", "0f01c2", "0f78d1", "0f01c1", "0f01d9"])
def test_the_mode_decides_whether_they_are_defined(mode: str, code: str) -> None:
    """VMCALL exits anywhere; VMMCALL is the other vendor's."""
    machine = MODES["long_mode" if mode == "compatibility" else mode]()
    if mode == "compatibility":
        machine.write(guest_cs_ar_bytes=0xC09B)
    at = CODE
    machine.ram.load(at, bytes.fromhex(code))
    machine.write(exception_bitmap=1 << 6)
    exit = machine.enter()
    is_defined = code == "0f01c1" or (mode == "protected_mode" and code != "0f01d9")
    if is_defined:
        assert exit.reason in (ExitReason.VMCALL, 21, 20, 23)
    else:
        assert exit.interruption_info in (UD, 0x80000306)


@pytest.mark.parametrize("code", ["0f01d8", "0f01d9", "0f01dc", "0f01df", "0f37", "0f01d4"])
def test_svm_instructions_getsec_and_vmfunc_are_undefined(engine: str, code: str) -> None:
    machine = Machine(bytes.fromhex(code), 0, engine)
    machine.write(exception_bitmap=1 << 6)
    assert machine.enter().interruption_info == UD


# -- MONITOR, MWAIT, PAUSE -------------------------------------------------------------------------

MONITOR, MWAIT, PAUSE = b"\x0f\x01\xc8", b"\x0f\x01\xc9", b"\xf3\x90"


@pytest.mark.parametrize(
    ("code", "control", "reason"),
    [
        (MONITOR, vmx.PROC_MONITOR, ExitReason.MONITOR),
        (MWAIT, vmx.PROC_MWAIT, ExitReason.MWAIT),
        (PAUSE, vmx.PROC_PAUSE, ExitReason.PAUSE),
    ],
)
def test_hints_exit_by_their_controls(engine: str, code: bytes, control: int, reason: int) -> None:
    machine = Machine(b"\x90" + code + HLT, 0, engine)
    machine.state.rax, machine.state.rcx = 0x50000, 0
    machine.write(cpu_based_vm_exec_control=PRIMARY | control)
    exit = machine.enter()
    assert (exit.reason, exit.instruction_length) == (reason, len(code))
    assert machine.read("guest_rip") == CODE + 1
    machine = Machine(b"\x90" + code + HLT, 0, engine)
    machine.state.rax, machine.state.rcx = 0x50000, 0
    assert machine.enter().reason == ExitReason.HLT


def test_monitor_and_mwait_are_undefined_for_programs_and_look_at_rcx(engine: str) -> None:
    for code in (MONITOR, MWAIT):
        machine = Machine(code + HLT, 3, engine)
        machine.write(exception_bitmap=1 << 6 | 1 << 13)
        machine.set_bits("cpu_based_vm_exec_control", vmx.PROC_MONITOR | vmx.PROC_MWAIT)
        assert machine.enter().interruption_info == UD
        machine = Machine(code + HLT, 0, engine)
        machine.write(exception_bitmap=1 << 6 | 1 << 13)
        machine.state.rax, machine.state.rcx = 0x50000, 2
        assert machine.enter().interruption_info == GP


def test_monitor_reads_a_byte(engine: str) -> None:
    machine = Machine(MONITOR + HLT, 0, engine)
    machine.write(exception_bitmap=1 << 14)
    machine.state.rax, machine.state.rcx = 0x800000, 0
    exit = machine.enter()
    assert (exit.interruption_info, exit.qualification) == (0x80000B0E, 0x800000)


def test_monitor_needs_the_processor_to_have_it() -> None:
    machine = Machine(MONITOR + HLT, cpu="max,-monitor")
    machine.write(exception_bitmap=1 << 6)
    machine.set_bits("cpu_based_vm_exec_control", vmx.PROC_MONITOR)
    assert machine.enter().interruption_info == UD


# -- what was not tested elsewhere -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "secondary", "reason"),
    [
        (b"\x0f\x09", vmx.PROC2_WBINVD, ExitReason.WBINVD),
        (b"\x0f\x08", 0, ExitReason.INVD),
        (b"\x0f\x01\xd1", 0, ExitReason.XSETBV),
    ],
)
def test_cache_and_xcr_instructions(engine: str, code: bytes, secondary: int, reason: int) -> None:
    machine = Machine(code + HLT, 0, engine)
    machine.write(secondary_vm_exec_control=secondary)
    machine.set_bits("guest_cr4", 1 << 18)
    machine.state.rcx = machine.state.rdx = 0
    machine.state.rax = 1
    exit = machine.enter()
    assert (exit.reason, exit.qualification, exit.instruction_length) == (reason, 0, len(code))
    machine = Machine(code, 3, engine)
    machine.write(exception_bitmap=1 << 13, secondary_vm_exec_control=secondary)
    machine.set_bits("guest_cr4", 1 << 18)
    assert machine.enter().interruption_info == GP  # privilege comes first


@pytest.mark.parametrize(
    ("code", "source"),
    [
        ("9a000000003000", 0),  # call far
        ("ea000000003000", 2),  # jmp far
        ("cf", 1),  # iret with NT
        ("cd20", 3),  # through a task gate
    ],
)
def test_a_task_switch_tells_selector_and_source(code: str, source: int) -> None:
    """SDM 3C, "Exit Qualification for Task Switch"; unconditional."""
    machine = MODES["protected_mode"]()
    raw = bytes.fromhex(code)
    machine.ram.load(CODE, raw)
    tss = 0x0000890000000067 | 0x6000 << 16  # available, at 0x6000
    machine.ram.load(0x4030, tss.to_bytes(8, "little"))
    machine.ram.load(0x5000 + 8 * 0x20, (0x0000850000300000 & ~0xFFFF).to_bytes(8, "little"))
    if source == 1:
        machine.write(guest_rflags=0x4002)
        machine.ram.load(0x7000, (0x30).to_bytes(2, "little"))
        machine.ram.load(0x4030, (tss | 2 << 40).to_bytes(8, "little"))  # busy
        machine.write(guest_tr_base=0x7000)
    exit = machine.enter()
    assert exit.reason == ExitReason.TASK_SWITCH
    assert exit.qualification == 0x30 | source << 30
    assert machine.read("guest_rip") == CODE
    if source == 3:
        assert exit.vectoring_info == 0x80000420  # a software interrupt
    assert exit.instruction_length == len(raw)


def test_cr8_and_cr3_accesses_tell_register_and_direction(engine: str) -> None:
    for code, qualification, control in (
        ("440f20c1", 8 | 1 << 4 | 1 << 8, vmx.PROC_CR8_STORE),  # mov rcx, cr8
        ("440f22c2", 8 | 2 << 8, vmx.PROC_CR8_LOAD),
        ("0f20de", 3 | 1 << 4 | 6 << 8, vmx.PROC_CR3_STORE),
        ("410f22d9", 3 | 9 << 8, vmx.PROC_CR3_LOAD),
    ):
        machine = Machine(bytes.fromhex(code) + HLT, 0, engine)
        machine.write(cpu_based_vm_exec_control=PRIMARY | control)
        exit = machine.enter()
        assert (exit.reason, exit.qualification) == (ExitReason.CR_ACCESS, qualification)
        assert exit.instruction_length == len(code) // 2


@pytest.mark.parametrize(
    ("code", "qualification", "linear"),
    [
        ("e480", 0x80 << 16 | 1 << 6 | 1 << 3, 0),  # in al, 0x80
        ("66ef", 0x3F8 << 16 | 1, 0),
        ("6e", 0x3F8 << 16 | 1 << 4, 0x50000),  # outsb
        ("f36d", 0x3F8 << 16 | 1 << 5 | 1 << 4 | 1 << 3 | 3, 0x58000),  # rep insd
    ],
)
def test_port_exits_tell_everything(code: str, qualification: int, linear: int) -> None:
    machine = Machine(bytes.fromhex(code) + HLT)
    machine.state.rdx, machine.state.rsi, machine.state.rdi = 0x3F8, 0x50000, 0x58000
    machine.state.rcx = 3
    machine.write(cpu_based_vm_exec_control=PRIMARY | vmx.PROC_UNCONDITIONAL_IO)
    exit = machine.enter()
    assert (exit.reason, exit.qualification) == (ExitReason.IO_INSTRUCTION, qualification)
    assert (exit.guest_linear, exit.instruction_length) == (linear, len(code) // 2)
