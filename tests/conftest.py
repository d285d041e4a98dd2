"""What holds for every test of this suite."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# a busy machine is slow, not wrong
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
