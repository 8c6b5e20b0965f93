"""Into native code and out again: wait for the bus, take on the guest's floating point.

All exceptions are masked in hardware; code that unmasks one runs on the reference engine.
"""

from __future__ import annotations

from trapline.processor.jit import layout
from trapline.processor.jit.runtime.slot import slot
from trapline.processor.state import SAVED_HOST_OFFSET

_saved = SAVED_HOST_OFFSET
ENTER = f"""
declare void @llvm.x86.sse.ldmxcsr(ptr)
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse2.pause()
define void @trapline_enter(ptr %s, ptr %r) {{
{slot("running", "running")}{slot("bus", "bus", "ptr")}
  %self = ptrtoint ptr %s to i64
  %alone = icmp eq ptr %bus, null
  br i1 %alone, label %free, label %try
try:
  store atomic i64 1, ptr %running.p seq_cst, align 8
  %owner = load atomic i64, ptr %bus seq_cst, align 8
  %taken = icmp ne i64 %owner, 0
  br i1 %taken, label %wait, label %free
wait:
  store atomic i64 0, ptr %running.p seq_cst, align 8
  call void @llvm.x86.sse2.pause()
  br label %try
free:
  %host.mx = getelementptr i8, ptr %s, i64 {_saved}
  %run.mx = getelementptr i8, ptr %s, i64 {_saved + 4}
  %host.cw = getelementptr i8, ptr %s, i64 {_saved + 8}
  %run.cw = getelementptr i8, ptr %s, i64 {_saved + 12}
  call void @llvm.x86.sse.stmxcsr(ptr %host.mx)
  call void asm sideeffect "fnstcw ($0)", "r,~{{memory}}"(ptr %host.cw)
{slot("mxcsr", "mx", "i64")}{slot("fcw", "cw", "i64")}
  %mx32 = trunc i64 %mx to i32
  %masked = or i32 %mx32, 8064
  store i32 %masked, ptr %run.mx
  %cw16 = trunc i64 %cw to i16
  %cwm = or i16 %cw16, 63
  store i16 %cwm, ptr %run.cw
  call void @llvm.x86.sse.ldmxcsr(ptr %run.mx)
  call void asm sideeffect "fldcw ($0)", "r,~{{memory}}"(ptr %run.cw)
{slot("tlb", "tlb", "ptr")}
  %h = load ptr, ptr %r
  call {layout.HANDLER} %h(ptr %s, ptr %r, ptr %tlb)
  call void @llvm.x86.sse.stmxcsr(ptr %run.mx)
  call void @llvm.x86.sse.ldmxcsr(ptr %host.mx)
  call void asm sideeffect "fldcw ($0)", "r,~{{memory}}"(ptr %host.cw)
  %after = load i32, ptr %run.mx
  %sticky = and i32 %after, 63
  %sticky64 = zext i32 %sticky to i64
  %now = load i64, ptr %mx.p
  %new = or i64 %now, %sticky64
  store i64 %new, ptr %mx.p
  store atomic i64 0, ptr %running.p seq_cst, align 8
  ret void
}}
"""
