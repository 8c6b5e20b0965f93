"""Memory accesses that the inline check refused: across pages or lines, or not in the TLB."""

from __future__ import annotations

from trapline.processor.jit import layout
from trapline.processor.jit.runtime.slot import slot
from trapline.processor.state import BEFORE_BUS_LOCK, BOUNCE_OFFSET


def _copy(name: str, to_pages: bool) -> str:
    """Between the bounce buffer and the (one or two) pages of an operand; tags were checked."""
    source, target = ("%bounce", "%host") if to_pages else ("%host", "%bounce")
    return f"""
define private void @{name}(ptr %s, ptr %t, i64 %linear, i64 %size) {{
  %bounce = getelementptr i8, ptr %s, i64 {BOUNCE_OFFSET}
  %inpage = and i64 %linear, 4095
  %room = sub i64 4096, %inpage
  %first = call i64 @llvm.umin.i64(i64 %room, i64 %size)
  br label %next
next:
  %i = phi i64 [ 0, %0 ], [ %i1, %next ]
  %at = add i64 %linear, %i
  %page = lshr i64 %at, 12
  %index = and i64 %page, {layout.TLB_INDEX_MASK}
  %scaled = mul i64 %index, {layout.TLB_ENTRY}
  %entry = getelementptr i8, ptr %t, i64 %scaled
  %addend.p = getelementptr i8, ptr %entry, i64 {layout.ADDEND}
  %addend = load i64, ptr %addend.p
  %hostn = add i64 %at, %addend
  %host = inttoptr i64 %hostn to ptr
  %b = getelementptr i8, ptr %bounce, i64 %i
  %byte = load i8, ptr {"%b" if to_pages else "%host"}
  store i8 %byte, ptr {"%host" if to_pages else "%b"}
  %i1 = add i64 %i, 1
  %more = icmp ult i64 %i1, %size
  br i1 %more, label %next, label %done
done:
  ret void
}}
""".replace(f"{source} = x", f"{target} = x")


def _slow(name: str, access: layout.Access, tag: int, hit: str, other: str = "") -> str:
    """An access the inline check refused: crossing pages, or not in the TLB.  `other` is what may
    be found instead of the tag, up to a branch to %miss.  Across 4 GiB is Python's, as only
    64-bit code may go there."""
    first = "other" if other else "miss"
    missing = "[ %linear, %other ], [ %linear, %look ]," if other else "[ %linear, %one ],"
    return f"""
define ptr @{name}(ptr %s, ptr %r, ptr %t, i64 %linear, i64 %size) cold noinline alignstack(16) {{
  %last0 = add i64 %linear, %size
  %last = sub i64 %last0, 1
  %differ = xor i64 %linear, %last
  %around = lshr i64 %differ, 32
  %inside4g = icmp eq i64 %around, 0
  br i1 %inside4g, label %one, label %miss
one:
  %tag1 = call i64 @trapline_tag(ptr %t, i64 %linear, i64 {tag})
  %want1 = or i64 %linear, 4095
  %ok1 = icmp eq i64 %tag1, %want1
  br i1 %ok1, label %second, label %{first}
{other}
second:
  %tag2 = call i64 @trapline_tag(ptr %t, i64 %last, i64 {tag})
  %want2 = or i64 %last, 4095
  %page2 = and i64 %last, -4096
  %ok2 = icmp eq i64 %tag2, %want2
  br i1 %ok2, label %hit, label %miss
miss:
  %where = phi i64 [ %linear, %0 ], {missing} [ %page2, %second ]
{slot("exit_reason", "reason")}{slot("exit_record", "record")}{slot("exit_linear", "lin")}
{slot("exit_size", "sz")}{slot("exit_detail", "detail")}
  store i64 {int(layout.Exit.MEMORY)}, ptr %reason.p
  store ptr %r, ptr %record.p
  store i64 %where, ptr %lin.p
  store i64 %size, ptr %sz.p
  store i64 {int(access)}, ptr %detail.p
  ret ptr null
hit:
{hit}
}}
"""


