"""Copies and moved files: a spool restored from a backup, and one whose files are taken away.

What is promised about a copy: before ``adopt`` nothing of it is sent; afterwards everything that it
says is unfinished is, so what the original delivered after the copy was made is delivered a second
time, and nothing else; what was on the wire in that moment is marked in doubt. No copy can know
more: ``adopt`` asks for that reason.

What is promised about files that are renamed under an engine and its clients: both stop within
seconds, and each acknowledged message is in the files that were moved, or in those that came.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from mailstrom import Mailstrom
from mailstrom.testing.script import Rule, Script
from tests.support import leash
from tests.support.engine import DEADLINE_S, Engine, environment
from tests.support.network import Network
from tests.support.sockets import eventually
from tests.support.trial import Plan
from tests.torture.table import Row

MAILS = 48

_SENDER = """
import sys
from email.message import EmailMessage
from mailstrom import Mailstrom
from mailstrom.errors import SpoolError
with Mailstrom(sys.argv[1]) as ms:
    number = 0
    while True:
        number += 1
        message = EmailMessage()
        message["From"], message["To"] = "a@sender.test", f"{sys.argv[2]}-{number}@{sys.argv[3]}"
        message.set_content("Good morning.\\n")
        try:
            print(ms.send(message), flush=True)
        except SpoolError as error:
            sys.exit(f"{type(error).__name__}: {error}")
