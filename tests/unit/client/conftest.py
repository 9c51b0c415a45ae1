"""A client on a spool of its own, and the smallest message."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mailstrom import Mailstrom

MESSAGE = b"From: a@example.com\r\nTo: b@example.org\r\nSubject: hello\r\n\r\nbody\r\n"


@pytest.fixture
def message() -> bytes:
    return MESSAGE


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "spool.db")


@pytest.fixture
def client(path: str) -> Iterator[Mailstrom]:
    with Mailstrom(path) as opened:
        yield opened
