"""Control words, x87 environments, and the images of FXRSTOR and XRSTOR."""

from __future__ import annotations

import struct

from iced_x86 import Code, Mnemonic

from tests.against import values
from tests.against.addressing import Unreachable
from tests.against.draft import Draft
from tests.against.layout import NON_CANONICAL
from tests.against.shapes.registry import RAX, RDX, finishes, prepares
from tests.against.state import AC

_M = Mnemonic


@finishes("LDMXCSR")
def _load_mxcsr(draft: Draft) -> None:
    value = values.mxcsr(draft.source)
    if draft.source.random() < 0.08:
        value |= 1 << draft.source.choice((16, 18, 24, 31))  # 17 is AMD's alone
    draft.content = value.to_bytes(4, "little")


@finishes("FLDCW")
def _load_control_word(draft: Draft) -> None:
    value = values.control_word(draft.source)
    if draft.source.random() < 0.2:
        value |= draft.source.getrandbits(16)
    draft.content = value.to_bytes(2, "little")


def _status_word(draft: Draft, status: int) -> int:
    """Now and then with ES and B that do not fit the flags and masks."""
    return status ^ 0x8080 if draft.source.random() < 0.1 else status


def _environment(draft: Draft, wide: bool) -> bytes:
    source = draft.source
    state = values.float_state(source, "f64")
    words = (state.fcw, _status_word(draft, state.fsw), source.getrandbits(16))
    if not wide:
        return struct.pack("<7H", *words, *(source.getrandbits(16) for _ in range(4)))
    padded = (part for word in words for part in (word, 0xFFFF))
    pointers = (source.getrandbits(32), 0, source.getrandbits(11), source.getrandbits(32), 0, 0)
    return struct.pack("<6HIHHIHH", *padded, *pointers)


@finishes("FLDENV", "FRSTOR")
def _load_environment(draft: Draft) -> None:
    wide = draft.form.code in (Code.FLDENV_M28BYTE, Code.FRSTOR_M108BYTE)
    content = _environment(draft, wide)
    if draft.form.mnemonic == _M.FRSTOR:
        content += b"".join(values.float80(draft.source) for _ in range(8))
    draft.content = content


def _align(draft: Draft, size: int) -> None:
    """Mostly aligned: #GP otherwise, and nothing more is learned; not where #AC or #SS compete."""
    draft.flags &= ~AC
    if draft.linear is None or draft.linear % size == 0:
        return
    if draft.linear >= NON_CANONICAL or draft.source.random() < 0.9:
        raise Unreachable


@finishes("FXRSTOR", "FXRSTOR64")
def _load_image(draft: Draft) -> None:
    _align(draft, 16)
    draft.content = _image(draft)


def _image(draft: Draft) -> bytes:
    source = draft.source
    state = values.float_state(source, draft.vector_kind)
    state.fop, state.fip, state.fdp = (source.getrandbits(width) for width in (11, 47, 47))
    state.fsw = _status_word(draft, state.fsw)
    if source.random() < 0.05:
        state.mxcsr |= 1 << source.choice((16, 18, 31))
    return state.pack()


@finishes("FXSAVE", "FXSAVE64")
def _save_image(draft: Draft) -> None:
    _align(draft, 16)


@prepares("XSAVE", "XSAVE64", "XRSTOR", "XRSTOR64")
def _component_mask(draft: Draft) -> None:
    """Only x87 and SSE: what else XCR0 allows is the host's affair."""
    draft.pin(RAX, draft.source.randrange(4))
    draft.pin(RDX, 0)


@finishes("XSAVE", "XSAVE64")
def _save_components(draft: Draft) -> None:
    _align(draft, 64)
    draft.content = draft.content[:512] + bytes(64)


@finishes("XRSTOR", "XRSTOR64")
def _load_components(draft: Draft) -> None:
    _align(draft, 64)
    header = draft.source.randrange(4)
    if draft.source.random() < 0.05:
        header |= 1 << 62
    draft.content = _image(draft) + header.to_bytes(8, "little") + bytes(56)
