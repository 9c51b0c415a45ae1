"""nodemailer, of Debian's package, in Node.js as installed."""

from __future__ import annotations

import contextlib
import json
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

SCRIPT = Path(__file__).with_suffix(".js")


class Nodemailer:
    """A process for each case."""

    def __init__(self, station: Station, folder: Path) -> None:
        self._module = debian.nodemailer().program("usr/share/nodejs/nodemailer")
        self._node = installed("node")
        self._station, self._folder = station, folder
        about = json.loads((self._module / "package.json").read_text(encoding="utf-8"))
        node = version([self._node, "--version"], environ())
        self.program = f"nodemailer {about['version']}, Node.js {node.removeprefix('v')}"

    def send(self, case: Case, contents: list[bytes]) -> Said:
        """The contents as they are."""
        files = [self._folder / f"content-{number}" for number in range(len(contents))]
        for file, content in zip(files, contents, strict=True):
            file.write_bytes(content)
        dsn = None
        if "DSN" in case.asks:
            dsn = {
                "return": "headers", "id": "b1", "notify": ["success", "failure"],
                "recipient": "bob@clients.test",
            }  # fmt: skip
        order = {
            "module": str(self._module), "host": self._station.address,
            "port": self._station.line(case).port, "tls": case.tls, "auth": case.auth,
            "authority": str(self._station.files.authority), "user": USER if case.auth else "",
            "password": case.password, "sender": case.sender, "recipients": case.addresses,
            "eightbit": "8BITMIME" in case.asks, "dsn": dsn, "files": list(map(str, files)),
        }  # fmt: skip
        return ran([self._node, SCRIPT], json.dumps(order).encode(), environ(), cwd=self._folder)


@contextlib.contextmanager
def _open(station: Station, folder: Path) -> Iterator[Nodemailer]:
    yield Nodemailer(station, folder)


KIND = Kind(
    name="nodemailer", open=_open,
    cannot={
        "CHUNKING": "nodemailer knows no BDAT",
        "PIPELINING": "nodemailer waits for each reply",
    },
)  # fmt: skip


def run(plan: Plan) -> Iterator[Row]:
    """Every case."""
    yield from judge.run(KIND, plan)
