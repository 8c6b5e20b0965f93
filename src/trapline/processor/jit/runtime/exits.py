"""Handlers that only return: unlinked links, cross-page links, the reference engine."""

from __future__ import annotations

from trapline.processor.jit import layout
from trapline.processor.jit.runtime.slot import slot

_note = "  store i64 {reason}, ptr %reason.p\n  store ptr %r, ptr %record.p\n"
_head = slot("exit_reason", "reason") + slot("exit_record", "record")
_word1 = "  %w1 = getelementptr i8, ptr %r, i64 8\n  %rip = load i64, ptr %w1\n"
_rip = _word1 + slot("exit_rip", "exit") + "  store i64 %rip, ptr %exit.p\n"
_link = (
    "  %w2 = getelementptr i8, ptr %r, i64 16\n  %link = load i64, ptr %w2\n"
    + slot("next_record", "next") + "  store i64 %link, ptr %next.p\n"
)  # fmt: skip
# A block may be dropped just before its processor puts it into the cache: not to itself again.
_mask = (1 << layout.JUMP_CACHE_BITS) - 1
_lookup = (
    _word1
    + slot("jump_cache", "cache", "ptr")
    + f"""  %m1 = lshr i64 %rip, 12
  %m2 = xor i64 %rip, %m1
  %m3 = and i64 %m2, {_mask}
  %m4 = shl i64 %m3, 4
  %entry = getelementptr i8, ptr %cache, i64 %m4
  %tag = load i64, ptr %entry
  %hit = icmp eq i64 %tag, %rip
  br i1 %hit, label %known, label %miss
known:
  %e8 = getelementptr i8, ptr %entry, i64 8
  %to = load ptr, ptr %e8
  %same = icmp eq ptr %to, %r
  br i1 %same, label %miss, label %go
go:
  %h = load ptr, ptr %to
  musttail call {layout.HANDLER} %h(ptr %s, ptr %to, ptr %t)
  ret void
miss:
"""
)
_define = f"define {layout.HANDLER} "
EXITS = (
    _define + f"@trapline_stub_link{layout.PARAMETERS} {{\n" + _head
    + _note.format(reason=int(layout.Exit.LINK)) + _rip + _link + "  ret void\n}\n"
    + _define + f"@trapline_stub_lookup{layout.PARAMETERS} {{\n" + _lookup + _head
    + _note.format(reason=int(layout.Exit.LOOKUP)) + slot("exit_rip", "exit")
    + "  store i64 %rip, ptr %exit.p\n  ret void\n}\n"
    + _define + f"@trapline_interpret{layout.PARAMETERS} {{\n" + _head
    + _note.format(reason=int(layout.Exit.INTERPRET)) + "  ret void\n}\n"
    + _define + f"@trapline_goto{layout.PARAMETERS} {{\n"
    + f"""  %at = getelementptr i8, ptr %r, i64 {8 * layout.RECORD_HEAD}
  %to = load ptr, ptr %at
  %h = load ptr, ptr %to
  musttail call {layout.HANDLER} %h(ptr %s, ptr %to, ptr %t)
  ret void
}}
"""
)  # fmt: skip
