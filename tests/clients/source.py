"""Postfix's smtp-source: many messages over many connections at once."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

from tests.clients.cases import TAKEN
from tests.clients.station import STATIONS, Station
from tests.clients.table import Row
from tests.support import debian
from tests.support.trial import Plan

LIMIT_S = 120.0
SESSIONS = 20


def _row(station: Station, case: str, options: list[str], messages: int) -> Row:
    tree = debian.postfix()
    keeper = station.keeper
    before = len(keeper.taken())
    done = subprocess.run(
        [tree.program("usr/sbin/smtp-source"), *options, "-s", str(SESSIONS), "-m", str(messages),
         "-f", "ann@sender.test", "-t", "bob@clients.test",
         f"{station.address}:{station.port}"],
        env=tree.environ(), stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_S,
        check=False,
    )  # fmt: skip
    new = keeper.taken()[before:]
    findings = []
    if done.returncode:
        findings.append(done.stderr.decode(errors="replace").strip()[-200:])
    odd = [one for one in new if not re.search(rb"\r\n\r\n.*X{50}", one.mail.content)
           or one.mail.recipients != ("bob@clients.test",)]  # fmt: skip
    if odd:
        findings.append(f"{len(odd)} are not as they were sent")
    seen = TAKEN if len(new) == messages else f"{len(new)} of {messages} are taken"
    return Row(
        client="source", program="smtp-source of Postfix", server=keeper.name, case=case,
        wanted=TAKEN, seen=seen, tried=messages, findings=tuple(findings),
    )  # fmt: skip


def run(plan: Plan) -> Iterator[Row]:
    """Both ways to use connections, and larger messages."""
    many = plan.pick(500, 5_000)
    for number, standing in enumerate(STATIONS):
        folder = plan.folder / str(number)
        folder.mkdir()
        with standing.open(folder) as station:
            kept = f"many messages over {SESSIONS} connections that are kept"
            single = f"many messages over {SESSIONS} connections at once, one each"
            yield _row(station, kept, ["-d", "-l", "1024"], many)
            yield _row(station, single, ["-l", "1024"], many)
            yield _row(station, f"{kept}, 100 KB each", ["-d", "-l", "100000"], many // 5)
