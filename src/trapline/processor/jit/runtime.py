"""The native code that is not an instruction: entering, slow memory, the bus, materialised flags.

Written once as LLVM IR text.  `%s` is the State block, `%r` an operation record, `%t` the TLB.

The bus block (state.bus) is shared by the processors of one machine: word 0 the owner (a state's
address), word 1 how many processors, then their states' addresses.  A processor that owns the
bus has seen every other one outside guest code (`running` = 0), as a hardware bus lock keeps
every other agent off the memory; so a split update can be done with plain accesses.
"""

from __future__ import annotations

from trapline.processor.flags import CcKind
from trapline.processor.jit import layout
from trapline.processor.jit.bulk import bulk_text
from trapline.processor.jit.text import METADATA
from trapline.processor.state import BOUNCE_OFFSET, OFFSET, SAVED_HOST_OFFSET

_O = OFFSET
SITE_BITS = 6  # bus lock sites that only count: 64 entries of rip, count, last linear, size
SITE_ENTRY = 32


def _slot(name: str, result: str, load: str = "") -> str:
    text = f"  %{result}.p = getelementptr i8, ptr %s, i64 {_O[name]}\n"
    return text + (f"  %{result} = load {load}, ptr %{result}.p\n" if load else "")


def _exits() -> str:
    """Handlers that only return: unlinked links, cross-page links, the reference engine."""
    note = "  store i64 {reason}, ptr %reason.p\n  store ptr %r, ptr %record.p\n"
    head = _slot("exit_reason", "reason") + _slot("exit_record", "record")
    word1 = "  %w1 = getelementptr i8, ptr %r, i64 8\n  %rip = load i64, ptr %w1\n"
    rip = word1 + _slot("exit_rip", "exit") + "  store i64 %rip, ptr %exit.p\n"
    link = (
        "  %w2 = getelementptr i8, ptr %r, i64 16\n  %link = load i64, ptr %w2\n"
        + _slot("next_record", "next") + "  store i64 %link, ptr %next.p\n"
    )  # fmt: skip
    mask = (1 << layout.JUMP_CACHE_BITS) - 1
    lookup = (
        word1
        + _slot("jump_cache", "cache", "ptr")
        + f"""  %m1 = lshr i64 %rip, 12
  %m2 = xor i64 %rip, %m1
  %m3 = and i64 %m2, {mask}
  %m4 = shl i64 %m3, 4
  %entry = getelementptr i8, ptr %cache, i64 %m4
  %tag = load i64, ptr %entry
  %hit = icmp eq i64 %tag, %rip
  br i1 %hit, label %go, label %miss
go:
  %e8 = getelementptr i8, ptr %entry, i64 8
  %to = load ptr, ptr %e8
  %h = load ptr, ptr %to
  musttail call {layout.HANDLER} %h(ptr %s, ptr %to, ptr %t)
  ret void
miss:
"""
    )
    define = f"define {layout.HANDLER} "
    return (
        define + f"@trapline_stub_link{layout.PARAMETERS} {{\n" + head
        + note.format(reason=int(layout.Exit.LINK)) + rip + link + "  ret void\n}\n"
        + define + f"@trapline_stub_lookup{layout.PARAMETERS} {{\n" + lookup + head
        + note.format(reason=int(layout.Exit.LOOKUP)) + _slot("exit_rip", "exit")
        + "  store i64 %rip, ptr %exit.p\n  ret void\n}\n"
        + define + f"@trapline_interpret{layout.PARAMETERS} {{\n" + head
        + note.format(reason=int(layout.Exit.INTERPRET)) + "  ret void\n}\n"
        + define + f"@trapline_goto{layout.PARAMETERS} {{\n"
        + f"""  %at = getelementptr i8, ptr %r, i64 {8 * layout.RECORD_HEAD}
  %to = load ptr, ptr %at
  %h = load ptr, ptr %to
  musttail call {layout.HANDLER} %h(ptr %s, ptr %to, ptr %t)
  ret void
}}
"""
    )  # fmt: skip


