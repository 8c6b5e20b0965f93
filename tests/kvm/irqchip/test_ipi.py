"""Interrupts from one processor to another: fixed, NMI, INIT and start-up."""

from __future__ import annotations

import pytest

from tests.kvm.irqchip import guest
from tests.kvm.irqchip.guest import END, FOREVER, HLT, RESULTS, STI, Machine, command
from trapline.arch import apic
from trapline.arch.apic import Delivery, Shorthand
from trapline.kvm import Kvm, abi, exits

COUNT = RESULTS + 0x10
READY = RESULTS + 0x14
VECTOR = 0x40


def counting(machine: Machine) -> Machine:
    machine.handle(VECTOR, guest.increment(COUNT))
    return machine


def receiver() -> bytes:
    return guest.start() + guest.increment(READY) + STI + guest.wait_for(COUNT, 1000)


def test_a_processor_interrupts_itself(any_kvm: Kvm) -> None:
    """SDM 3A, "SELF IPI Register", and the shorthand and the own ID to the same effect."""
    code = guest.start() + STI
    code += guest.wrmsr(guest.x2apic(apic.SELF_IPI), VECTOR) + guest.wait_for(COUNT, 1)
    code += command(Delivery.FIXED, VECTOR, Shorthand.SELF) + guest.wait_for(COUNT, 2)
    code += command(Delivery.FIXED, VECTOR, destination=0) + guest.wait_for(COUNT, 3)
    machine = counting(Machine(any_kvm, code + END))
    assert guest.is_end(machine.run())
    assert machine.word(0x10) == 3


@pytest.mark.parametrize(
    ("shorthand", "destination", "expected"),
    [
        (Shorthand.OTHERS, 0, 2),
        (Shorthand.ALL, 0, 3),
        (Shorthand.NONE, 1, 1),
        (Shorthand.NONE, 0xFFFFFFFF, 3),
        (Shorthand.NONE, 7, 0),
    ],
    ids=["others", "all", "one", "broadcast", "nobody"],
)
def test_destinations(kvm: Kvm, shorthand: int, destination: int, expected: int) -> None:
    """Then one for the sender, which shows that nothing more comes."""
    code = guest.start() + STI + guest.wait_for(READY, 2)
    code += command(Delivery.FIXED, VECTOR, shorthand, destination)
    code += guest.wait_for(COUNT, expected)
    machine = counting(Machine(kvm, code + END, receiver(), receiver()))
    assert guest.is_end(machine.run(1, 2))
    assert machine.word(0x10) == expected


def test_logical_destinations_are_bits_of_a_cluster(kvm: Kvm) -> None:
    """SDM 3A, "Logical Destination Mode in x2APIC Mode": bits 15:0 name processors 0 to 15."""
    code = guest.start() + STI + guest.wait_for(READY, 2)
    code += command(Delivery.FIXED | 8, VECTOR, destination=0b101) + guest.wait_for(COUNT, 2)
    code += command(Delivery.FIXED | 8, VECTOR, destination=0b110) + guest.wait_for(COUNT, 4)
    machine = counting(Machine(kvm, code + END, receiver(), receiver()))
    assert guest.is_end(machine.run(1, 2))
    assert machine.word(0x10) == 4


def test_lowest_priority_reaches_one_at_a_time_and_each_in_turn(software: Kvm) -> None:
    code = guest.start() + guest.wait_for(READY, 2)
    for sent in range(1, 5):
        code += command(Delivery.LOWEST_PRIORITY | 8, VECTOR, destination=0b110)
        code += guest.wait_for(COUNT, sent)
    machine = Machine(software, code + END, receiver(), receiver())
    own = guest.at("ff 84 24", 0x80)  # inc dword [rsp + 80h]: each has its stack
    machine.handle(VECTOR, own + guest.increment(COUNT))
    assert guest.is_end(machine.run(1, 2))
    frame = 5 * 8
    counts = [machine.memory.quad(guest.STACKS + (n + 1) * 0x1000 - frame + 0x80) for n in (1, 2)]
    assert counts == [2, 2]


def test_nmis_are_sent(any_kvm: Kvm) -> None:
    """They need neither an enabled APIC nor interrupts on."""
    code = guest.start() + guest.wait_for(READY, 1)
    code += command(Delivery.NMI, destination=1) + guest.wait_for(COUNT, 1)
    waiting = guest.increment(READY) + guest.wait_for(COUNT, 1000)
    machine = Machine(any_kvm, code + END, waiting)
    machine.handle(2, guest.increment(COUNT))
    assert guest.is_end(machine.run(1))
    assert machine.word(0x10) == 1


