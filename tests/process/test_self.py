"""What a program reads about itself is about itself, not about the VMM around it."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sys

import pytest

from tests.process.conftest import Run, skip_on_pvm

PYTHON = [sys.executable, "-S", "-c"]


@pytest.mark.parametrize("who", ["self", "thread-self", "$$", "self/task/$$"])
def test_exe_is_the_programs(who: str, guest: Run) -> None:
    shell = os.path.realpath(shutil.which("bash") or "")
    got = guest("bash", "-c", f"exec -a x readlink /proc/{who}/exe; : /proc/{who}")
    assert got.stdout.decode().strip() == os.path.realpath(shutil.which("readlink") or "")
    opened = guest("bash", "-c", f"read -r -n 4 -d '' magic < /proc/{who}/exe; echo ${{magic:1:3}}")
    assert opened.stdout == b"ELF\n"
    assert shell


def test_exe_can_be_started_again(guest: Run) -> None:
    script = "import os; os.execv('/proc/self/exe', ['python', '-S', '-c', 'print(6 * 7)'])"
    assert guest(*PYTHON, script).stdout == b"42\n"


def test_command_line_environment_and_name(guest: Run) -> None:
    got = guest("cat", "/proc/self/cmdline")
    assert got.stdout == b"cat\0/proc/self/cmdline\0"
    assert guest("cat", "/proc/self/comm").stdout == b"cat\n"
    got = guest("env", "-i", "ONE=1", "TWO=2", "cat", "/proc/self/environ")
    assert got.stdout == b"ONE=1\0TWO=2\0"


def test_a_name_set_by_the_program_is_seen(guest: Run) -> None:
    script = (
        "import ctypes; ctypes.CDLL(None).prctl(15, b'a-new-name', 0, 0, 0);"
        "print(open('/proc/self/comm').read())"
    )
    assert guest(*PYTHON, script).stdout == b"a-new-name\n\n"


def test_maps_show_the_program_and_nothing_of_the_vmm(guest: Run) -> None:
    text = guest("cat", "/proc/self/maps").stdout.decode()
    pattern = (
        r"([0-9a-f]{8,16})-([0-9a-f]{8,16}) ([r-][w-][x-][ps]) ([0-9a-f]{8}) "
        r"([0-9a-f]{2}):([0-9a-f]{2}) (\d+) *(.*)"
    )
    lines = [re.fullmatch(pattern, line) for line in text.splitlines()]
    assert all(lines)
    paths = {match.group(8) for match in lines if match}
    assert os.path.realpath(shutil.which("cat") or "") in paths
    assert {"[stack]", "[heap]"} <= paths
    assert not [path for path in paths if "python" in path or "kvm" in path]
    spans = [(int(m.group(1), 16), int(m.group(2), 16)) for m in lines if m]
    assert spans == sorted(spans)
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))


def test_the_c_library_finds_the_stack_of_the_first_thread(guest: Run, native: Run) -> None:
    """pthread_getattr_np reads /proc/self/maps."""
    script = """
import ctypes
c = ctypes.CDLL(None)
attributes = ctypes.create_string_buffer(64)
c.pthread_self.restype = ctypes.c_void_p
print(c.pthread_getattr_np(ctypes.c_void_p(c.pthread_self()), attributes))
place, size = ctypes.c_void_p(), ctypes.c_size_t()
print(c.pthread_attr_getstack(attributes, ctypes.byref(place), ctypes.byref(size)))
environ = ctypes.c_void_p.in_dll(c, "environ").value
end = ctypes.c_void_p.in_dll(c, "__libc_stack_end").value
print(place.value < end < place.value + size.value, size.value >= 1 << 20)
"""
    expected, got = native(*PYTHON, script), guest(*PYTHON, script)
    assert got.stdout == expected.stdout
    assert b"True True" in got.stdout


def test_auxv_agrees_with_the_stack(guest: Run) -> None:
    """AT_HWCAP (16) aside, of which glibc's getauxval tells something else."""
    script = (
        "import ctypes; data = open('/proc/self/auxv', 'rb').read();"
        "words = memoryview(data).cast('Q').tolist(); pairs = dict(zip(words[::2], words[1::2]));"
        "get = ctypes.CDLL(None).getauxval; get.restype = ctypes.c_ulong;"
        "same = [get(ctypes.c_ulong(k)) == v for k, v in pairs.items() if k not in (0, 16)];"
        "print(all(same), pairs[6])"
    )
    assert guest(*PYTHON, script).stdout == b"True 4096\n"


