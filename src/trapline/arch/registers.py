"""The bits of RFLAGS, CR0, CR3, CR4, CR8, EFER, XCR0 and MXCSR, and the numbers of the registers.

Plain int constants; what the bits do is the processor's.
"""

from __future__ import annotations

# General registers by the number that instructions encode them with (SDM 2A, "REX Prefixes").
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
R8, R9, R10, R11, R12, R13, R14, R15 = range(8, 16)
GPR_NAMES = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)

# Segment registers by the number of MOV Sreg; LDTR and TR follow where a table holds all eight.
ES, CS, SS, DS, FS, GS = range(6)
LDTR, TR = 6, 7
SEGMENT_NAMES = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr")

RFLAGS_CF = 1 << 0
RFLAGS_FIXED_1 = 1 << 1
RFLAGS_PF = 1 << 2
RFLAGS_AF = 1 << 4
RFLAGS_ZF = 1 << 6
RFLAGS_SF = 1 << 7
RFLAGS_TF = 1 << 8
RFLAGS_IF = 1 << 9
RFLAGS_DF = 1 << 10
RFLAGS_OF = 1 << 11
RFLAGS_IOPL_SHIFT = 12
RFLAGS_IOPL = 3 << RFLAGS_IOPL_SHIFT
RFLAGS_NT = 1 << 14
RFLAGS_RF = 1 << 16
RFLAGS_VM = 1 << 17
RFLAGS_AC = 1 << 18
RFLAGS_VIF = 1 << 19
RFLAGS_VIP = 1 << 20
RFLAGS_ID = 1 << 21
RFLAGS_STATUS = RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF
RFLAGS_DEFINED = 0x003F7FD5  # without the fixed bit 1
RFLAGS_RESERVED = ~(RFLAGS_DEFINED | RFLAGS_FIXED_1) & (1 << 64) - 1

CR0_PE = 1 << 0
CR0_MP = 1 << 1
CR0_EM = 1 << 2
CR0_TS = 1 << 3
CR0_ET = 1 << 4
CR0_NE = 1 << 5
CR0_WP = 1 << 16
CR0_AM = 1 << 18
CR0_NW = 1 << 29
CR0_CD = 1 << 30
CR0_PG = 1 << 31
CR0_DEFINED = 0xE005003F
CR0_RESET = CR0_ET | CR0_NW | CR0_CD

CR3_PWT = 1 << 3
CR3_PCD = 1 << 4
CR3_PCID = 0xFFF  # with CR4.PCIDE
CR3_BASE = 0x000FFFFF_FFFFF000
CR3_PAE_BASE = 0xFFFFFFE0
CR3_NOFLUSH = 1 << 63  # of the value moved to CR3, with CR4.PCIDE

CR4_VME = 1 << 0
CR4_PVI = 1 << 1
CR4_TSD = 1 << 2
CR4_DE = 1 << 3
CR4_PSE = 1 << 4
CR4_PAE = 1 << 5
CR4_MCE = 1 << 6
CR4_PGE = 1 << 7
CR4_PCE = 1 << 8
CR4_OSFXSR = 1 << 9
CR4_OSXMMEXCPT = 1 << 10
CR4_UMIP = 1 << 11
CR4_LA57 = 1 << 12
CR4_VMXE = 1 << 13
CR4_SMXE = 1 << 14
CR4_FSGSBASE = 1 << 16
CR4_PCIDE = 1 << 17
CR4_OSXSAVE = 1 << 18
CR4_KL = 1 << 19
CR4_SMEP = 1 << 20
CR4_SMAP = 1 << 21
CR4_PKE = 1 << 22
CR4_CET = 1 << 23
CR4_PKS = 1 << 24
CR4_UINTR = 1 << 25
CR4_LAM_SUP = 1 << 28
CR4_FRED = 1 << 32

CR8_TPR = 0xF

EFER_SCE = 1 << 0
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
EFER_NXE = 1 << 11
EFER_SVME = 1 << 12
EFER_LMSLE = 1 << 13
EFER_FFXSR = 1 << 14
EFER_TCE = 1 << 15
EFER_AUTOIBRS = 1 << 21

XCR0_X87 = 1 << 0
XCR0_SSE = 1 << 1
XCR0_AVX = 1 << 2
XCR0_BNDREGS = 1 << 3
XCR0_BNDCSR = 1 << 4
XCR0_OPMASK = 1 << 5
XCR0_ZMM_HI256 = 1 << 6
XCR0_HI16_ZMM = 1 << 7
XCR0_PKRU = 1 << 9
XCR0_RESET = XCR0_X87

MXCSR_IE = 1 << 0
MXCSR_DE = 1 << 1
MXCSR_ZE = 1 << 2
MXCSR_OE = 1 << 3
MXCSR_UE = 1 << 4
MXCSR_PE = 1 << 5
MXCSR_FLAGS = 0x3F
MXCSR_DAZ = 1 << 6
MXCSR_IM = 1 << 7
MXCSR_DM = 1 << 8
MXCSR_ZM = 1 << 9
MXCSR_OM = 1 << 10
MXCSR_UM = 1 << 11
MXCSR_PM = 1 << 12
MXCSR_MASKS = 0x1F80
MXCSR_RC_SHIFT = 13
MXCSR_RC = 3 << MXCSR_RC_SHIFT
MXCSR_FTZ = 1 << 15
MXCSR_MASK = 0xFFFF  # what FXSAVE reports; other bits are #GP in LDMXCSR
MXCSR_RESET = 0x1F80

# x87 control and status words (SDM 1, "x87 FPU Control Word", "x87 FPU Status Register").
FCW_IM = 1 << 0
FCW_DM = 1 << 1
FCW_ZM = 1 << 2
FCW_OM = 1 << 3
FCW_UM = 1 << 4
FCW_PM = 1 << 5
FCW_MASKS = 0x3F
FCW_PC_SHIFT = 8
FCW_PC = 3 << FCW_PC_SHIFT
FCW_RC_SHIFT = 10
FCW_RC = 3 << FCW_RC_SHIFT
FCW_INIT = 0x037F  # after FNINIT
FCW_RESET = 0x0040  # after power-up

FSW_IE = 1 << 0
FSW_DE = 1 << 1
FSW_ZE = 1 << 2
FSW_OE = 1 << 3
FSW_UE = 1 << 4
FSW_PE = 1 << 5
FSW_SF = 1 << 6
FSW_ES = 1 << 7
FSW_C0 = 1 << 8
FSW_C1 = 1 << 9
FSW_C2 = 1 << 10
FSW_TOP_SHIFT = 11
FSW_TOP = 7 << FSW_TOP_SHIFT
FSW_C3 = 1 << 14
FSW_B = 1 << 15
