"""How Hypothesis runs here: no deadline, since the machine may be busy; failures reproducible."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("trapline", deadline=None, print_blob=True)
settings.load_profile("trapline")
