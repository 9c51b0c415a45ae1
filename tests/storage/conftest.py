"""Contract modules assert like tests: pytest must rewrite them before they are imported."""

from __future__ import annotations

import pytest

for _name in ("clients", "routes", "lanes", "settling", "upkeep", "lifecycle"):
    pytest.register_assert_rewrite(f"tests.storage.contract_{_name}")
pytest.register_assert_rewrite("tests.storage.spool")
