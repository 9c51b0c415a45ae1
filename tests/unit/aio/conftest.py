"""Both kinds of store, and the smallest message."""

from __future__ import annotations

from pathlib import Path

import pytest

MESSAGE = b"From: a@example.com\r\nTo: b@example.org\r\nSubject: hello\r\n\r\nbody\r\n"


@pytest.fixture
def message() -> bytes:
    return MESSAGE


@pytest.fixture(params=["file", "memory:"])
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "spool.db") if request.param == "file" else str(request.param)
