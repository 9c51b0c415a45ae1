"""curl, as installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.clients import judge
from tests.clients.cases import USER, Case
from tests.clients.command import environ, installed, ran, version
from tests.clients.judge import Kind, Said
from tests.clients.station import Station
from tests.clients.table import Row
from tests.support.trial import Plan


class Curl:
    """A process for each message."""

    def __init__(self, station: Station, folder: Path) -> None:
        self._curl = installed("curl")
        self._station, self._folder = station, folder
        self.program = " ".join(version([self._curl, "--version"], environ()).split()[:2])

    def send(self, case: Case, contents: list[bytes]) -> Said:
        """The content from standard input."""
        scheme = "smtps" if case.tls == "implicit" else "smtp"
        port = self._station.line(case).port
        words: list[str | Path] = [
            self._curl, "--silent", "--show-error", "--verbose", "--max-time", "50", "--noproxy",
            "*", f"{scheme}://{self._station.address}:{port}/client.test",
            "--mail-from", case.sender, "--upload-file", "-",
        ]  # fmt: skip
        for address in case.addresses:
            words += ["--mail-rcpt", address]
        if case.tls:
            words += ["--cacert", self._station.files.authority]
        if case.tls == "starttls":
            words += ["--ssl-reqd"]
        if case.auth:
            words += ["--user", f"{USER}:{case.password}", "--login-options", f"AUTH={case.auth}"]
        return ran(words, contents[0], environ(), cwd=self._folder)


@contextlib.contextmanager
def _open(station: Station, folder: Path) -> Iterator[Curl]:
    yield Curl(station, folder)


KIND = Kind(
    name="curl", open=_open,
    cannot={
        "CHUNKING": "curl knows no BDAT",
        "PIPELINING": "curl waits for each reply",
        "DSN": "curl has no option for parameters",
        "8BITMIME": "curl has no option for parameters",
        "several messages over one connection": "curl has one content for a command line",
    },
)  # fmt: skip


def run(plan: Plan) -> Iterator[Row]:
    """Every case."""
    yield from judge.run(KIND, plan)
