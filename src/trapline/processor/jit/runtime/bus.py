"""Owning the bus: nobody else is in guest code.  Python calls this too, for the reference engine.

The bus block (state.bus) is shared by the processors of one machine: word 0 the owner (a state's
address), word 1 how many processors, then their states' addresses.
"""

from __future__ import annotations

from trapline.processor.jit.runtime.slot import slot
from trapline.processor.state import OFFSET

BUS = f"""
define void @trapline_bus_acquire(ptr %s) {{
{slot("bus", "bus", "ptr")}{slot("running", "running")}
  %self = ptrtoint ptr %s to i64
  %was = load atomic i64, ptr %running.p seq_cst, align 8
  %alone = icmp eq ptr %bus, null
  br i1 %alone, label %done, label %try
try:
  store atomic i64 0, ptr %running.p seq_cst, align 8
  %pair = cmpxchg ptr %bus, i64 0, i64 %self seq_cst seq_cst
  %got = extractvalue {{i64, i1}} %pair, 1
  br i1 %got, label %stop, label %again
again:
  call void @llvm.x86.sse2.pause()
  br label %try
stop:
  %count.p = getelementptr i8, ptr %bus, i64 8
  %count = load atomic i64, ptr %count.p seq_cst, align 8
  br label %next
next:
  %i = phi i64 [ 0, %stop ], [ %i1, %stopped ]
  %more = icmp ult i64 %i, %count
  br i1 %more, label %look, label %mine
look:
  %o = shl i64 %i, 3
  %o16 = add i64 %o, 16
  %other.p = getelementptr i8, ptr %bus, i64 %o16
  %other = load atomic ptr, ptr %other.p seq_cst, align 8
  %me = icmp eq ptr %other, %s
  %gone = icmp eq ptr %other, null
  %skip = or i1 %me, %gone
  br i1 %skip, label %stopped, label %ask
ask:
  %attention = getelementptr i8, ptr %other, i64 {OFFSET["attention"]}
  %orun = getelementptr i8, ptr %other, i64 {OFFSET["running"]}
  br label %poll
poll:
  %r1 = load atomic i64, ptr %orun seq_cst, align 8
  %away = icmp eq i64 %r1, 0
  br i1 %away, label %stopped, label %nudge
nudge:
  %old = atomicrmw or ptr %attention, i64 2 seq_cst
  call void @llvm.x86.sse2.pause()
  br label %poll
stopped:
  %i1 = add i64 %i, 1
  br label %next
mine:
  store atomic i64 %was, ptr %running.p seq_cst, align 8
  br label %done
done:
  ret void
}}
define void @trapline_bus_release(ptr %s) {{
{slot("bus", "bus", "ptr")}
  %alone = icmp eq ptr %bus, null
  br i1 %alone, label %done, label %give
give:
  store atomic i64 0, ptr %bus seq_cst, align 8
  br label %done
done:
  ret void
}}
"""