def test_a_halted_processor_is_woken(any_kvm: Kvm) -> None:
    """Forty times to and fro: each sleeps until the other has answered."""
    machine = Machine(any_kvm, *(ping_pong(number) for number in (0, 1)))
    for vector, place in ((0x41, 0x20), (0x42, 0x24)):
        machine.handle(vector, guest.increment(RESULTS + place))
    assert guest.is_end(machine.run(1))
    assert (machine.word(0x20), machine.word(0x24)) == (20, 20)


def ping_pong(number: int) -> bytes:
    send = command(Delivery.FIXED, 0x42 if number == 0 else 0x41, destination=1 - number)
    own = RESULTS + (0x20 if number == 0 else 0x24)
    code = guest.start()
    if number == 0:
        code += guest.wait_for(READY, 1)
    else:
        code += guest.increment(READY)
    for turn in range(1, 21):
        wait = guest.halt_until(own, turn)
        code += send + wait if number == 0 else wait + send
    return code + (END if number == 0 else FOREVER)


@pytest.mark.parametrize("others", [1, 3])
def test_init_and_sipi_start_the_other_processors(any_kvm: Kvm, others: int) -> None:
    """SDM 3A, "Multiple-Processor (MP) Initialization": from real mode at 9000h on."""
    code = guest.start() + command(Delivery.INIT, shorthand=Shorthand.OTHERS)
    code += command(Delivery.STARTUP, 9, Shorthand.OTHERS) * 2  # the second finds them running
    code += guest.wait_for(COUNT, others)
    machine = Machine(any_kvm, code + END, waiting=others)
    machine.write_trampoline(guest.increment(COUNT) + HLT)
    aps = range(1, others + 1)
    assert all(machine.vcpus[n].get_mp_state() == abi.MpState.UNINITIALIZED for n in aps)
    assert guest.is_end(machine.run(*aps))
    assert (machine.word(0), machine.word(0x10)) == (others, others)
    states = {machine.vcpus[n].get_mp_state() for n in aps}
    assert states <= {abi.MpState.HALTED, abi.MpState.RUNNABLE}  # as far as each has come


def test_sipi_without_init_is_ignored(kvm: Kvm) -> None:
    code = guest.start() + command(Delivery.STARTUP, 9, Shorthand.OTHERS)
    machine = Machine(kvm, code + END, waiting=1)
    machine.write_trampoline(guest.increment(COUNT) + HLT)
    assert guest.is_end(machine.run(1))
    assert machine.vcpus[1].get_mp_state() == abi.MpState.UNINITIALIZED
    assert machine.ends[1] == exits.Interrupted()


def test_two_processors_count_with_a_lock(any_kvm: Kvm) -> None:
    """No increment is lost."""
    turns = 3000
    loop = guest.at("b9", turns)  # mov ecx, turns
    loop += guest.increment(COUNT) + b"\xff\xc9\x75\xf4"  # dec ecx; jnz
    machine = Machine(any_kvm, loop + guest.increment(READY) + guest.wait_for(READY, 2) + END,
                      loop + guest.increment(READY) + FOREVER)  # fmt: skip
    assert guest.is_end(machine.run(1))
    assert machine.word(0x10) == 2 * turns


def test_illegal_vectors_are_recorded(software: Kvm) -> None:
    """SDM 3A, "Error Handling": ESR bit 5, and the interrupt of the LVT error register."""
    code = guest.start() + guest.wrmsr(guest.x2apic(apic.LVT_ERROR), VECTOR) + STI
    code += command(Delivery.FIXED, 15, Shorthand.SELF) + guest.wait_for(COUNT, 1)
    code += guest.wrmsr(guest.x2apic(apic.ESR), 0)
    code += guest.store_msr(guest.x2apic(apic.ESR), RESULTS + 0x20)
    code += guest.wrmsr(guest.x2apic(apic.ESR), 0)
    code += guest.store_msr(guest.x2apic(apic.ESR), RESULTS + 0x28)
    machine = counting(Machine(software, code + END))
    assert guest.is_end(machine.run())
    assert machine.quad(0x20) == apic.ESR_SEND_ILLEGAL_VECTOR
    assert machine.quad(0x28) == 0
