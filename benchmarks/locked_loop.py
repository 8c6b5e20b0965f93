"""A loop of locked instructions on a bare processor, with and without bus lock detection.

Without: the handlers are compiled with the line test left out, which is wrong and only for
measuring; they get names of their own in a cache folder of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

_ROUNDS = 3_000_000
_CODE = "f0ff07f0480fc14f08f0830f0148ffc875ee"  # counts down rax


def seconds(detect: bool) -> float:
    """Seconds for the loop, in a process of its own."""
    folder = os.path.join(tempfile.gettempdir(), f"trapline-bench-{os.getuid()}-{int(detect)}")
    out = subprocess.run(
        [sys.executable, "-m", "benchmarks.locked_loop", str(int(detect))],
        env=os.environ | {"TRAPLINE_CACHE": folder}, check=True, capture_output=True,
    )  # fmt: skip
    return float(json.loads(out.stdout))


def _main(detect: bool) -> None:
    import time

    from tests.processor.jit.flat import DATA, UD2, flat_core, load_code, run_to_fault

    from trapline.processor.jit import memory
    from trapline.processor.jit.text import integer

    if not detect:
        memory.within_line = lambda f, linear, size: integer(1, 1)  # type: ignore[assignment]
    core = flat_core()
    load_code(core, bytes.fromhex(_CODE) + UD2)
    times = []
    for _ in range(4):
        core.state.rax, core.state.rdi = _ROUNDS, DATA
        began = time.perf_counter()
        run_to_fault(core)
        times.append(time.perf_counter() - began)
    print(json.dumps(min(times)))


if __name__ == "__main__":
    _main(sys.argv[1] == "1")
