from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.shims.calling import Spool


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path)
    yield made
    made.ms.close()
