"""The machine code by which the host runs cases: a way in, and one signal handler.

The handler stores what a case left in its signal frame, puts the next case's state into the same
frame and returns into it, so loading and saving a state is the kernel's own work and every
register, RSP too, belongs to the case.  Nothing here knows what a case is about.
"""

from __future__ import annotations

from iced_x86 import Code, Register

from tests.against.assemble import Memory, Program
from tests.against.layout import FS_BASE, GS_BASE, TOTAL, USER_DS
from tests.against.state import AC, FIXED_FLAGS, ID, INITIAL_FCW, INITIAL_MXCSR, NT

# Where the worker's own memory lies.
STORE = 0x6800_0000  # the regions' bytes, writable whatever the region is
PRISTINE = 0x6900_0000
CONTROL = 0x6A00_0000
BLOB = 0x6B00_0000
ALTERNATE_STACK = 0x6C00_0000
ALTERNATE_STACK_SIZE = 0x1_0000
ARENA = 0x7000_0000
ARENA_SIZE = 0x200_0000

# Fields of CONTROL.
RESULT, INPUT, REMAINING, CHANGES, CHANGES_LIMIT, DONE = 0x00, 0x08, 0x10, 0x18, 0x20, 0x28
LAST_TICK, SAVED_RSP, OLD_FS, OLD_GS, RUNNING, OLD_SELECTORS = 0x30, 0x38, 0x40, 0x48, 0x50, 0x58

# An input: the frame's registers from R8 to the selectors, a list of patches, an FXSAVE image.
INPUT_SIZE, INPUT_REGISTERS, INPUT_PATCHES, INPUT_FX = 768, 19, 152, 256
FX_COPIED = 464  # what follows in a frame describes the frame itself
# A result: the frame's registers, the signal, where its list of changes begins and ends, an image.
RESULT_SIZE, RESULT_REGISTERS, RESULT_SIGNAL, RESULT_FX = 768, 23, 184, 256
RESULT_FIRST, RESULT_END = 192, 200
CHANGE_SIZE = 16  # number of an aligned 8 bytes in the store, and their new content
PATCH_HEAD = 16  # where to, how many bytes; the bytes follow, up to a multiple of 16

# struct ucontext: arch/x86/include/uapi/asm/sigcontext.h
FRAME_REGISTERS, FRAME_FX = 40, 224
FRAME_RSP, FRAME_RIP, FRAME_FLAGS, FRAME_SELECTORS = (40 + 8 * n for n in (15, 16, 17, 18))
XSTATE_BV, X87_AND_SSE = 512, 3

SIGVTALRM = 26
SYS_RT_SIGRETURN, SYS_ARCH_PRCTL = 15, 158
ARCH_SET_GS, ARCH_SET_FS, ARCH_GET_FS, ARCH_GET_GS = 0x1001, 0x1002, 0x1003, 0x1004
LEFT_ALONE = NT | ID  # by the kernel, on the way out and back

C, R = Code, Register
SAVED = (R.RBX, R.RBP, R.R12, R.R13, R.R14, R.R15)
LOAD, KEEP, LEA = C.MOV_R64_RM64, C.MOV_RM64_R64, C.LEA_R64_M


def at(base: int, displacement: int = 0, index: int = R.NONE) -> Memory:
    """[base + displacement], or [base + index * 8 + displacement]."""
    return Memory(base, index, 8 if index else 1, displacement, 8 if displacement else 0)


def assemble() -> tuple[bytes, dict[str, int]]:
    """The code for address BLOB, and its labels: `enter` is a C function, `handler` the handler."""
    program = Program()
    _handler(program)
    _store_result(program)
    _load_input(program)
    _return(program)
    _finish(program)
    _enter(program)
    return program.assemble(BLOB)


def _handler(program: Program) -> None:
    """Registers from here on: RBX frame, RBP control, R12 result, R13 input, R14 changes."""
    add = program.add
    program.label("handler")
    add(C.PUSHFQ)  # the case may have left AC set
    add(C.AND_RM32_IMM32, at(R.RSP), ~AC)
    add(C.POPFQ)
    add(C.MOV_R32_IMM32, R.EBP, CONTROL)
    add(LOAD, R.RBX, R.RDX)
    add(LOAD, R.R12, at(R.RBP, RESULT))
    add(LOAD, R.R14, at(R.RBP, CHANGES))
    add(C.CMP_RM32_IMM8, R.EDI, SIGVTALRM)
    add(C.JNE_REL32_64, "not the timer")
    # A case is given up at its second tick.
    add(LOAD, R.RAX, at(R.RBP, INPUT))
    add(C.CMP_RM64_R64, at(R.RBP, LAST_TICK), R.RAX)
    add(KEEP, at(R.RBP, LAST_TICK), R.RAX)
    add(C.JNE_REL32_64, "return")
    program.label("not the timer")
    add(C.CMP_RM64_IMM8, at(R.RBP, RUNNING), 0)
    add(C.JNE_REL32_64, "store result")
    add(LOAD, R.RAX, at(R.RBX, FRAME_SELECTORS))
    add(KEEP, at(R.RBP, OLD_SELECTORS), R.RAX)
    add(C.MOV_RM64_IMM32, at(R.RBP, RUNNING), 1)
    add(C.JMP_REL32_64, "load input")


