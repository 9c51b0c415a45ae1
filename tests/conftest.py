"""Shared test modules assert like tests: pytest must rewrite them before anything imports them.

Here, since tests of other folders use them, too, and whoever is collected first imports first.

No property has a deadline, nor a pace at which its examples must be drawn: a machine that stands
still for a moment has found no fault.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

_NAMES = (
    "changes", "clients", "clock", "copies", "doubt", "finding", "freshness", "lanes", "lifecycle",
    "retention", "routes", "settling", "streams", "turns", "upkeep",
)  # fmt: skip
for _name in _NAMES:
    pytest.register_assert_rewrite(f"tests.storage.contract_{_name}")
pytest.register_assert_rewrite("tests.storage.spool", "tests.storage.machine")