def _enter() -> str:
    """C entry: wait for the bus, take on the guest's floating point, run, give it back.

    All exceptions are masked in hardware; code that unmasks one runs on the reference engine.
    """
    saved = SAVED_HOST_OFFSET
    return f"""
declare void @llvm.x86.sse.ldmxcsr(ptr)
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse2.pause()
define void @trapline_enter(ptr %s, ptr %r) {{
{_slot("running", "running")}{_slot("bus", "bus", "ptr")}
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
  %host.mx = getelementptr i8, ptr %s, i64 {saved}
  %run.mx = getelementptr i8, ptr %s, i64 {saved + 4}
  %host.cw = getelementptr i8, ptr %s, i64 {saved + 8}
  %run.cw = getelementptr i8, ptr %s, i64 {saved + 12}
  call void @llvm.x86.sse.stmxcsr(ptr %host.mx)
  call void asm sideeffect "fnstcw ($0)", "r,~{{memory}}"(ptr %host.cw)
{_slot("mxcsr", "mx", "i64")}{_slot("fcw", "cw", "i64")}
  %mx32 = trunc i64 %mx to i32
  %masked = or i32 %mx32, 8064
  store i32 %masked, ptr %run.mx
  %cw16 = trunc i64 %cw to i16
  %cwm = or i16 %cw16, 63
  store i16 %cwm, ptr %run.cw
  call void @llvm.x86.sse.ldmxcsr(ptr %run.mx)
  call void asm sideeffect "fldcw ($0)", "r,~{{memory}}"(ptr %run.cw)
{_slot("tlb", "tlb", "ptr")}
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


def _bus() -> str:
    """Own the bus, and give it back.  Also called from Python for the reference engine."""
    return f"""
define void @trapline_bus_acquire(ptr %s) {{
{_slot("bus", "bus", "ptr")}{_slot("running", "running")}
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
  %attention = getelementptr i8, ptr %other, i64 {_O["attention"]}
  %orun = getelementptr i8, ptr %other, i64 {_O["running"]}
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
{_slot("bus", "bus", "ptr")}
  %alone = icmp eq ptr %bus, null
  br i1 %alone, label %done, label %give
give:
  store atomic i64 0, ptr %bus seq_cst, align 8
  br label %done
done:
  ret void
}}
"""


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


def _slow(name: str, access: layout.Access, tag: int, hit: str) -> str:
    """An access the inline check refused: crossing pages, or not in the TLB."""
    return f"""