"""


def held_until_adopted(plan: Plan) -> Row:
    """Copies made under delivery, taken into use after the original is done."""
    findings: list[str] = []
    messages = lost = silent = marked = again = 0
    worst = 0.0
    rounds = plan.pick(1, 10)
    with Network() as network:
        for number in range(rounds):
            folder = plan.folder / f"copied-{number}"
            folder.mkdir()
            one = _adopted(network, folder, findings)
            messages, lost, silent = messages + one[0], lost + one[1], silent + one[2]
            marked, again, worst = marked + one[3], again + one[4], max(worst, one[5])
    return Row(
        part="contention",
        fault=f"a copy taken into use ({again} sent again, as adopt says)",
        tried=rounds,
        messages=messages,
        lost=lost,
        silent=silent,
        marked=marked,
        worst_recovery_s=worst,
        findings=tuple(findings),
    )


def _adopted(
    network: Network, folder: Path, findings: list[str]
) -> tuple[int, int, int, int, int, float]:
    """One copy; recipients, lost, doubled beyond the promise, marked, sent again, seconds."""
    domain, (host,) = network.site(Script(rules=(Rule(stage="dot", delay=0.05),)))
    settings = {"sites": {"idle": "200ms", "suspend": ["1s"], "connections": 4}}
    (folder / "original").mkdir()
    (folder / "copy").mkdir()
    with Engine(network, folder / "original", settings=settings) as original:
        for n in range(MAILS):
            original.send(f"r{n}@{domain}")
        eventually(lambda: len(host.dots) >= 12, DEADLINE_S, what="deliveries before the copy")
        original.ms.backup(folder / "copy" / "spool.db")
        original.until("SELECT id FROM messages WHERE status = 'delivered'", count=MAILS)
        assert original.stop() == 0
        findings += original.ms.check()
    first = Counter(address for dot in list(host.dots) for address in dot.recipients)
    copy = Engine(network, folder / "copy", settings=settings)
    try:
        known = {row.address for row in copy.rows("SELECT address FROM recipients"
                                                  " WHERE status = 'delivered'")}  # fmt: skip
        wire = {row.address for row in copy.rows("SELECT address FROM recipients"
                                                 " WHERE status = 'sending'")}  # fmt: skip
        if not first.keys() - known:
            findings.append("the copy lacks nothing that was delivered: nothing was tried")
        copy.start()
        copy.wait_log("store.copied")
        # The dead are lapsed there, too; then nothing is claimed and nothing moves.
        copy.until("SELECT id FROM workers WHERE state = 'lost'", count=3)
        copy.until("SELECT id FROM workers WHERE state = 'ready'", count=3)
        if len(host.dots) != first.total():
            findings.append("a copy that nobody adopted was delivered")
        begun = time.monotonic()
        assert copy.ms.adopt()
        copy.until("SELECT id FROM messages WHERE status = 'delivered'", count=MAILS)
        seconds = time.monotonic() - begun
        doubted = {row.address for row in copy.rows("SELECT address FROM recipients"
                                                    " WHERE in_doubt")}  # fmt: skip
        if doubted != wire:
            findings.append(f"on the wire {sorted(wire)}, marked {sorted(doubted)}")
        assert copy.stop() == 0
        findings += copy.ms.check()
    finally:
        copy.close()
    total = Counter(address for dot in list(host.dots) for address in dot.recipients)
    again = {address for address, copies in total.items() if copies > 1}
    beyond = again - (first.keys() - known)
    beyond |= {address for address, copies in total.items() if copies > 2}
    missing = {f"r{n}@{domain}" for n in range(MAILS)} - total.keys()
    return MAILS, len(missing), len(beyond), len(doubted), len(again), seconds


def moved_away(plan: Plan) -> Row:
    """Spools renamed under an engine and two senders, and put back; every other time another one
    has taken the name meanwhile."""
    findings: list[str] = []
    acknowledged = lost = silent = 0
    worst = 0.0
    rounds = plan.pick(2, 20)
    with Network() as network:
        for number in range(rounds):
            folder = plan.folder / f"moved-{number}"
            folder.mkdir()
            ids, gone, doubled, seconds = _moved(network, folder, number % 2 == 1, findings)
            acknowledged, lost, silent = acknowledged + ids, lost + gone, silent + doubled
            worst = max(worst, seconds)
    return Row(
        part="contention",
        fault="files renamed under an engine and senders",
        tried=rounds,
        messages=acknowledged,
        lost=lost,
        silent=silent,
        worst_recovery_s=worst,
        findings=tuple(findings),
    )


def _sender(engine: Engine, file: Path, domain: str) -> subprocess.Popen[bytes]:
    """A process that sends until it cannot, and writes each id down."""
    argv = [sys.executable, "-P", "-c", _SENDER, str(engine.store), file.name, domain]
    with file.open("wb") as told:
        process = subprocess.Popen(
            argv, env=environment(), stdout=told, stderr=subprocess.PIPE, start_new_session=True
        )
    leash.hold(process.pid)
    return process


def _moved(
    network: Network, folder: Path, replaced: bool, findings: list[str]
) -> tuple[int, int, int, float]:
    """One move; acknowledged, lost, doubled, seconds until all had stopped."""
    domain, (host,) = network.site(Script())
    away = folder / "away"
    away.mkdir()
    with Engine(network, folder) as engine:
        senders = [_sender(engine, folder / name, domain) for name in ("one", "two")]
        try:
            # A sender that opens after the move would make a new spool, as it may.
            eventually(
                lambda: (
                    len(host.dots) >= 20
                    and all((folder / name).stat().st_size for name in ("one", "two"))
                ),
                DEADLINE_S,
                what="acknowledgements of both senders, and deliveries, before the move",
            )
            engine.ms.close()
            for end in ("", "-wal", "-shm"):
                Path(f"{engine.store}{end}").rename(away / f"spool.db{end}")
            begun = time.monotonic()
            if replaced:
                Mailstrom(engine.store).close()
            for sender in senders:
                said = sender.communicate(timeout=DEADLINE_S)[1].decode()
                if not said.startswith(("SpoolReplaced", "SpoolError")):
                    findings.append(f"a sender ended with {said.strip() or 'nothing'}")
            seconds = time.monotonic() - begun
            if seconds > 10:
                findings.append(f"senders went on for {seconds:.1f} s")
            engine.kill_all()  # the moved spool is judged as it is
        finally:
            for sender in senders:
                sender.kill()
                sender.wait()
                leash.let_go(sender.pid)
        ids = [id for name in ("one", "two") for id in (folder / name).read_text().split()]
        present: set[str] = set()
        for path in (away / "spool.db", engine.store):
            if path.exists():
                with Mailstrom(path) as ms:
                    findings += ms.check()
                    present |= {row[0] for row in ms.query("SELECT id FROM messages")}
        gone = set(ids) - present
        # Put back, an engine delivers what is left of it.
        for end in ("", "-wal", "-shm"):
            Path(f"{engine.store}{end}").unlink(missing_ok=True)
            if (moved := away / f"spool.db{end}").exists():
                moved.rename(f"{engine.store}{end}")
        engine.log_file.rename(engine.log_file.with_suffix(".before"))
        engine.ms = Mailstrom(engine.store)
        engine.start()
        open_now = (
            "SELECT count(*) FROM recipients WHERE status IN ('queued', 'deferred', 'sending')"
        )
        eventually(lambda: engine.rows(open_now)[0][0] == 0, DEADLINE_S, what="all delivered")
        doubts = engine.rows("SELECT count(*) FROM attempts WHERE in_doubt")[0][0]
        copies = Counter(address for dot in list(host.dots) for address in dot.recipients)
        extra = sum(count - 1 for count in copies.values())
        gone |= {row[0] for row in engine.rows("SELECT message_id FROM recipients"
                                               " WHERE status != 'delivered'")}  # fmt: skip
        findings += engine.ms.check()
    return len(ids), len(gone), max(0, extra - doubts), seconds
