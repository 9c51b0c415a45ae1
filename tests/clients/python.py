"""Python's own smtplib."""

from __future__ import annotations

import contextlib
import platform
import smtplib
import ssl
from collections.abc import Iterator
from pathlib import Path

from tests.clients import judge
from tests.clients.cases import USER, Case
from tests.clients.judge import Kind, Said
from tests.clients.station import Station
from tests.clients.table import Row
from tests.support.trial import Plan

LIMIT_S = 60.0


class Smtplib:
    """The module in this process."""

    program = f"smtplib of Python {platform.python_version()}"

    def __init__(self, station: Station) -> None:
        self._station = station
        self._trust = ssl.create_default_context(cafile=str(station.files.authority))

    def send(self, case: Case, contents: list[bytes]) -> Said:
        """One connection; everything that it raises is a refusal."""
        try:
            with self._session(case) as session:
                for content in contents:
                    self._hand_over(session, case, content)
        except (OSError, smtplib.SMTPException) as error:
            return Said(ok=False, words=repr(error))
        return Said(ok=True)

    def _session(self, case: Case) -> smtplib.SMTP:
        address, port = self._station.address, self._station.line(case).port
        if case.tls == "implicit":
            session: smtplib.SMTP = smtplib.SMTP_SSL(
                address, port, "client.test", timeout=LIMIT_S, context=self._trust
            )
        else:
            session = smtplib.SMTP(address, port, "client.test", timeout=LIMIT_S)
        try:
            if case.tls == "starttls":
                session.starttls(context=self._trust)
            if case.auth:
                session.ehlo()
                session.user, session.password = USER, case.password
                session.auth(case.auth, getattr(session, f"auth_{case.auth.lower()}"))
        except BaseException:
            session.close()
            raise
        return session

    def _hand_over(self, session: smtplib.SMTP, case: Case, content: bytes) -> None:
        options, each = [], []
        if case.asks & {"8BITMIME", "SMTPUTF8"}:
            options.append("BODY=8BITMIME")
        if "SMTPUTF8" in case.asks:
            options.append("SMTPUTF8")
        if "DSN" in case.asks:
            options += ["RET=HDRS", f"ENVID={case.word}+2B1"]
            each = ["NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;bob@clients.test"]
        refused = session.sendmail(case.sender, case.addresses, content, options, each)
        if refused:
            raise smtplib.SMTPRecipientsRefused(refused)


@contextlib.contextmanager
def _open(station: Station, _folder: Path) -> Iterator[Smtplib]:
    yield Smtplib(station)


KIND = Kind(
    name="python", open=_open,
    cannot={
        "CHUNKING": "smtplib knows no BDAT",
        "PIPELINING": "smtplib waits for each reply",
    },
)  # fmt: skip


def run(plan: Plan) -> Iterator[Row]:
    """Every case."""
    yield from judge.run(KIND, plan)
