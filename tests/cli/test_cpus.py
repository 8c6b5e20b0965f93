"""`trapline cpus`, and the models that `--cpu` names."""

from __future__ import annotations

import pytest

from tests.cli.run import trapline
from tests.kvm.guest import KERNEL_CODE, long_mode
from trapline.arch import cpuid
from trapline.arch.msr import (
    DEBUGCTL_BLD,
    IA32_CORE_CAPABILITIES,
    IA32_DEBUGCTL,
    TEST_CTRL,
    TEST_CTRL_SPLIT_LOCK_AC,
)
from trapline.kvm import abi, exits, open_kvm
from trapline.processor import CHOICES, FEATURES, MODELS, HostLimit, model

# #DB for bus locks, #AC for split locks, exits for bus locks.
TABLE = {
    "legacy": (False, False, False),
    "icelake": (False, True, False),
    "sapphire-rapids": (True, True, True),
    "zen4": (False, False, False),
    "zen5": (True, False, True),
    "max": (True, True, True),
}


def test_the_table_says_what_each_has():
    lines = trapline("cpus").stdout.splitlines()
    assert lines[0].split() == ["MODEL", "VENDOR", "#DB", "#AC", "EXIT"]
    rows = {name: rest for name, _, *rest in map(str.split, lines[1:])}
    assert rows == {
        name: ["yes" if has else "-" for has in columns] for name, columns in TABLE.items()
    }


@pytest.mark.parametrize("name", TABLE)
def test_guests_of_each_model_have_what_the_table_says(name):
    """The MSRs themselves, not the table's sources."""
    has_db, has_ac, has_exit = TABLE[name]
    kvm = open_kvm(cpu=name)
    vcpu = long_mode(kvm, b"\xf4").vcpu
    assert vcpu.set_msrs({IA32_DEBUGCTL: DEBUGCTL_BLD}) == has_db
    assert vcpu.set_msrs({TEST_CTRL: TEST_CTRL_SPLIT_LOCK_AC}) == has_ac
    assert bool(kvm.check_extension(abi.Capability.X86_BUS_LOCK_EXIT)) == has_exit


def test_the_features_are_listed_with_the_models_that_have_them():
    lines = trapline("cpus", "--features").stdout.splitlines()
    assert lines[0].split() == ["FEATURE", "MODELS"]
    rows = dict(line.split(maxsplit=1) for line in lines[1:])
    assert rows.keys() == set(CHOICES) < FEATURES.keys()
    assert not rows.keys() & {"avx", "aes", "rdrand", "sha"}  # nothing behind them
    assert rows["bus_lock_detect"] == "sapphire-rapids, zen5, max"
    assert rows["cx16"] == "all"
    assert rows["tsc_deadline"] == "-"


# -- MODEL,+feature,-feature ----------------------------------------------------------------------


def test_a_feature_can_be_added_and_taken_away():
    for text, has in (
        ("legacy,+bus_lock_detect", True),
        ("zen4,+bus-lock-detect", True),
        ("max,-bus_lock_detect", False),
        ("zen5,-bus_lock_detect,+bus_lock_detect", True),
    ):
        kvm = open_kvm(cpu=text)
        assert cpuid.has(kvm.get_supported_cpuid(), cpuid.BUS_LOCK_DETECT) == has
        assert long_mode(kvm, b"\xf4").vcpu.set_msrs({IA32_DEBUGCTL: DEBUGCTL_BLD}) == has
    assert not model("sapphire-rapids,-bus_lock_detect").has(cpuid.BUS_LOCK_DETECT)
    assert MODELS["sapphire-rapids"].has(cpuid.BUS_LOCK_DETECT)  # itself as it was


def test_split_lock_ac_goes_with_its_enumeration():
    """IA32_CORE_CAPABILITIES bit 5 is what says that TEST_CTRL is there."""
    kvm = open_kvm(cpu="legacy,+core_capabilities")
    guest = long_mode(kvm, b"\x0f\x32\xf4")  # rdmsr; hlt
    guest.vcpu.regs.rcx = IA32_CORE_CAPABILITIES
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert (guest.vcpu.regs.rip, guest.vcpu.regs.rax) == (KERNEL_CODE + 3, 1 << 5)
    without = open_kvm(cpu="sapphire-rapids,-core_capabilities")
    assert long_mode(without, b"\xf4").vcpu.set_msrs({TEST_CTRL: 0}) == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("zen55", "There is no processor model 'zen55' (did you mean 'zen5'?); there are legacy, "),
        ("486", "There is no processor model '486'; there are legacy, "),
        ("max,+avx", "avx is not implemented by this processor"),
        ("zen5,-sha,+RDRAND", "rdrand is not implemented by this processor"),
        ("max,+bus_lok_detect", "no feature 'bus_lok_detect' (did you mean 'bus_lock_detect'?)."),
        ("max,-zzz", "There is no feature 'zzz'."),
        ("max,smap", "'smap' is neither +FEATURE nor -FEATURE."),
        ("max,", "'' is neither +FEATURE nor -FEATURE."),
    ],
)
def test_a_name_nobody_knows_is_answered_with_a_hint(text, sentence):
    with pytest.raises(HostLimit) as caught:
        model(text)
    assert sentence in str(caught.value)


def test_the_command_says_it_in_one_line(tmp_path):
    image = tmp_path / "guest.bin"
    image.write_bytes(b"\xf4")
    done = trapline("run", "--cpu", "zen5,+bus_lock_detec", image)
    assert done.returncode == 2
    assert "did you mean 'bus_lock_detect'?" in done.stderr
    assert "trapline cpus" in done.stderr
    assert "Traceback" not in done.stderr


# -- quirks ---------------------------------------------------------------------------------------

# mov ecx, 1d9h; mov eax, 4; xor edx, edx; #GP leads to `out 0f4h, 2`, success to `out 0f4h, 1`.
SETS_BLD = bytes.fromhex(
    "66b9d9010000 66b804000000 6631d2 c7063400217c c70636000000 0f30 b001e6f4 b002e6f4"
)


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ((), 3),
        (("--quirk", "svm-no-bus-lock-detect"), 5),
        (("--quirk", "debugctl-not-listed", "--quirk", "svm-no-bus-lock-detect"), 5),
        (("--quirk", "dr6-bus-lock-set"), 3),
    ],
)
def test_an_image_can_be_run_on_upstreams_quirks(tmp_path, options, status):
    image = tmp_path / "guest.bin"
    image.write_bytes(SETS_BLD)
    done = trapline("run", "--cpu", "zen5", *options, image)
    assert (done.returncode, done.stderr) == (status, "")


def test_a_quirk_nobody_knows_is_answered_with_those_there_are(tmp_path):
    done = trapline("run", "--quirk", "dr7", tmp_path)
    assert done.returncode == 2
    assert "invalid choice: 'dr7'" in done.stderr
    assert "dr6-bus-lock-set" in done.stderr
