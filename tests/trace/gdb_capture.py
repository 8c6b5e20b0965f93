"""Runs inside gdb: stops a program, and writes what gdb knows of it at each stop as JSON lines.

Arguments come in environment variables, as gdb hands none to a script.
"""

import json
import os

import gdb

GENERAL = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16))]
REGISTERS = [*GENERAL, "rip", "fs_base"]
MASK = 0xFFFF_FFFF_FFFF_FFFF


def maps():
    with open(f"/proc/{gdb.selected_inferior().pid}/maps") as stream:
        return stream.read()


def stack_bytes(mapped, rsp):
    for line in mapped.splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= rsp < end:
            low = max(start, rsp - 4096)
            memory = gdb.selected_inferior().read_memory(low, min(end - low, 1 << 17))
            return low, bytes(memory).hex()
    return 0, ""


def frames():
    found = []
    frame = gdb.newest_frame()
    while frame is not None:
        place = frame.find_sal()
        found.append(
            {
                "pc": frame.pc() & MASK,
                "name": frame.name(),
                "inlined": frame.type() == gdb.INLINE_FRAME,
                # gdb's reconstruction of calls that left no frame on the stack
                "vanished": frame.type() == gdb.TAILCALL_FRAME,
                "file": place.symtab.filename if place.symtab else None,
                "line": place.line if place.symtab else None,
            }
        )
        try:
            frame = frame.older()
        except gdb.error:
            break
    return found


def capture(stream):
    registers = {name: int(gdb.parse_and_eval(f"(long)${name}")) & MASK for name in REGISTERS}
    mapped = maps()
    low, content = stack_bytes(mapped, registers["rsp"])
    stop = {"registers": registers, "maps": mapped, "stack_start": low, "stack": content}
    stream.write(json.dumps({**stop, "frames": frames()}) + "\n")


def main():
    for line in ("set confirm off", "set pagination off", "handle all nostop noprint pass",
                 "set debuginfod enabled off", "set backtrace past-main on",
                 "set disable-randomization on"):  # fmt: skip
        gdb.execute(line)
    gdb.Breakpoint(os.environ["CAPTURE_BREAK"])
    gdb.execute("run " + os.environ.get("CAPTURE_ARGUMENTS", "") + " > /dev/null", to_string=True)
    with open(os.environ["CAPTURE_OUTPUT"], "w") as stream:
        capture(stream)
        for _ in range(int(os.environ.get("CAPTURE_STEPS", "0"))):
            gdb.execute("stepi", to_string=True)
            if not gdb.selected_inferior().threads():
                break
            capture(stream)
    gdb.execute("kill", to_string=True)


main()
