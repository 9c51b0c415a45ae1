"""Readers that keep the write-ahead log from being emptied, at full load, and its bound.

Judged: the -wal file stays under its limit and what was under way; the alarm names the process that
holds it and says the end; mail is delivered while it lasts, until the limit; senders are then
refused with the reader's name, and everything resumes by itself when the reader ends, with the file
cut back. Readers that let go now and then may fill a low limit for a moment: who is refused is told
of a reader, and mail is accepted again beside them.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.support.engine import DEADLINE_S
from tests.support.network import Network
from tests.support.sockets import eventually
from tests.support.trial import Plan
from tests.torture.contention_stage import Crowd
from tests.torture.table import Row

MIB = 1 << 20
LONG_S = 300.0
"""How long the reader stays in the long form."""
SLACK = 32 * MIB
"""What may be written past the limit: verdicts of open sessions, and one call of each sender."""
WRITERS = 4
AGAIN = 600
"""Refusals after which a writer beside short readers no longer tries again: half a minute."""


def _limits(plan: Plan) -> tuple[int, int]:
    """The limit and the alarm that follows from it."""
    return (16 * MIB, 4 * MIB) if not plan.long else (384 * MIB, 64 * MIB)


def pinned(
    network: Network, folder: Path, plan: Plan, *, kind: str,
    writers_env: Mapping[str, str] | None = None, reads: bool = True,
) -> Row:  # fmt: skip
    """A foreign reader is left open while writers send as fast as they can.

    Args:
        kind: ``snapshot`` (it sees the log's beginning) or ``file`` (it sees the database alone).
        writers_env: of the writers, to show that the oracle objects to some that know no limit.
        reads: False leaves the reader out, to show that a case without a fault fails.
    """
    limit, alarm = _limits(plan)
    settings = {"spool": {"wal_limit": limit}}
    with Crowd(network, folder, settings=settings, seed=plan.seed) as crowd:
        engine = crowd.engine.start()
        if kind == "file":
            _emptied(crowd)
        reader = crowd.start("read") if reads else None
        if reader is not None:
            crowd.ready(reader)
        # Enough for the limit, and bounded in any case; a refusal counts, too, and takes a while.
        count = limit // 60_000 * 2 if writers_env is None else limit // 60_000
        options = {"size": 60_000, "stop": str(crowd.stop), "count": count}
        writers = [crowd.start("send", env=writers_env, **options) for _ in range(WRITERS)]
        crowd.ready(*writers)
        flowed = 0
        if reader is not None:
            flowed = _while_pinned(crowd, reader, writers, plan)
        bound = crowd.watch.largest
        freed = time.monotonic()
        if reader is not None:
            reader.kill()
            reader.wait(DEADLINE_S)
        recovery = None
        if reader is not None and all(writer.poll() is not None for writer in writers):
            crowd.findings.append("nobody was left to see it resume")
        elif reader is not None:
            recovery = _resumes(crowd, freed)
        crowd.stop.touch()
        crowd.ended(*writers)
        crowd.settle()
        if reader is not None:
            _after(crowd, reader, limit, alarm)
        if bound > limit + SLACK:
            crowd.findings.append(f"the -wal file grew to {bound} bytes, with a limit of {limit}")
        assert engine.stop() == 0
        what = f"a foreign reader ({kind}) left open at full load, wal_limit {limit // MIB} MiB"
        what += f": largest -wal {bound / MIB:.0f} MiB, {flowed} delivered meanwhile"
        return crowd.verdict(what, tried=int(flowed > 0), finished=True, recovery_s=recovery)


def _emptied(crowd: Crowd) -> None:
    """Wait until all that is in the log is in the database, so that a reader needs the log no more.

    The janitor does it each half minute where little is in it; another process need not wait.
    """
    script = (
        "import sys, apsw; c = apsw.Connection(sys.argv[1]); c.set_busy_timeout(10000);"
        " c.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE); c.close()"
    )
    subprocess.run(
        [sys.executable, "-P", "-c", script, str(crowd.engine.store)],
        check=True,
        timeout=DEADLINE_S,
    )


def _while_pinned(
    crowd: Crowd, reader: subprocess.Popen[str], writers: list[subprocess.Popen[str]], plan: Plan
) -> int:
    """Until the alarm was said and senders are refused; how many were delivered meanwhile."""
    engine, started = crowd.engine, time.monotonic()

    def refused() -> bool:
        return any(error == "SpoolFull" for error, _, _ in crowd.told().refused.values())

    def until() -> bool:
        if crowd.stop.exists() or all(writer.poll() is not None for writer in writers):
            return True
        return refused() and bool(engine.log("store.pinned", full=True))

    patience_s = plan.pick(60, 240)
    while not until() and time.monotonic() < started + patience_s:
        time.sleep(0.1)
    while plan.long and time.monotonic() < started + LONG_S and not crowd.stop.exists():
        time.sleep(1.0)
    alarms = engine.log("store.pinned")
    if not any(line.get("holder_pid") == reader.pid for line in alarms):
        crowd.findings.append(f"no alarm named process {reader.pid}: {alarms[:2]}")
    if any(line.get("holder_pid") not in (reader.pid, None) for line in alarms):
        crowd.findings.append(f"an alarm named another process than {reader.pid}: {alarms}")
    texts = {text for error, _, text in crowd.told().refused.values() if error == "SpoolFull"}
    unnamed = sorted(text for text in texts if f"process {reader.pid} (" not in text)
    if unnamed:
        crowd.findings.append(f"a refusal does not name process {reader.pid}: {unnamed[:2]}")
    if not texts:
        crowd.findings.append("nobody was refused")
    rows: Any = engine.rows("SELECT count(*) FROM recipients WHERE status = 'delivered'")
    return int(rows[0][0])


def _resumes(crowd: Crowd, freed: float) -> float | None:
    """Seconds from the reader's end to the next accepted message and the next delivery."""
    before = len(crowd.told().accepted)
    delivered = len(crowd.sink.dots)
    try:
        eventually(
            lambda: len(crowd.told().accepted) > before and len(crowd.sink.dots) > delivered,
            DEADLINE_S, what="mail that flows again", interval=0.05,
        )  # fmt: skip
    except AssertionError as error:
        crowd.findings.append(str(error))
        return None
    return time.monotonic() - freed


def _after(crowd: Crowd, reader: subprocess.Popen[str], limit: int, alarm: int) -> None:
    """The file is short again, and the log says that it is over."""
    try:
        crowd.engine.wait_log("store.unpinned")
        eventually(lambda: crowd.watch.now() < alarm, DEADLINE_S, what="a -wal file cut back")
    except AssertionError as error:
        crowd.findings.append(f"after process {reader.pid} ended: {error}")


def letting_go(network: Network, folder: Path, plan: Plan) -> Row:
    """A log shipper: always a snapshot open, a new one each half second, checkpoints of its own."""
    readers = [{"mode": "read", "hold": 0.5, "replicate": True}]
    what = "a permanent reader that renews its snapshot"
    return _beside_readers(network, folder, plan, readers, what)


def short_readers(network: Network, folder: Path, plan: Plan) -> Row:
    """Eight readers, each query 50 ms long, one after the other without a gap."""
    readers = [{"mode": "dashboard", "hold": 0.05}] * 8
    what = "8 readers, one short query after another"
    return _beside_readers(network, folder, plan, readers, what)


def _beside_readers(
    network: Network, folder: Path, plan: Plan, readers: list[dict[str, Any]], what: str
) -> Row:
    """Readers who hold nothing for long beside writers at full load.

    A moment may come when senders are refused: whoever is refused tries again.
    """
    limit = plan.pick(32, 64) * MIB
    with Crowd(network, folder, settings={"spool": {"wal_limit": limit}}, seed=plan.seed) as crowd:
        engine = crowd.engine.start()
        reading = [crowd.start(**options) for options in readers]
        crowd.ready(*reading)
        # Half more than the limit at least: a log that is never emptied cannot take it.
        count = limit * 3 // 2 // WRITERS // 60_000
        count *= plan.pick(1, 8)
        writers = [crowd.start("send", size=60_000, count=count, again=AGAIN)
                   for _ in range(WRITERS)]  # fmt: skip
        crowd.ready(*writers)
        crowd.ended(*writers)
        gone = [reader.poll() for reader in reading if reader.poll() is not None]
        if gone:
            crowd.findings.append(f"readers ended by themselves: {gone}")
        told = crowd.told()
        recovery = None
        if told.refused:
            recovery = _resumes_beside(crowd, {reader.pid for reader in reading})
            what = f"{what}, {len(told.refused)} refused meanwhile"
        if crowd.watch.largest > limit + SLACK:
            crowd.findings.append(
                f"the -wal file grew to {crowd.watch.largest} bytes, with a limit of {limit}"
            )
        for reader in reading:
            reader.send_signal(signal.SIGKILL)
            reader.wait(DEADLINE_S)
        crowd.settle()
        assert engine.stop() == 0
        largest = crowd.watch.largest / MIB
        what = (
            f"{what}, {len(told.accepted) * 60_000 // MIB} MiB sent: largest -wal {largest:.0f} MiB"
        )
        tried = len(told.accepted)
        return crowd.verdict(what, tried=tried, finished=True, recovery_s=recovery, unit="send")


def _resumes_beside(crowd: Crowd, readers: set[int]) -> float | None:
    """After refusals, with the readers still there: each named one, and mail is accepted again."""
    for error, _, text in crowd.told().refused.values():
        named = {int(pid) for pid in re.findall(r"process (\d+) \(", text)}
        if error != "SpoolFull" or not (named & readers or "nobody any more" in text):
            crowd.findings.append(f"a refusal that names no reader of {readers}: {error}: {text}")
            break
    crowd.ready(sender := crowd.start("serve"))
    assert sender.stdin is not None
    assert sender.stdout is not None
    began = time.monotonic()
    for number in range(10_000):
        sender.stdin.write(f"again-{number}\n")
        sender.stdin.flush()
        if sender.stdout.readline() == "accepted\n":
            crowd.ended(sender)
            return time.monotonic() - began
        if time.monotonic() - began > DEADLINE_S:
            break
        time.sleep(0.05)
    crowd.findings.append(f"beside the readers nothing was accepted for {DEADLINE_S:g} s")
    return None


def cases(plan: Plan) -> Iterator[Row]:
    """Every kind of reader."""
    with Network() as network:
        for kind in ("snapshot", "file"):
            yield pinned(network, plan.folder / f"pin-{kind}", plan, kind=kind)
        yield letting_go(network, plan.folder / "letting-go", plan)
        yield short_readers(network, plan.folder / "short-readers", plan)
