"""From an observed bus lock to names: recorded at a real stop of a real program, and read back.

gdb stops the program after a locked instruction, in place of the processor.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from tests.trace.stopped import Stopped, compile_c, gdb_stops
from trapline.processor.buslock import BusLock, Cause, Outcome
from trapline.processor.decode import disassemble
from trapline.trace import Locator, Recorder, ThreadObserver, TraceWriter, read_trace

pytestmark = pytest.mark.skipif(
    not (shutil.which("gcc") and shutil.which("gdb")), reason="needs gcc and gdb"
)

PROGRAM = r"""
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <fcntl.h>
#include <unistd.h>
struct __attribute__((packed)) packed { char pad[62]; uint32_t hits; };
struct packed in_data __attribute__((aligned(64))) = {.pad = "x"};
struct packed in_bss[300] __attribute__((aligned(64)));
_Thread_local struct packed in_tls __attribute__((aligned(64))) = {.pad = "y"};
static inline __attribute__((always_inline)) void bump(struct packed *p) {
    __atomic_fetch_add((uint32_t *)(p->pad + 62), 3, __ATOMIC_SEQ_CST);
}
__attribute__((noinline)) void culprit(struct packed *p) { bump(p); }
void *thread(void *unused) {
    struct packed on_stack __attribute__((aligned(64)));
    memset(&on_stack, 0, sizeof on_stack);
    culprit(&on_stack);
    return unused;
}
int main(int count, char **arguments) {
    struct packed on_stack __attribute__((aligned(64)));
    memset(&on_stack, 0, sizeof on_stack);
    switch (arguments[1][0]) {
    case 's': culprit(&on_stack); break;
    case 'd': culprit(&in_data); break;
    case 'b': culprit(in_bss); break;
    case 'B': culprit(in_bss + 256); break; /* beyond the page that is in the file */
    case 'l': culprit(&in_tls); break;
    case 'h': culprit(aligned_alloc(64, 128)); break;
    case 'a': culprit(mmap(0, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)); break;
    case 'f': {
        int file = open(arguments[2], O_RDWR | O_CREAT, 0600);
        ftruncate(file, 4096);
        culprit(mmap(0, 4096, 3, MAP_SHARED, file, 0));
        break; }
    case 't': { pthread_t t; pthread_create(&t, 0, thread, 0); pthread_join(t, 0); break; }
    }
    return count + on_stack.hits;
}
"""
CULPRIT_LINE = next(n for n, line in enumerate(PROGRAM.splitlines(), 1) if "fetch_add" in line)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recorder")


@pytest.fixture(scope="module")
def program(folder: Path) -> Path:
    return compile_c(PROGRAM, folder / "locks", "-O2", "-pthread")


def split_lock(program: Path, folder: Path, arguments: str) -> tuple[BusLock, Stopped]:
    """The program right after its locked instruction, and the bus lock that it took."""
    stops = gdb_stops(program, "culprit", folder / "stops", arguments=arguments, steps=4)
    for before, after in zip(stops, stops[1:], strict=False):
        rip = before.registers()["rip"]
        if "lock" in disassemble(before.read(rip, 15), rip, 64):
            linear = before.registers()["rdi"] + 62
            assert linear % 64 == 62
            next_rip = after.registers()["rip"]
            return BusLock(rip, next_rip, linear, 0x1234, 4, 3, Cause.SPLIT), after
    raise AssertionError("the locked instruction was not met")


class Recorded:
    """A recorder with a file, and the trace read back from it."""

    def __init__(self, path: Path, program: Path, **options: int) -> None:
        self.path = str(path)
        self.writer = TraceWriter(self.path, {})
        self.recorder = Recorder(self.writer, disassemble, **options)
        self.recorder.start(77, 1, [str(program), "x"], str(program))

    def read(self):
        self.recorder.flush()
        return read_trace(self.path)


@pytest.fixture
def recorded(tmp_path, program):
    return Recorded(tmp_path / "trace", program)


@pytest.mark.parametrize(
    ("case", "memory"),
    [
        ("s", "stack of thread 1 (on_stack.hits of main)"),
        ("d", "global in_data+0x3e of locks (in_data.hits)"),
        ("b", "global in_bss+0x3e of locks (in_bss[0].hits)"),
        ("B", "global in_bss+0x423e of locks (in_bss[256].hits)"),
        ("l", "thread-local in_tls+0x3e of thread 1 (in_tls.hits)"),
        ("h", "heap"),
        ("a", "anonymous mapping"),
        ("t", "stack of thread 1 (on_stack.hits of thread)"),
    ],
)
def test_the_kind_of_memory(program, folder, recorded, case, memory):
    lock, thread = split_lock(program, folder, case)
    recorded.recorder.bus_lock(lock, Outcome.DB, thread)
    (site,) = recorded.read().sites
    place = Locator().describe_memory(site)
    assert place is not None
    assert place.text == memory
    assert "problems" not in site.fields


def test_a_file_mapping_is_named(program, folder, recorded):
    lock, thread = split_lock(program, folder, f"f {folder}/shared")
    recorded.recorder.bus_lock(lock, Outcome.DB, thread)
    (site,) = recorded.read().sites
    assert Locator().describe_memory(site).text == f"file mapping {folder}/shared"


def test_another_threads_stack_is_named_by_its_owner(program, folder, recorded):
    lock, thread = split_lock(program, folder, "t")
    recorded.recorder.thread_started(5, thread.registers()["rsp"])
    elsewhere = Stopped({**thread.facts, "registers": {**thread.registers(), "rsp": 0x1000}}, tid=9)
    recorded.recorder.bus_lock(lock, Outcome.DB, elsewhere)
    (site,) = recorded.read().sites
    assert Locator().describe_memory(site).text == "stack of thread 5"


def test_the_culprit_its_line_and_its_callers(program, folder, recorded):
    lock, thread = split_lock(program, folder, "s")
    recorded.recorder.bus_lock(lock, Outcome.DB, thread)
    (site,) = recorded.read().sites
    locator = Locator()
    where = locator.locate(site.rip, site.mapped)
    source = str(program) + ".c"
    assert [(at.function, at.line, at.is_inlined) for at in where] == [
        ("bump", CULPRIT_LINE, True),
        ("culprit", CULPRIT_LINE + 2, False),
    ]
    assert {at.file for at in where} == {source}
    assert where[0].module == str(program)
    names = [locator.locate(frame.lookup, frame.mapped)[-1].function for frame in site.stack]
    assert names[:2] == ["culprit", "main"]
    assert names[-1] == "_start"
    assert site.fields["instruction"] == "lock add dword ptr [rdi+0x3E], 3"
    assert bytes.fromhex(site.fields["code"]) == thread.read(lock.rip, lock.next_rip - lock.rip)
    assert site.fields["operand"] == f"dword ptr [rdi+0x3E]  rdi={lock.linear - 62:#x}"
    assert site.fields["physical"] == 0x1234


def test_counts_are_exact_from_many_threads(program, folder, recorded):
    lock, stopped = split_lock(program, folder, "s")

    def work(tid: int) -> None:
        thread = Stopped(stopped.facts, tid=tid, name=f"worker{tid}")
        for _ in range(3000):
            recorded.recorder.bus_lock(lock, Outcome.DB, thread)

    workers = [threading.Thread(target=work, args=(tid,)) for tid in range(1, 5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    trace = recorded.read()
    (site,) = trace.sites
    assert site.count == trace.total == 12000
    assert site.threads == {1: 3000, 2: 3000, 3: 3000, 4: 3000}


def test_a_site_is_one_instruction_with_one_cause_and_outcome(program, folder, recorded):
    lock, thread = split_lock(program, folder, "s")
    others = [lock._replace(cause=Cause.UNCACHED), lock._replace(size=8), lock._replace(cpl=0)]
    for one in (lock, *others):
        recorded.recorder.bus_lock(one, Outcome.DB, thread)
    recorded.recorder.bus_lock(lock, Outcome.AC, thread)
    recorded.recorder.bus_lock(lock._replace(linear=lock.linear + 640), Outcome.DB, thread)
    counts = [site.count for site in recorded.read().sites]
    assert sorted(counts) == [1, 1, 1, 1, 2]


def test_totals_join_the_site_of_the_first_event(program, folder, recorded):
    lock, thread = split_lock(program, folder, "s")
    observer = ThreadObserver(recorded.recorder, thread)
    observer.bus_lock(lock, Outcome.NONE)
    total = (lock.rip, lock.next_rip, lock.cause, lock.size, lock.cpl, lock.linear)
    observer.bus_lock_total(*total, 999_999)
    (site,) = recorded.read().sites
    assert site.count == 1_000_000
    assert site.stack
    assert (site.first_count, site.places) == (1, [])  # not known of the others
    observer.bus_lock_total(*total[:-1], lock.linear + 64, 7)
    (site,) = recorded.read().sites
    assert [(one.fields["linear"], one.count) for one in site.places] == [(lock.linear + 64, 1)]


def test_a_total_without_a_first_event_has_no_invented_circumstances(program, folder, recorded):
    lock, thread = split_lock(program, folder, "s")
    observer = ThreadObserver(recorded.recorder, thread)
    observer.bus_lock_total(
        lock.rip, lock.next_rip, lock.cause, lock.size, lock.cpl, lock.linear, 5
    )
    (site,) = recorded.read().sites
    assert site.count == 5
    assert site.fields["instruction"].startswith("lock add")
    assert "stack" not in site.fields and "operand" not in site.fields


def test_other_data_and_other_callers_are_counted_on_their_own(program, folder, recorded):
    lock, thread = split_lock(program, folder, "d")
    _, elsewhere = split_lock(program, folder, "b")
    moved = lock._replace(linear=lock.linear + 64)
    for _ in range(3):
        recorded.recorder.bus_lock(lock, Outcome.DB, thread)
        recorded.recorder.bus_lock(lock, Outcome.DB, elsewhere)
    for _ in range(500):
        recorded.recorder.bus_lock(moved, Outcome.DB, thread)
    (site,) = recorded.read().sites
    assert (site.count, site.first_count) == (506, 3)
    assert [(one.fields["linear"], one.count) for one in site.places] == [
        (lock.linear, 3), (moved.linear, 500)
    ]  # fmt: skip
    callers = [one.stack[1].rip for one in (site, *site.places)]
    assert callers[0] == callers[2] != callers[1]


def test_places_are_bounded_and_the_count_stays_exact(program, folder, recorded):
    lock, thread = split_lock(program, folder, "s")
    for number in range(200):
        moved = lock._replace(linear=lock.linear + 64 * number)
        recorded.recorder.bus_lock(moved, Outcome.DB, thread)
        recorded.recorder.bus_lock(moved, Outcome.DB, thread)
    (site,) = recorded.read().sites
    assert site.count == 400
    assert len(site.places) == 63
    assert site.first_count + sum(one.count for one in site.places) == 128


def test_callers_are_looked_at_for_a_while_and_data_always(program, folder, recorded, monkeypatch):
    monkeypatch.setattr("trapline.trace.recorder.CALLER_LIMIT", 10)
    lock, thread = split_lock(program, folder, "s")
    for _ in range(100):
        recorded.recorder.bus_lock(lock, Outcome.DB, thread)
    (site,) = recorded.read().sites
    (other,) = site.places
    assert (site.first_count, other.count) == (10, 90)
    assert site.stack and not other.stack


def test_single_events_are_bounded_and_the_bound_is_said(program, folder, tmp_path):
    recorded = Recorded(tmp_path / "trace", program, event_limit=10)
    lock, thread = split_lock(program, folder, "s")
    for number in range(25):
        moved = lock._replace(linear=lock.linear + 64 * number)
        recorded.recorder.bus_lock(moved, Outcome.DB, thread)
    trace = recorded.read()
    assert [event["linear"] for event in trace.events] == [
        lock.linear + 64 * number for number in range(10)
    ]
    assert trace.event_limit == 10
    assert trace.total == 25


def test_counts_reach_the_file_soon_without_being_asked(program, folder, recorded):
    lock, thread = split_lock(program, folder, "s")
    for _ in range(500):
        recorded.recorder.bus_lock(lock, Outcome.DB, thread)
    deadline = time.monotonic() + 10
    while read_trace(recorded.path).total < 500 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert read_trace(recorded.path).total == 500


def test_a_forked_child_counts_for_itself(program, folder, recorded):
    lock, thread = split_lock(program, folder, "s")
    for _ in range(3):
        recorded.recorder.bus_lock(lock, Outcome.DB, thread)
    pid = os.fork()
    if pid == 0:
        recorded.recorder.forked(78, 77)
        for _ in range(40):
            recorded.recorder.bus_lock(lock, Outcome.DB, Stopped(thread.facts, tid=78))
        recorded.recorder.exited(0, None)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    recorded.recorder.exited(3, None)
    trace = recorded.read()
    assert {site.owner.pid: site.count for site in trace.sites} == {77: 3, 78: 40}
    assert trace.pids == [77, 78]
    assert trace.exit_status == 3


def test_an_executed_program_begins_afresh(program, folder, recorded):
    lock, thread = split_lock(program, folder, "s")
    recorded.recorder.bus_lock(lock, Outcome.DB, thread)
    recorded.recorder.executed(["/bin/other", "y"], "/bin/other")
    recorded.recorder.bus_lock(lock, Outcome.DB, thread)
    sites = recorded.read().sites
    assert [site.owner.program for site in sites] == [[str(program), "x"], ["/bin/other", "y"]]
    assert [site.count for site in sites] == [1, 1]


def test_unmapped_code_ends_its_sites(program, folder, recorded):
    lock, thread = split_lock(program, folder, "s")
    recorded.recorder.bus_lock(lock, Outcome.DB, thread)
    recorded.recorder.unmapped(lock.rip & -4096, (lock.rip & -4096) + 4096)
    recorded.recorder.bus_lock(lock, Outcome.DB, thread)
    assert [site.count for site in recorded.read().sites] == [1, 1]


def test_a_file_that_changed_since_gives_no_names(program, folder, tmp_path, recorded):
    lock, thread = split_lock(program, folder, "s")
    recorded.recorder.bus_lock(lock, Outcome.DB, thread)
    trace = recorded.read()
    saved = program.read_bytes()
    try:
        compile_c(PROGRAM + "int unrelated;\n", program, "-O1", "-pthread")
        locator = Locator()
        (where,) = locator.locate(trace.sites[0].rip, trace.sites[0].mapped)
        assert (where.function, where.line) == (None, None)
        assert where.module == str(program) and where.module_offset is not None
        assert locator.changed == {str(program)}
    finally:
        program.write_bytes(saved)
        (program.parent / "locks.c").write_text(PROGRAM)


def test_a_thread_that_cannot_be_read_costs_fields_and_nothing_else(recorded):
    class Broken:
        tid, name, bitness = 4, "broken", 64

        def registers(self):
            raise OSError("gone")

        def read(self, linear, size):
            return b""

        def region(self, linear):
            return None

    lock = BusLock(0x1000, 0x1005, 0x203E, 0, 4, 3, Cause.SPLIT)
    recorded.recorder.bus_lock(lock, Outcome.DB, Broken())
    (site,) = recorded.read().sites
    assert site.count == 1
    assert site.fields["instruction"] is None
    assert any("OSError: gone" in problem for problem in site.fields["problems"])


def test_undefined_instructions_are_named_once(program, folder, recorded):
    _, thread = split_lock(program, folder, "s")
    observer = ThreadObserver(recorded.recorder, thread)
    for _ in range(3):
        observer.undefined(thread.registers()["rip"], b"\x0f\x0b", "ud2")
    (undefined,) = recorded.read().undefined
    assert (undefined.code, undefined.text) == ("0f0b", "ud2")
    assert Locator().locate(undefined.rip, undefined.mapped)[0].module == str(program)
