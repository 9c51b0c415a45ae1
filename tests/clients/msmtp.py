"""msmtp, what many machines have as their sendmail, of Debian's package."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.clients import judge
from tests.clients.cases import USER, Case
from tests.clients.command import ran, version
from tests.clients.judge import Kind, Said
from tests.clients.station import Station
from tests.clients.table import Row
from tests.support import debian
from tests.support.trial import Plan


class Msmtp:
    """A process for each message; it reads lines as a sendmail does, with LF."""

    def __init__(self, station: Station, folder: Path) -> None:
        tree = debian.msmtp()
        self._program = tree.program("usr/bin/msmtp")
        self._environ = tree.environ(HOME=str(folder))
        self._station, self._folder = station, folder
        self.program = version([self._program, "--version"], self._environ)

    def send(self, case: Case, contents: list[bytes]) -> Said:
        """The content from standard input, the password from a command, as it asks for one."""
        words: list[str | Path] = [
            self._program, "--file=/dev/null", f"--host={self._station.address}",
            f"--port={self._station.line(case).port}", "--domain=client.test", "--timeout=50",
            f"--from={case.sender or '<>'}", f"--tls={'on' if case.tls else 'off'}",
        ]  # fmt: skip
        if case.tls:
            words += [
                f"--tls-starttls={'on' if case.tls == 'starttls' else 'off'}",
                f"--tls-trust-file={self._station.files.authority}",
            ]
        if case.auth:
            words += [
                f"--auth={case.auth.lower()}", f"--user={USER}",
                f"--passwordeval=echo '{case.password}'",
            ]  # fmt: skip
        if "DSN" in case.asks:
            words += ["--dsn-notify=success,failure", "--dsn-return=headers"]
        content = contents[0].replace(b"\r\n", b"\n")
        return ran([*words, "--", *case.addresses], content, self._environ, cwd=self._folder)


@contextlib.contextmanager
def _open(station: Station, folder: Path) -> Iterator[Msmtp]:
    yield Msmtp(station, folder)


KIND = Kind(
    name="msmtp", open=_open,
    cannot={
        "CHUNKING": "msmtp knows no BDAT",
        "8BITMIME": "msmtp says no BODY",
        "SMTPUTF8": "msmtp says no SMTPUTF8",
        "DSN": "msmtp sends NOTIFY and RET, and neither ENVID nor ORCPT",
        "several messages over one connection": "msmtp sends one message",
    },
)  # fmt: skip


def run(plan: Plan) -> Iterator[Row]:
    """Every case."""
    yield from judge.run(KIND, plan)
