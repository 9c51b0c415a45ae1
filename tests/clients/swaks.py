"""swaks, the SMTP tester, of Debian's package."""

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
from tests.support import debian
from tests.support.trial import Plan


class Swaks:
    """A process for each message."""

    def __init__(self, station: Station, folder: Path) -> None:
        tree = debian.swaks()
        modules = [str(path) for path in sorted(tree.root.glob("usr/lib/*/perl5/*"))]
        self._environ = environ(
            PERL5LIB=":".join(modules), LD_LIBRARY_PATH=tree.library_path, HOME=str(folder)
        )
        self._command = [installed("perl"), tree.program("usr/bin/swaks")]
        self._station, self._folder = station, folder
        said = version([*self._command, "--version"], self._environ)
        self.program = f"swaks {said.partition('version ')[2].split()[0]}"

    def send(self, case: Case, contents: list[bytes]) -> Said:
        """The content from a file, as it is."""
        content = self._folder / "content"
        content.write_bytes(contents[0].removesuffix(b"\r\n"))  # which it adds
        words: list[str | Path] = [
            *self._command, "--server", self._station.address, "--port",
            str(self._station.line(case).port), "--helo", "client.test", "--from",
            case.sender or "<>", "--to", ",".join(case.addresses), "--data", f"@{content}",
            "--timeout", "50", "--hide-send",
        ]  # fmt: skip
        words += {"": [], "starttls": ["--tls"], "implicit": ["--tls-on-connect"]}[case.tls]
        if case.tls:
            words += ["--tls-verify", "--tls-ca-path", self._station.files.authority]
        if case.auth:
            words += ["--auth", case.auth, "--auth-user", USER, "--auth-password", case.password]
        if "PIPELINING" in case.asks:
            words += ["--pipeline"]
        return ran(words, b"", self._environ, cwd=self._folder)


@contextlib.contextmanager
def _open(station: Station, folder: Path) -> Iterator[Swaks]:
    yield Swaks(station, folder)


KIND = Kind(
    name="swaks", open=_open,
    cannot={
        "CHUNKING": "swaks knows no BDAT",
        "8BITMIME": "swaks has no option for parameters",
        "SMTPUTF8": "swaks has no option for parameters",
        "DSN": "swaks has no option for parameters",
        "empty lines and no text": "swaks adds a line to a message without text",
        "several messages over one connection": "swaks sends one message",
    },
)  # fmt: skip


def run(plan: Plan) -> Iterator[Row]:
    """Every case."""
    yield from judge.run(KIND, plan)