define ptr @{name}(ptr %s, ptr %r, ptr %t, i64 %linear, i64 %size) cold noinline alignstack(16) {{
  %last0 = add i64 %linear, %size
  %last = sub i64 %last0, 1
  %tag1 = call i64 @trapline_tag(ptr %t, i64 %linear, i64 {tag})
  %want1 = or i64 %linear, 4095
  %ok1 = icmp eq i64 %tag1, %want1
  br i1 %ok1, label %second, label %miss
second:
  %tag2 = call i64 @trapline_tag(ptr %t, i64 %last, i64 {tag})
  %want2 = or i64 %last, 4095
  %page2 = and i64 %last, -4096
  %ok2 = icmp eq i64 %tag2, %want2
  br i1 %ok2, label %hit, label %miss
miss:
  %where = phi i64 [ %linear, %0 ], [ %page2, %second ]
{_slot("exit_reason", "reason")}{_slot("exit_record", "record")}{_slot("exit_linear", "lin")}
{_slot("exit_size", "sz")}{_slot("exit_detail", "detail")}
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


def _memory() -> str:
    borrow = f"""
  call void @trapline_borrow(ptr %s, ptr %t, i64 %linear, i64 %size)
  %bounce = getelementptr i8, ptr %s, i64 {BOUNCE_OFFSET}
  ret ptr %bounce
"""
    # Split-lock #AC (MSR_TEST_CTRL bit 29) comes before the access: the reference engine raises.
    lock = f"""
{_slot("test_ctrl", "test", "i64")}
  %sld = and i64 %test, {1 << 29}
  %refuse = icmp ne i64 %sld, 0
  br i1 %refuse, label %interpret, label %own
interpret:
{_slot("exit_reason", "ireason")}{_slot("exit_record", "irecord")}
  store i64 {int(layout.Exit.INTERPRET)}, ptr %ireason.p
  store ptr %r, ptr %irecord.p
  ret ptr null
own:
  call void @trapline_bus_acquire(ptr %s)
{borrow}"""
    return f"""
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
{_slow("trapline_slow_read", layout.Access.READ, layout.TAG_READ, borrow)}
{_slow("trapline_slow_write", layout.Access.WRITE, layout.TAG_WRITE, borrow)}
{_slow("trapline_slow_lock", layout.Access.LOCK, layout.TAG_LOCK, lock)}
define void @trapline_end_write(ptr %s, ptr %r, ptr %t, i64 %linear, i64 %size) cold noinline alignstack(16) {{
  call void @trapline_give(ptr %s, ptr %t, i64 %linear, i64 %size)
  ret void
}}
"""


def _end_lock() -> str:
    """A split update is over: write it back, release the bus, and note the bus lock.

    A site already in the table, while nothing is signalled, only counts.
    """
    notes = "".join(
        _slot(slot, name)
        for slot, name in (
            ("bus_lock_rip", "lrip"), ("bus_lock_linear", "llin"),
            ("bus_lock_size", "lsize"), ("bus_lock_cause", "lcause"),
        )
    )  # fmt: skip
    return f"""
define void @trapline_end_lock(ptr %s, ptr %r, ptr %t, i64 %linear, i64 %size) cold noinline alignstack(16) {{
  call void @trapline_give(ptr %s, ptr %t, i64 %linear, i64 %size)
  call void @trapline_bus_release(ptr %s)
{_slot("bus_lock_count", "count", "i64")}{_slot("bus_lock_signals", "signals", "i64")}
{_slot("bus_lock_table", "table", "ptr")}{notes}{_slot("bus_lock_seen", "seen")}
  %count1 = add i64 %count, 1
  store i64 %count1, ptr %count.p
  %rip.p = getelementptr i8, ptr %r, i64 8
  %rip = load i64, ptr %rip.p
  %loud = icmp ne i64 %signals, 0
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
  ret void
tell:
  store i64 %rip, ptr %lrip.p
  store i64 %linear, ptr %llin.p
  store i64 %size, ptr %lsize.p
  store i64 0, ptr %lcause.p
  store i64 1, ptr %seen.p
  ret void
}}
"""


def _flags() -> str:
    """processor.flags.materialise as native code."""
    rule = int(CcKind.ADD)
    return f"""
declare i8 @llvm.ctpop.i8(i8)
define i64 @trapline_flags(ptr %s) noinline nounwind willreturn memory(read) {{
{_slot("cc_kind", "kind", "i64")}{_slot("cc_dst", "dst", "i64")}{_slot("cc_src", "src", "i64")}
  %word = call i64 @trapline_flags_of(i64 %kind, i64 %dst, i64 %src)
  ret i64 %word
}}
define i64 @trapline_flags_of(i64 %kind, i64 %dst, i64 %src) nounwind willreturn memory(none) {{
  %explicit = icmp eq i64 %kind, 0
  br i1 %explicit, label %plain, label %lazy
plain:
  ret i64 %src
lazy:
  %log = and i64 %kind, 3
  %bytes = shl i64 1, %log
  %width = shl i64 %bytes, 3
  %up = sub i64 64, %width
  %ones = lshr i64 -1, %up
  %result = and i64 %dst, %ones
  %operand = and i64 %src, %ones
  %low = trunc i64 %dst to i8
  %pop = call i8 @llvm.ctpop.i8(i8 %low)
  %odd = and i8 %pop, 1
  %even = xor i8 %odd, 1
  %pf0 = zext i8 %even to i64
  %pf = shl i64 %pf0, 2
  %iszero = icmp eq i64 %result, 0
  %zf = select i1 %iszero, i64 64, i64 0
  %isneg = icmp slt i64 %dst, 0
  %sf = select i1 %isneg, i64 128, i64 0
  %f1 = or i64 %pf, %zf
  %base = or i64 %f1, %sf
  %rule = and i64 %kind, 28
  %top1 = sub i64 %width, 1
  %sign = shl i64 1, %top1
  switch i64 %rule, label %logic [ i64 {rule}, label %add
    i64 {int(CcKind.SUB)}, label %sub i64 {int(CcKind.INC)}, label %inc
    i64 {int(CcKind.DEC)}, label %dec ]
logic:
  ret i64 %base
add:
  %ab0 = sub i64 %result, %operand
  %ab = and i64 %ab0, %ones
  %acf = icmp ult i64 %result, %operand
  %ax1 = xor i64 %ab, %result
  %ax2 = xor i64 %operand, %result
  %ax = and i64 %ax1, %ax2
  br label %arith
sub:
  %sb0 = add i64 %result, %operand
  %sb = and i64 %sb0, %ones
  %scf = icmp ult i64 %sb, %operand
  %sx1 = xor i64 %sb, %operand
  %sx2 = xor i64 %sb, %result
  %sx = and i64 %sx1, %sx2
  br label %arith
arith:
  %before = phi i64 [ %ab, %add ], [ %sb, %sub ]
  %carry = phi i1 [ %acf, %add ], [ %scf, %sub ]
  %over = phi i64 [ %ax, %add ], [ %sx, %sub ]
  %cf = zext i1 %carry to i64
  %o1 = and i64 %over, %sign
  %o2 = icmp ne i64 %o1, 0
  %of = select i1 %o2, i64 2048, i64 0
  %n1 = xor i64 %before, %operand
  %n2 = xor i64 %n1, %result
  %af = and i64 %n2, 16
  %w1 = or i64 %base, %cf
  %w2 = or i64 %w1, %of
  %w3 = or i64 %w2, %af
  ret i64 %w3
inc:
  %iof = icmp eq i64 %result, %sign
  %in = and i64 %result, 15
  %iaf = icmp eq i64 %in, 0
  br label %step
dec:
  %dmax = sub i64 %sign, 1
  %dof = icmp eq i64 %result, %dmax
  %dn = and i64 %result, 15
  %daf = icmp eq i64 %dn, 15
  br label %step
step:
  %tof = phi i1 [ %iof, %inc ], [ %dof, %dec ]
  %taf = phi i1 [ %iaf, %inc ], [ %daf, %dec ]
  %tcf = and i64 %src, 1
  %tof2 = select i1 %tof, i64 2048, i64 0
  %taf2 = select i1 %taf, i64 16, i64 0
  %s1 = or i64 %base, %tcf
  %s2 = or i64 %s1, %tof2
  %s3 = or i64 %s2, %taf2
  ret i64 %s3
}}
"""


def runtime_text() -> str:
    """The whole runtime module."""
    return _exits() + _enter() + _bus() + _memory() + _end_lock() + _flags() + bulk_text() + METADATA


DECLARATIONS = """
declare i64 @trapline_flags(ptr) nounwind willreturn memory(read)
declare i64 @trapline_flags_of(i64, i64, i64) nounwind willreturn memory(none)
declare ptr @trapline_slow_read(ptr, ptr, ptr, i64, i64) cold
declare ptr @trapline_slow_write(ptr, ptr, ptr, i64, i64) cold
declare ptr @trapline_slow_lock(ptr, ptr, ptr, i64, i64) cold
declare void @trapline_end_write(ptr, ptr, ptr, i64, i64) cold
declare void @trapline_end_lock(ptr, ptr, ptr, i64, i64) cold
declare i64 @trapline_bulk_move(ptr, ptr, i64)
declare i64 @trapline_bulk_store(ptr, ptr, i64)
"""
