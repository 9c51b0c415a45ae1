"""Shared test modules assert like tests: pytest must rewrite them before anything imports them.

Here, since tests of other folders use them, too, and whoever is collected first imports first.

No property has a deadline, nor a pace at which its examples must be drawn: a machine that stands
still for a moment has found no fault.

Tests may run in several processes (``-n auto``): one more than there are processors, since many
tests wait for processes of their own. What has tests of minutes is begun first.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from tests.support.dealing import dealt

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

_NAMES = (
    "changes", "clients", "clock", "copies", "doubt", "facts", "finding", "freshness", "lanes",
    "lifecycle", "notices", "reports", "retention", "routes", "settling", "streams", "turns",
    "upkeep",
)  # fmt: skip
for _name in _NAMES:
    pytest.register_assert_rewrite(f"tests.storage.contract_{_name}")
pytest.register_assert_rewrite("tests.storage.spool", "tests.storage.machine")

_LONG_S = 180
"""A test that may take so long, by its ``timeout``, is begun early."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What ``-n auto`` means here."""
    return len(os.sched_getaffinity(0)) + 1


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deal long tests out to all processes; each orders the same list, shuffled before, so."""
    processes = int(getattr(config, "workerinput", {}).get("workercount", 1))
    items[:] = dealt(items, _is_long, processes)


def _is_long(item: pytest.Item) -> bool:
    marker = item.get_closest_marker("timeout")
    return marker is not None and bool(marker.args) and float(marker.args[0]) >= _LONG_S