_borrow = f"""
{slot("in_place", "in_place")}
  store i64 0, ptr %in_place.p
  call void @trapline_borrow(ptr %s, ptr %t, i64 %linear, i64 %size)
  %bounce = getelementptr i8, ptr %s, i64 {BOUNCE_OFFSET}
  ret ptr %bounce
"""
# Data beside translated code (processor.code_map): written where it is, for a copy of bytes would
# not be one write.
_MOST = 56  # bytes; their bits and the place of the first fit a word
_beside_code = f"""
other:
  %tag3 = sub i64 %want1, 1
  %beside = icmp eq i64 %tag1, %tag3
  %inpage = and i64 %linear, 4095
  %end = add i64 %inpage, %size
  %inside = icmp ule i64 %end, 4096
  %short = icmp ule i64 %size, {_MOST}
  %fits = and i1 %inside, %short
  %try = and i1 %beside, %fits
  br i1 %try, label %look, label %miss
look:
  %mapn = call i64 @trapline_tag(ptr %t, i64 %linear, i64 {layout.TAG_LOCK})
  %map = inttoptr i64 %mapn to ptr
  %at8 = lshr i64 %inpage, 3
  %p8 = getelementptr i8, ptr %map, i64 %at8
  %word = load i64, ptr %p8, align 1
  %low3 = and i64 %inpage, 7
  %bits = lshr i64 %word, %low3
  %power = shl i64 1, %size
  %mask = sub i64 %power, 1
  %code = and i64 %bits, %mask
  %clear = icmp eq i64 %code, 0
  br i1 %clear, label %direct, label %miss
direct:
{slot("in_place", "straight")}
  store i64 1, ptr %straight.p
  %addend = call i64 @trapline_tag(ptr %t, i64 %linear, i64 {layout.ADDEND})
  %hostn = add i64 %linear, %addend
  %host = inttoptr i64 %hostn to ptr
  ret ptr %host
"""
# Split-lock #AC (MSR_TEST_CTRL bit 29) and SVM's bus lock threshold come before the access: the
# reference engine raises and asks.
_lock = f"""
{slot("test_ctrl", "test", "i64")}
  %sld = and i64 %test, {1 << 29}
{slot("bus_lock_signals", "signals", "i64")}
  %asked = and i64 %signals, {BEFORE_BUS_LOCK}
  %before = or i64 %sld, %asked
  %refuse = icmp ne i64 %before, 0
  br i1 %refuse, label %interpret, label %own
interpret:
{slot("exit_reason", "ireason")}{slot("exit_record", "irecord")}
  store i64 {int(layout.Exit.INTERPRET)}, ptr %ireason.p
  store ptr %r, ptr %irecord.p
  ret ptr null
own:
  call void @trapline_bus_acquire(ptr %s)
{_borrow}"""
SLOW_MEMORY = f"""
declare i64 @llvm.umin.i64(i64, i64)
define private i64 @trapline_tag(ptr %t, i64 %linear, i64 %which) alwaysinline {{
  %page = lshr i64 %linear, 12
  %index = and i64 %page, {layout.TLB_INDEX_MASK}
  %scaled = mul i64 %index, {layout.TLB_ENTRY}
  %at = add i64 %scaled, %which
  %p = getelementptr i8, ptr %t, i64 %at
  %tag = load i64, ptr %p
  ret i64 %tag
}}
{_copy("trapline_borrow", to_pages=False)}
{_copy("trapline_give", to_pages=True)}
{_slow("trapline_slow_read", layout.Access.READ, layout.TAG_READ, _borrow)}
{_slow("trapline_slow_write", layout.Access.WRITE, layout.TAG_WRITE, _borrow, _beside_code)}
{_slow("trapline_slow_lock", layout.Access.LOCK, layout.TAG_LOCK, _lock)}
define void @trapline_end_write(ptr %s, ptr %r, ptr %t, i64 %linear, i64 %size)
    cold noinline alignstack(16) {{
{slot("in_place", "in_place", "i64")}
  %done = icmp ne i64 %in_place, 0
  br i1 %done, label %end, label %give
give:
  call void @trapline_give(ptr %s, ptr %t, i64 %linear, i64 %size)
  br label %end
end:
  ret void
}}
"""
