"""What runs once per mail loads little, and what only -bs or mailq needs is left to those."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mailstrom
from mailstrom import Mailstrom

PROBE = """
import sys
from mailstrom.shims.sendmail import run
spool = sys.argv.pop()
code = run("sendmail", sys.argv[1:], {"MAILSTROM_STORE": spool})
print(*sorted(sys.modules), file=sys.stderr)
sys.exit(code)
"""
HEAVY = {
    "asyncio", "click", "rich", "structlog", "dns", "msgspec", "aiosmtplib", "ssl", "socket",
    "argparse", "email", "logging", "subprocess", "dataclasses", "inspect", "hashlib", "tomllib",
    "urllib", "idna", "cryptography", "concurrent.futures",
}  # fmt: skip


@pytest.mark.parametrize("words", [["-ti"], ["-fann@a.example", "bob@b.example"], ["-bp"]])
def test_little_is_loaded(tmp_path: Path, words: list[str]) -> None:
    spool = tmp_path / "spool.db"
    Mailstrom(spool).close()
    ended = subprocess.run(
        [sys.executable, "-P", "-c", PROBE, *words, str(spool)],
        input=b"To: bob@b.example\nSubject: x\n\nhello\n",
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(mailstrom.__file__).parent.parent)},
    )
    assert ended.returncode == 0, ended.stderr
    loaded = set(ended.stderr.decode().split())
    assert "mailstrom.shims.sendmail" in loaded
    assert not HEAVY & loaded
    assert not {"mailstrom.client.api", "mailstrom.cli", "mailstrom.smtp"} & loaded
