"""Shared test modules assert like tests: pytest must rewrite them before anything imports them.

Here, since tests of other folders use them, too, and whoever is collected first imports first.
"""

from __future__ import annotations

import pytest

_NAMES = (
    "changes", "clients", "clock", "copies", "doubt", "finding", "freshness", "lanes", "lifecycle",
    "retention", "routes", "settling", "streams", "turns", "upkeep",
)  # fmt: skip
for _name in _NAMES:
    pytest.register_assert_rewrite(f"tests.storage.contract_{_name}")
pytest.register_assert_rewrite("tests.storage.spool", "tests.storage.machine")
