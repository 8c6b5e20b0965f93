"""Programs compiled for a test, and threads as gdb stopped them, shaped like guest threads."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trapline.trace import Region

HERE = Path(__file__).parent


def compile_c(source: str, output: Path, *options: str, language: str = "c") -> Path:
    """Compile C text with debug information."""
    path = output.with_suffix({"c": ".c", "c++": ".cc", "assembler": ".s"}[language])
    path.write_text(source)
    compiler = "g++" if language == "c++" else "gcc"
    subprocess.run([compiler, "-g", "-o", output, path, *options], check=True)
    return output


def gdb_stops(
    program: Path, where: str, output: Path, *, arguments: str = "", steps: int = 0
) -> list[Stopped]:
    """The program at a breakpoint and at each of the following instructions."""
    environment = {
        **os.environ,
        "CAPTURE_BREAK": where,
        "CAPTURE_OUTPUT": str(output),
        "CAPTURE_ARGUMENTS": arguments,
        "CAPTURE_STEPS": str(steps),
    }
    subprocess.run(
        ["gdb", "-nx", "-batch", "-x", HERE / "gdb_capture.py", program],
        env=environment, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    return [Stopped(json.loads(line)) for line in output.read_text().splitlines()]


@dataclass
class Stopped:
    """One stop: registers, mappings, the stack's bytes, and gdb's own idea of the frames."""

    facts: dict[str, Any]
    tid: int = 1
    name: str = "stopped"
    bitness: int = 64

    @property
    def frames(self) -> list[dict[str, Any]]:
        return list(self.facts["frames"])

    def registers(self) -> Mapping[str, int]:
        return dict(self.facts["registers"])

    @cached_property
    def regions(self) -> list[Region]:
        return [_region(line) for line in self.facts["maps"].splitlines()]

    @cached_property
    def stack(self) -> bytes:
        return bytes.fromhex(self.facts["stack"])

    def region(self, linear: int) -> Region | None:
        return next((r for r in self.regions if r.start <= linear < r.end), None)

    def read(self, linear: int, size: int) -> bytes:
        start = self.facts["stack_start"]
        if start <= linear < start + len(self.stack):
            return self.stack[linear - start : linear - start + size]
        if linear < start < linear + size:  # the page the captured stack begins in
            return bytes(start - linear) + self.stack[: linear + size - start]
        region = self.region(linear)
        if region is None or region.path is None:
            return b""
        with open(region.path, "rb") as stream:
            stream.seek(linear - region.start + region.offset)
            return stream.read(min(size, region.end - linear))


def _region(line: str) -> Region:
    fields = line.split(maxsplit=5)
    start, end = (int(part, 16) for part in fields[0].split("-"))
    name = fields[5] if len(fields) == 6 else ""
    path = name if name.startswith("/") else None
    is_executable = "x" in fields[1]
    return Region(
        start, end, int(fields[2], 16), path, "" if path else name, is_executable, "s" in fields[1]
    )
