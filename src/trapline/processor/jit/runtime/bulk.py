"""REP MOVS and REP STOS by the page: as many elements as lie within the present pages at once.

The element-by-element loop of the recording stays the rule; this only runs ahead of it where the
result is the same: forward, both pages at hand, no overlap that would repeat bytes.
"""

from __future__ import annotations

from trapline.processor.jit import layout
from trapline.processor.jit.runtime.slot import slot

_DF = 1 << 10
MOVES = {"movsb": 1, "movsw": 2, "movsd": 4, "movsq": 8}
STORES = {"stosb": 1, "stosw": 2, "stosd": 4, "stosq": 8}


def _host(register: str, tag: int) -> str:
    """%{register}.hit and %{register}.host for the page a register points into."""
    r = register
    return f"""  %{r}.page = lshr i64 %{r}, 12
  %{r}.i = and i64 %{r}.page, {layout.TLB_INDEX_MASK}
  %{r}.o = mul i64 %{r}.i, {layout.TLB_ENTRY}
  %{r}.e = getelementptr i8, ptr %t, i64 %{r}.o
  %{r}.tp = getelementptr i8, ptr %{r}.e, i64 {tag}
  %{r}.tag = load i64, ptr %{r}.tp
  %{r}.want = or i64 %{r}, 4095
  %{r}.hit = icmp eq i64 %{r}.tag, %{r}.want
  %{r}.ap = getelementptr i8, ptr %{r}.e, i64 {layout.ADDEND}
  %{r}.add = load i64, ptr %{r}.ap
  %{r}.hn = add i64 %{r}, %{r}.add
  %{r}.host = inttoptr i64 %{r}.hn to ptr
  %{r}.in = and i64 %{r}, 4095
  %{r}.room = sub i64 4096, %{r}.in
"""


def _advance(*registers: str) -> str:
    """The registers after %n bytes, %k elements; %rest elements remain."""
    text = "  %rest = sub i64 %rcx, %k\n  store i64 %rest, ptr %rcx.p\n"
    for r in registers:
        text += f"  %{r}.new = add i64 %{r}, %n\n  store i64 %{r}.new, ptr %{r}.p\n"
    return text


_forward = (
    slot("system_flags", "system_flags", "i64")
    + f"  %df = and i64 %system_flags, {_DF}\n  %up = icmp eq i64 %df, 0\n"
    + slot("rcx", "rcx", "i64") + slot("rdi", "rdi", "i64")
)  # fmt: skip
_limit = """  %many = icmp ugt i64 %rcx, 4096
  %some = select i1 %many, i64 4096, i64 %rcx
  %bytes = shl i64 %some, %log
  %n0 = call i64 @llvm.umin.i64(i64 %bytes, i64 %rdi.room)
"""
BULK = f"""
declare void @llvm.memmove.p0.p0.i64(ptr, ptr, i64, i1)
define i64 @trapline_bulk_move(ptr %s, ptr %t, i64 %log) alignstack(16) {{
{_forward}{slot("rsi", "rsi", "i64")}
{_host("rdi", layout.TAG_WRITE)}{_host("rsi", layout.TAG_READ)}{_limit}
  %n1 = call i64 @llvm.umin.i64(i64 %n0, i64 %rsi.room)
  %apart = sub i64 %rdi.hn, %rsi.hn
  %n2 = call i64 @llvm.umin.i64(i64 %n1, i64 %apart)
  %same = icmp eq i64 %apart, 0
  %n3 = select i1 %same, i64 %n1, i64 %n2
  %k = lshr i64 %n3, %log
  %n = shl i64 %k, %log
  %any = icmp ne i64 %k, 0
  %hits = and i1 %rdi.hit, %rsi.hit
  %may = and i1 %hits, %up
  %go = and i1 %may, %any
  br i1 %go, label %do, label %no
do:
  call void @llvm.memmove.p0.p0.i64(ptr %rdi.host, ptr %rsi.host, i64 %n, i1 false)
{_advance("rdi", "rsi")}
  ret i64 %k
no:
  ret i64 0
}}
define i64 @trapline_bulk_store(ptr %s, ptr %t, i64 %log) alignstack(16) {{
{_forward}{slot("rax", "rax", "i64")}{_host("rdi", layout.TAG_WRITE)}{_limit}
  %k = lshr i64 %n0, %log
  %n = shl i64 %k, %log
  %any = icmp ne i64 %k, 0
  %may = and i1 %rdi.hit, %up
  %go = and i1 %may, %any
  br i1 %go, label %do, label %no
do:
  %size = shl i64 8, %log
  %shift = sub i64 64, %size
  %ones = lshr i64 -1, %shift
  %unit = and i64 %rax, %ones
  %all = udiv i64 -1, %ones
  %pattern = mul i64 %unit, %all
  %quads = and i64 %n, -8
  %hasquads = icmp ne i64 %quads, 0
  br i1 %hasquads, label %quad, label %tails
quad:
  %i = phi i64 [ 0, %do ], [ %i8, %quad ]
  %qp = getelementptr i8, ptr %rdi.host, i64 %i
  store i64 %pattern, ptr %qp, align 1
  %i8 = add i64 %i, 8
  %moreq = icmp ult i64 %i8, %quads
  br i1 %moreq, label %quad, label %tails
tails:
  %hastail = icmp ult i64 %quads, %n
  br i1 %hastail, label %tail, label %done
tail:
  %j = phi i64 [ %quads, %tails ], [ %j1, %tail ]
  %rotated = phi i64 [ %pattern, %tails ], [ %down, %tail ]
  %byte = trunc i64 %rotated to i8
  %bp = getelementptr i8, ptr %rdi.host, i64 %j
  store i8 %byte, ptr %bp
  %down = lshr i64 %rotated, 8
  %j1 = add i64 %j, 1
  %morej = icmp ult i64 %j1, %n
  br i1 %morej, label %tail, label %done
done:
{_advance("rdi")}
  ret i64 %k
no:
  ret i64 0
}}
"""
