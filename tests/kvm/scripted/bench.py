"""A VM over a script, and the vCPU in it."""

from __future__ import annotations

from typing import Any

from tests.kvm.scripted.backend import ScriptedBackend, ScriptedPlatform
from trapline.kvm import exits
from trapline.kvm.system import SoftwareKvm


class Bench:
    """A VM with one vCPU, and the script below it."""

    def __init__(self) -> None:
        self.platforms: list[ScriptedPlatform] = []
        self.kvm = SoftwareKvm(self._platform)
        self.vm = self.kvm.create_vm()
        self.vcpu = self.vm.create_vcpu(0)
        self.backend.asked.clear()

    def _platform(self) -> ScriptedPlatform:
        self.platforms.append(ScriptedPlatform())
        return self.platforms[-1]

    @property
    def platform(self) -> ScriptedPlatform:
        return self.platforms[-1]

    @property
    def backend(self) -> ScriptedBackend:
        return self.platform.made[0]

    def run(self, *script: Any) -> exits.Exit:
        """Each of the script is a function of (vcpu, backend), or what the entry answers."""
        self.backend.script = [one if callable(one) else lambda *_, a=one: a for one in script]
        exit = self.vcpu.run()
        assert not self.backend.script, "the guest was not entered as often as it was to be"
        return exit

    def asked(self) -> list[tuple[Any, ...]]:
        asked, self.backend.asked[:] = list(self.backend.asked), []
        return asked
