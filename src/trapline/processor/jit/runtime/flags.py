"""processor.flags.materialise as native code."""

from __future__ import annotations

from trapline.processor.flags import CcKind
from trapline.processor.jit.runtime.slot import slot

_rule = int(CcKind.ADD)
FLAGS = f"""
declare i8 @llvm.ctpop.i8(i8)
define i64 @trapline_flags(ptr %s) noinline nounwind willreturn memory(read) {{
{slot("cc_kind", "kind", "i64")}{slot("cc_dst", "dst", "i64")}{slot("cc_src", "src", "i64")}
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
  switch i64 %rule, label %logic [ i64 {_rule}, label %add
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
