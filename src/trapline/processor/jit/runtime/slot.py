"""IR text for one slot of the state: its address, and perhaps its content."""

from __future__ import annotations

from trapline.processor.state import OFFSET


def slot(name: str, result: str, load: str = "") -> str:
    """%{result}.p points to the slot; with a type to load, %{result} is what it holds."""
    text = f"  %{result}.p = getelementptr i8, ptr %s, i64 {OFFSET[name]}\n"
    return text + (f"  %{result} = load {load}, ptr %{result}.p\n" if load else "")
