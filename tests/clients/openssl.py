"""openssl s_client: a person's hands, over TLS."""

from __future__ import annotations

import base64
import contextlib
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tests.clients import judge
from tests.clients.cases import USER, Case
from tests.clients.command import environ, installed, version
from tests.clients.judge import Kind, Said
from tests.clients.station import Station
from tests.clients.table import Row
from tests.support.trial import Plan

LIMIT_S = 60.0


class _Refused(Exception):
    """A reply that is not the one that lets a person go on."""


class Openssl:
    """A process for each message, typed into as a person would, one command after the other."""

    def __init__(self, station: Station, folder: Path) -> None:
        self._openssl = installed("openssl")
        self._station, self._folder = station, folder
        self.program = " ".join(version([self._openssl, "version"], environ()).split()[:2])

    def send(self, case: Case, contents: list[bytes]) -> Said:
        """All messages of a case in one session."""
        words = [
            str(self._openssl), "s_client", "-quiet", "-connect",
            f"{self._station.address}:{self._station.line(case).port}", "-CAfile",
            str(self._station.files.authority), "-verify_return_error", "-verify_ip",
            self._station.address,
        ]  # fmt: skip
        if case.tls == "starttls":
            words += ["-starttls", "smtp", "-name", "client.test"]
        with subprocess.Popen(
            words, env=environ(), cwd=self._folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as child:  # fmt: skip
            clock = threading.Timer(LIMIT_S, child.kill)
            clock.start()
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                self._typed(case, contents, child.stdin, child.stdout)
            except (_Refused, BrokenPipeError) as error:
                return Said(ok=False, words=str(error))
            finally:
                clock.cancel()
                child.kill()
                with contextlib.suppress(BrokenPipeError):
                    child.stdin.close()
        return Said(ok=True)

    def _typed(self, case: Case, contents: list[bytes], to: IO[bytes], come: IO[bytes]) -> None:
        def say(line: bytes, code: bytes) -> None:
            to.write(line)
            to.flush()
            said = come.readline()
            while said[3:4] == b"-":
                said = come.readline()
            if not said.startswith(code):
                raise _Refused(said.decode(errors="replace").strip())

        if case.tls == "implicit":  # with -starttls it has read the greeting itself
            say(b"", b"220")
        say(b"EHLO client.test\r\n", b"250")
        secret = f"\0{USER}\0{case.password}"
        if case.auth == "PLAIN":
            say(b"AUTH PLAIN " + base64.b64encode(secret.encode()) + b"\r\n", b"235")
        elif case.auth == "LOGIN":
            say(b"AUTH LOGIN\r\n", b"334")
            say(base64.b64encode(USER.encode()) + b"\r\n", b"334")
            say(base64.b64encode(case.password.encode()) + b"\r\n", b"235")
        for content in contents:
            mail, each = _parameters(case)
            say(f"MAIL FROM:<{case.sender}>{mail}\r\n".encode(), b"250")
            for recipient in case.addresses:
                say(f"RCPT TO:<{recipient}>{each}\r\n".encode(), b"250")
            if "CHUNKING" in case.asks:
                half = len(content) // 2
                say(b"BDAT %d\r\n" % half + content[:half], b"250")
                say(b"BDAT %d LAST\r\n" % len(content[half:]) + content[half:], b"250")
                continue
            say(b"DATA\r\n", b"354")
            stuffed = (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:]
            say(stuffed + b".\r\n", b"250")
        say(b"QUIT\r\n", b"221")


@contextlib.contextmanager
def _open(station: Station, folder: Path) -> Iterator[Openssl]:
    yield Openssl(station, folder)


def _parameters(case: Case) -> tuple[str, str]:
    """Of MAIL and of each RCPT."""
    mail = " BODY=8BITMIME" if case.asks & {"8BITMIME", "SMTPUTF8"} else ""
    mail += " SMTPUTF8" if "SMTPUTF8" in case.asks else ""
    if "DSN" not in case.asks:
        return mail, ""
    return f"{mail} RET=HDRS ENVID=b1", " NOTIFY=FAILURE ORCPT=rfc822;bob@clients.test"


KIND = Kind(
    name="openssl", open=_open, sealed=True,
    cannot={
        "in clear": "s_client speaks TLS only", "PIPELINING": "a person who types reads each reply",
    },
)  # fmt: skip


def run(plan: Plan) -> Iterator[Row]:
    """Every case."""
    yield from judge.run(KIND, plan)
