"""The shims as programs call them: a process, words, standard input."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import mailstrom
from mailstrom import Mailstrom

TREE = str(Path(mailstrom.__file__).parent.parent)
TIMEOUT = 60.0


class Spool:
    """A spool and programs that hand mail to it.

    Args:
        folder: where it lies.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "spool.db"
        self.ms = Mailstrom(self.path)
        self.folder = folder

    def environ(self, **more: str) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return {**kept, "PYTHONPATH": TREE, "MAILSTROM_STORE": str(self.path), **more}

    def call(
        self,
        *words: str,
        text: bytes = b"",
        environ: Mapping[str, str] | None = None,
        module: str = "sendmail",
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-P", "-m", f"mailstrom.shims.{module}", *words],
            input=text,
            capture_output=True,
            timeout=TIMEOUT,
            env=self.environ() if environ is None else dict(environ),
            cwd=self.folder,
        )

    def taken(self, *words: str, text: bytes = b"") -> tuple[str, list[str], bytes]:
        """Sender, recipients and content of a message that has to be accepted in silence."""
        before = {row[0] for row in self.ms.query("SELECT id FROM messages")}
        done = self.call(*words, text=text)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        (id,) = {row[0] for row in self.ms.query("SELECT id FROM messages")} - before
        status = self.ms.status(id)
        content = self.ms.raw(id)
        assert content is not None
        return status.sender, list(status.recipients), content

    def refused(self, code: int, *words: str, text: bytes = b"", said: str = "") -> None:
        """What must leave nothing, with one sentence on standard error."""
        before = self.ms.query("SELECT count(*) FROM messages")
        done = self.call(*words, text=text)
        assert (done.returncode, done.stdout) == (code, b""), done.stderr
        line = done.stderr.decode()
        assert line.startswith("mailstrom-sendmail: ")
        assert line.count("\n") == 1
        assert said in line
        assert self.ms.query("SELECT count(*) FROM messages") == before
