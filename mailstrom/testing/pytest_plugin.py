"""Fixtures for applications that send mail; pytest finds them where Mailstrom is installed.

Contract. ``mailstrom_sink``: a server of the test's own that keeps what it gets.
``mailstrom_spool``: a spool of the test's own, in memory, which an application that calls
``Mailstrom()`` without a name takes as well. Together, ``mailstrom_spool.start(
config=mailstrom_sink.config)``, they are a whole engine. Nothing is loaded before a test asks.

``-p no:mailstrom`` turns them off. Must not know: what is tested.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mailstrom import Mailstrom
    from mailstrom.testing.sink import Sink


@pytest.fixture
def mailstrom_sink() -> Iterator[Sink]:
    """A mail server that keeps what it gets (``mailstrom.testing.Sink``)."""
    from mailstrom.testing.sink import Sink

    with Sink() as sink:
        yield sink


@pytest.fixture
def mailstrom_spool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mailstrom]:
    """A spool in memory that ``Mailstrom()`` opens in this process while the test runs."""
    import uuid

    from mailstrom import Mailstrom

    name = f"memory:{uuid.uuid4()}"
    monkeypatch.setenv("MAILSTROM_STORE", name)
    with Mailstrom(name) as spool:
        yield spool