def test_descriptors_begin_where_they_natively_do(guest: Run, native: Run) -> None:
    script = "import os; print(os.open('/etc/passwd', 0), os.dup(0), os.pipe())"
    assert guest(*PYTHON, script).stdout == native(*PYTHON, script).stdout


def test_descriptors_of_the_vmm_are_closed_to_the_program(guest: Run) -> None:
    script = """
import os
print(sorted(map(int, os.listdir("/proc/self/fd"))))
os.closerange(3, 1 << 20)
for fd in range(3, 20000):
    try:
        os.close(fd)
        print("closed", fd)
    except OSError:
        pass
print("alive", os.getpid() > 0)
"""
    got = guest(*PYTHON, script)
    assert got.stdout == b"[0, 1, 2, 3]\nalive True\n"
    assert got.returncode == 0


def test_limits_are_the_programs(guest: Run, native: Run) -> None:
    script = """
import resource
for which in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_STACK):
    print(resource.getrlimit(which))
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 31))
print(resource.getrlimit(resource.RLIMIT_AS))
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 1000))
print(resource.getrlimit(resource.RLIMIT_NOFILE))
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 100))
except ValueError as error:
    print(error)
"""
    assert guest(*PYTHON, script).stdout == native(*PYTHON, script).stdout


def test_the_limit_on_descriptors_holds(guest: Run, native: Run) -> None:
    """setrlimit(2), RLIMIT_NOFILE: lowered with all taken, in a child, and raised again."""
    script = """
import fcntl, os, resource
def trying(what):
    try:
        return what()
    except OSError as error:
        return error.errno
def count():
    opened = []
    while len(opened) < 200 and (fd := trying(lambda: os.open("/dev/null", 0))) != 24:
        opened.append(fd)
    return opened
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (16, hard))
opened = count()
print(opened, trying(lambda: fcntl.fcntl(0, fcntl.F_DUPFD, 16)), trying(lambda: os.dup2(1, 16)))
child = os.fork()
if not child:
    print(count(), trying(lambda: os.dup2(1, 15)), flush=True)
    os._exit(3)
print(os.waitpid(child, 0)[1])
print(os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1000), hard))
more = count()
print(more, [trying(lambda: os.dup2(1, number)) for number in (16, 300, 511)])
"""
    assert guest(*PYTHON, script).stdout == native(*PYTHON, script).stdout


def test_numbers_in_the_usual_range_are_the_programs(guest: Run, native: Run) -> None:
    """dup2(2): any number below the limit, as far as descriptors of ours can be beyond."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = min(soft - 512, 4096)
    if most < 100:
        pytest.skip("a low limit on descriptors")
    script = f"import os\nprint(sum(os.dup2(1, number) for number in range(3, {most})))"
    assert guest(*PYTHON, script).stdout == native(*PYTHON, script).stdout


def test_the_processor_it_sees_is_x86_64_v2(guest: Run, backend: str) -> None:
    """The loader's own list (ld.so --help) names what CPUID lets programs use."""
    skip_on_pvm(backend, "programs execute CPUID on the host's own processor")
    loader = "/lib64/ld-linux-x86-64.so.2"
    if not os.path.exists(loader):
        pytest.skip("no glibc")
    text = guest(loader, "--help").stdout.decode()
    assert re.search(r"x86-64-v2 \(supported, searched\)", text)
    assert not re.search(r"x86-64-v[34] \(supported", text)
