"""The room stays thin: what it does not need at once, it does not load."""

from __future__ import annotations

import subprocess
import sys

PROBE = """
import sys
from datetime import UTC, datetime
from mailstrom.message import compose
compose(
    b"From: a@b.example\\r\\nTo: c@d.example\\r\\nSubject: =?utf-8?q?x?=\\r\\n\\r\\nx\\r\\n",
    now=datetime.now(UTC), id_domain_fallback="x.example",
)
print(*sorted(sys.modules))
"""


def test_ready_bytes_are_composed_without_the_heavy_modules() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", PROBE], check=True, capture_output=True, text=True, timeout=60
    ).stdout.split()
    assert "mailstrom.message.compose" in loaded
    heavy = {"asyncio", "apsw", "dns", "email", "idna", "socket", "ssl", "structlog", "uuid"}
    assert not heavy & set(loaded)