def _store_result(program: Program) -> None:
    add = program.add
    program.label("store result")
    add(C.MOV_R32_RM32, R.EAX, R.EDI)
    add(KEEP, at(R.R12, RESULT_SIGNAL), R.RAX)
    add(KEEP, at(R.R12, RESULT_FIRST), R.R14)
    add(LEA, R.RSI, at(R.RBX, FRAME_REGISTERS))
    add(LOAD, R.RDI, R.R12)
    add(C.MOV_R32_IMM32, R.ECX, RESULT_REGISTERS)
    add(C.MOVSQ_M64_M64, rep=True)
    add(LOAD, R.RSI, at(R.RBX, FRAME_FX))
    add(LEA, R.RDI, at(R.R12, RESULT_FX))
    add(C.MOV_R32_IMM32, R.ECX, 512 // 8)
    add(C.MOVSQ_M64_M64, rep=True)
    # List what differs from the background, and put the background back.
    add(C.MOV_R32_IMM32, R.ESI, PRISTINE)
    add(C.MOV_R32_IMM32, R.EDI, STORE)
    add(C.MOV_R32_IMM32, R.ECX, TOTAL // 8)
    program.label("compare")
    add(LOAD, R.RAX, at(R.RDI, -8, R.RCX))
    add(LOAD, R.RDX, at(R.RSI, -8, R.RCX))
    add(C.CMP_R64_RM64, R.RAX, R.RDX)
    add(C.JNE_REL32_64, "differs")
    program.label("compare next")
    add(C.DEC_RM64, R.RCX)
    add(C.JNE_REL32_64, "compare")
    add(KEEP, at(R.R12, RESULT_END), R.R14)
    add(KEEP, at(R.RBP, CHANGES), R.R14)
    add(C.ADD_RM64_IMM32, R.R12, RESULT_SIZE)
    add(KEEP, at(R.RBP, RESULT), R.R12)
    add(C.ADD_RM64_IMM32, at(R.RBP, INPUT), INPUT_SIZE)
    add(C.DEC_RM64, at(R.RBP, REMAINING))
    add(C.INC_RM64, at(R.RBP, DONE))
    add(C.JMP_REL32_64, "load input")
    _note_difference(program)


def _note_difference(program: Program) -> None:
    add = program.add
    program.label("differs")
    add(KEEP, at(R.RDI, -8, R.RCX), R.RDX)
    add(LEA, R.RDX, at(R.RCX, -1))
    add(KEEP, at(R.R14), R.RDX)
    add(KEEP, at(R.R14, 8), R.RAX)
    add(C.ADD_RM64_IMM8, R.R14, CHANGE_SIZE)
    add(C.JMP_REL32_64, "compare next")


def _load_input(program: Program) -> None:
    add = program.add
    program.label("load input")
    add(C.CMP_RM64_IMM8, at(R.RBP, REMAINING), 0)
    add(C.JE_REL32_64, "finish")
    add(C.CMP_RM64_R64, at(R.RBP, CHANGES_LIMIT), R.R14)
    add(C.JB_REL32_64, "finish")
    add(LOAD, R.R13, at(R.RBP, INPUT))
    add(LEA, R.RDI, at(R.RBX, FRAME_REGISTERS))
    add(LOAD, R.RSI, R.R13)
    add(C.MOV_R32_IMM32, R.ECX, INPUT_REGISTERS)
    add(C.MOVSQ_M64_M64, rep=True)
    add(LOAD, R.RDI, at(R.RBX, FRAME_FX))
    add(C.OR_RM32_IMM8, at(R.RDI, XSTATE_BV), X87_AND_SSE)
    add(LEA, R.RSI, at(R.R13, INPUT_FX))
    add(C.MOV_R32_IMM32, R.ECX, FX_COPIED // 8)
    add(C.MOVSQ_M64_M64, rep=True)
    add(LOAD, R.RDX, at(R.R13, INPUT_PATCHES))
    program.label("patch")
    add(LOAD, R.RCX, at(R.RDX, 8))
    add(C.TEST_RM64_R64, R.RCX, R.RCX)
    add(C.JE_REL32_64, "return")
    add(LOAD, R.RDI, at(R.RDX))
    add(LEA, R.RSI, at(R.RDX, PATCH_HEAD))
    add(C.MOVSB_M8_M8, rep=True)
    add(LEA, R.RDX, at(R.RSI, 15))
    add(C.AND_RM64_IMM8, R.RDX, -16)
    add(C.JMP_REL32_64, "patch")


def _return(program: Program) -> None:
    """RT_SIGRETURN leaves NT and ID as they are when it is called, so they are set here."""
    add = program.add
    program.label("return")
    add(LOAD, R.RAX, at(R.RBX, FRAME_FLAGS))
    add(C.AND_EAX_IMM32, LEFT_ALONE)
    add(C.PUSHFQ)
    add(C.AND_RM32_IMM32, at(R.RSP), ~LEFT_ALONE)
    add(C.OR_RM64_R64, at(R.RSP), R.RAX)
    add(C.POPFQ)
    add(LOAD, R.RSP, R.RBX)
    add(C.MOV_R32_IMM32, R.EAX, SYS_RT_SIGRETURN)
    add(C.SYSCALL)


def _finish(program: Program) -> None:
    """Go on behind the call of `start`, with an ordinary floating-point state."""
    add = program.add
    program.label("finish")
    add(LOAD, R.RAX, at(R.RBP, SAVED_RSP))
    add(LOAD, R.RCX, at(R.RAX))
    add(KEEP, at(R.RBX, FRAME_RIP), R.RCX)
    add(C.ADD_RM64_IMM8, R.RAX, 8)
    add(KEEP, at(R.RBX, FRAME_RSP), R.RAX)
    add(LOAD, R.RAX, at(R.RBP, OLD_SELECTORS))
    add(KEEP, at(R.RBX, FRAME_SELECTORS), R.RAX)
    add(C.MOV_RM64_IMM32, at(R.RBX, FRAME_FLAGS), FIXED_FLAGS)
    add(LOAD, R.RDI, at(R.RBX, FRAME_FX))
    add(C.OR_RM32_IMM8, at(R.RDI, XSTATE_BV), X87_AND_SSE)
    add(C.MOV_RM32_IMM32, at(R.RDI), INITIAL_FCW)
    add(C.MOV_RM32_IMM32, at(R.RDI, 4), 0)
    add(C.MOV_RM32_IMM32, at(R.RDI, 24), INITIAL_MXCSR)
    add(C.JMP_REL32_64, "return")


def _enter(program: Program) -> None:
    add = program.add
    program.label("enter")
    for register in SAVED:
        add(C.PUSH_R64, register)
    add(C.MOV_R32_IMM32, R.EBP, CONTROL)
    _arch_prctl(program, ARCH_GET_FS, at(R.RBP, OLD_FS))
    _arch_prctl(program, ARCH_GET_GS, at(R.RBP, OLD_GS))
    _arch_prctl(program, ARCH_SET_FS, FS_BASE)
    _arch_prctl(program, ARCH_SET_GS, GS_BASE)
    add(C.MOV_R32_IMM32, R.EAX, USER_DS)  # 64-bit processes begin with null ones
    add(C.MOV_SREG_RM16, R.DS, R.AX)
    add(C.MOV_SREG_RM16, R.ES, R.AX)
    add(C.CALL_REL32_64, "start")
    add(C.MOV_R32_IMM32, R.EBP, CONTROL)
    _arch_prctl(program, ARCH_SET_FS, R.RSI, at(R.RBP, OLD_FS))
    _arch_prctl(program, ARCH_SET_GS, R.RSI, at(R.RBP, OLD_GS))
    for register in reversed(SAVED):
        add(C.POP_R64, register)
    add(C.RETNQ)
    program.label("start")
    add(KEEP, at(R.RBP, SAVED_RSP), R.RSP)
    add(C.INT3)


def _arch_prctl(program: Program, function: int, *argument: int | Memory) -> None:
    match argument:
        case (Memory() as place,):
            program.add(LEA, R.RSI, place)
        case (int(base),):
            program.add(C.MOV_R64_IMM64, R.RSI, base)
        case (int(register), Memory() as place):
            program.add(LOAD, register, place)
    program.add(C.MOV_R32_IMM32, R.EDI, function)
    program.add(C.MOV_R32_IMM32, R.EAX, SYS_ARCH_PRCTL)
    program.add(C.SYSCALL)
