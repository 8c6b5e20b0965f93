"""The end of a split update: write it back, release the bus, note the bus lock.

It is loud if it causes a #DB (DEBUGCTL.BLD, CPL > 0) or is asked for (state.bus_lock_signals); a
silent one whose site is in the table (state.bus_lock_table) only counts.
"""

from __future__ import annotations

from trapline.arch.msr import DEBUGCTL_BLD
from trapline.processor.jit.runtime.slot import slot

SITE_BITS = 6  # bus lock sites that only count: 64 entries of rip, count, last linear, size
SITE_ENTRY = 32
SILENT, LOUD = 1, 2  # state.bus_lock_seen

_notes = "".join(
    slot(source, name)
    for source, name in (
        ("bus_lock_rip", "lrip"), ("bus_lock_linear", "llin"),
        ("bus_lock_size", "lsize"), ("bus_lock_cause", "lcause"),
    )
)  # fmt: skip
END_LOCK = f"""
define void @trapline_end_lock(ptr %s, ptr %r, ptr %t, i64 %linear, i64 %size)
    cold noinline alignstack(16) {{
  call void @trapline_give(ptr %s, ptr %t, i64 %linear, i64 %size)
  call void @trapline_bus_release(ptr %s)
{slot("bus_lock_count", "count", "i64")}{slot("bus_lock_signals", "signals", "i64")}
{slot("debugctl", "debugctl", "i64")}{slot("cpl", "cpl", "i64")}
{slot("bus_lock_table", "table", "ptr")}{_notes}{slot("bus_lock_seen", "seen")}
{slot("bus_lock_counted", "counted")}
  %count1 = add i64 %count, 1
  store i64 %count1, ptr %count.p
  %rip.p = getelementptr i8, ptr %r, i64 8
  %rip = load i64, ptr %rip.p
  %bld = and i64 %debugctl, {DEBUGCTL_BLD}
  %enabled = icmp ne i64 %bld, 0
  %outer = icmp ne i64 %cpl, 0
  %trap = and i1 %enabled, %outer
  %asked = icmp ne i64 %signals, 0
  %loud = or i1 %trap, %asked
  %kind = select i1 %loud, i64 {LOUD}, i64 {SILENT}
  %none = icmp eq ptr %table, null
  %tell0 = or i1 %loud, %none
  br i1 %tell0, label %tell, label %find
find:
  %h1 = lshr i64 %rip, {SITE_BITS}
  %h2 = xor i64 %h1, %rip
  %h3 = and i64 %h2, {(1 << SITE_BITS) - 1}
  %h4 = mul i64 %h3, {SITE_ENTRY}
  %site = getelementptr i8, ptr %table, i64 %h4
  %known = load i64, ptr %site
  %same = icmp eq i64 %known, %rip
  br i1 %same, label %add, label %tell
add:
  %n.p = getelementptr i8, ptr %site, i64 8
  %n = load i64, ptr %n.p
  %n1 = add i64 %n, 1
  store i64 %n1, ptr %n.p
  %last.p = getelementptr i8, ptr %site, i64 16
  store i64 %linear, ptr %last.p
  store i64 1, ptr %counted.p
  ret void
tell:
  store i64 %rip, ptr %lrip.p
  store i64 %linear, ptr %llin.p
  store i64 %size, ptr %lsize.p
  store i64 0, ptr %lcause.p
  store i64 %kind, ptr %seen.p
  ret void
}}
"""
