"""The host's hypervisor, where it opens."""

from __future__ import annotations

import pytest

from trapline.kvm import Kvm, open_kvm


def open_host() -> Kvm:
    """The real /dev/kvm, or a skip that says why there is none."""
    try:
        return open_kvm("host")
    except OSError as error:
        pytest.skip(f"/dev/kvm does not open: {error}")
