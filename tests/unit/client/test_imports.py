"""The client is thin: what a fresh process loads to open a spool, and what only to send."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEAVY = """
asyncio dns aiosmtplib structlog msgspec click rich cryptography email idna tomllib ssl sqlite3
logging mailstrom.config mailstrom.smtp mailstrom_workers mailstrom.message
mailstrom.causes mailstrom.client.binding mailstrom.client.reasons mailstrom.storage.facts
"""

SCRIPT = """
import sys
from_the_start = set(sys.modules)
import mailstrom
assert not [name for name in sys.modules if name.startswith("mailstrom.")]
client = mailstrom.Mailstrom(sys.argv[1])
opened = set(sys.modules) - from_the_start
client.query("SELECT 1")
asked = set(sys.modules) - from_the_start
client.send(b"From: a@example.com\\r\\nTo: b@example.org\\r\\n\\r\\nbody\\r\\n")
sent = set(sys.modules) - from_the_start
client.close()
for names in (opened, asked, sent):
    print(" ".join(sorted(names)))
"""


def test_opening_loads_apsw_and_little_else_and_email_comes_with_the_first_send(
    tmp_path: Path,
) -> None:
    ran = subprocess.run(
        [sys.executable, "-P", "-S", "-c", SCRIPT, str(tmp_path / "spool.db")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    assert ran.returncode == 0, ran.stderr
    opened, asked, sent = (set(line.split()) for line in ran.stdout.splitlines())
    assert "apsw" in opened
    heavy = set(HEAVY.split())
    assert not heavy & opened
    assert not heavy & asked
    assert heavy & sent <= {"email", "mailstrom.message"}
    assert "mailstrom.message" in sent
