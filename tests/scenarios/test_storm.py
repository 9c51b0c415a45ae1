"""Many messages from client processes through two workers, in peace and under kill -9.

Three witnesses, each a process of its own, are compared by the checker: what ``send()`` returned
for, what the sink had at the final dot before it answered, and the spool's final state.
"""

from __future__ import annotations

import base64
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mailstrom.testing.records import read_dots
from tests.scenarios.conftest import MakeEngine
from tests.support.checker import History, Report, Sent, check, content_digest
from tests.support.engine import DEADLINE_S, Engine, environment
from tests.support.network import Network
from tests.support.sockets import eventually, loopback_addresses
from tests.support.witnesses import seen_by_server, spool_rows

CLIENT = Path(__file__).with_name("storm_client.py")
CLIENTS, EACH = 2, 750
KILLS, KILL_EVERY_S = 10, 0.5
SEED = 1047  # the RFC of duplicates; which moment a kill hits is chance all the same


@dataclass(frozen=True, slots=True)
class Sink:
    """A sink process.

    Args:
        addresses: where it listens.
        record: what it saw.
    """

    addresses: list[str]
    record: Path

    def contents(self) -> int:
        """How many contents it has seen so far."""
        return self.record.read_bytes().count(b'"event": "dot"') if self.record.exists() else 0


@contextmanager
def _sink(network: Network, folder: Path, *, delay_s: float) -> Iterator[Sink]:
    addresses = loopback_addresses(2)
    sink = Sink(addresses, folder / "seen.jsonl")
    script = json.dumps({"magic": False, "rules": [{"stage": "dot", "delay": delay_s}]})
    argv = [sys.executable, "-P", "-m", "mailstrom.testing.smtp"]
    for address in addresses:
        argv += ["--bind", f"{address}:{network.port}"]
    argv += ["--record", str(sink.record), "--script", script]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment()) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["event"] == "ready"
            yield sink
        finally:
            process.terminate()
            process.wait(DEADLINE_S)


@contextmanager
def _clients(engine: Engine, folder: Path, domains: list[str]) -> Iterator[list[Path]]:
    """Client processes sending at once; leaving waits for their end."""
    client = (sys.executable, "-P", str(CLIENT))
    records = [folder / f"sent{number}.jsonl" for number in range(CLIENTS)]
    processes = [
        subprocess.Popen(
            [*client, str(engine.store), str(record), f"{SEED}-{number}", str(EACH), *domains],
            env=environment(),
        )
        for number, record in enumerate(records)
    ]
    try:
        yield records
        assert [process.wait(2 * DEADLINE_S) for process in processes] == [0] * CLIENTS
    finally:
        for process in processes:
            process.kill()
            process.wait(DEADLINE_S)


def _domains(network: Network, sink: Sink) -> list[str]:
    """Four domains at three sites."""
    domains = [network.new_domain() for _ in range(4)]
    network.route(domains[0], sink.addresses)
    network.route(domains[1], sink.addresses[:1])
    network.route(domains[2], sink.addresses[1:])
    network.zone(domains[3], {"MX": [f"10 mx1.{domains[2]}."]})
    return domains


def _sent(records: list[Path]) -> tuple[Sent, ...]:
    lines = [json.loads(line) for record in records for line in record.read_text().splitlines()]
    return tuple(
        Sent(
            id=line["id"],
            message_id=line["message_id"],
            recipient=line["recipient"],
            digest=content_digest(base64.b64decode(line["content"])),
        )
        for line in lines
    )


def _judge(engine: Engine, records: list[Path], sink: Sink) -> Report:
    """Wait until every recipient is final, then compare the witnesses."""
    open_ones = "SELECT 1 FROM messages WHERE finished_ms IS NULL LIMIT 1"
    eventually(lambda: not engine.rows(open_ones), 2 * DEADLINE_S, what="the end of the queue")
    acknowledged = _sent(records)
    assert len(acknowledged) == CLIENTS * EACH
    return check(
        History(
            acknowledged=acknowledged,
            seen=seen_by_server(read_dots(sink.record)),
            spool=spool_rows(engine.ms.query),
        )
    )


def test_in_peace_everything_arrives_exactly_once(
    network: Network, make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine(settings={"log": {"level": "warning"}, "sites": {"idle": "1s"}})
    with _sink(network, tmp_path, delay_s=0.0) as sink:
        domains = _domains(network, sink)
        engine.start(wait=False)
        with _clients(engine, tmp_path, domains) as records:
            pass
        report = _judge(engine, records, sink)

        assert report.clean, report.describe()
        assert report.doubled_marked == (), report.describe()
        assert len(read_dots(sink.record)) == CLIENTS * EACH
        rows = engine.rows("SELECT DISTINCT status, attempts, in_doubt FROM recipients")
        assert [tuple(row) for row in rows] == [("delivered", 1, 0)]


def test_under_kill_nothing_is_lost_and_every_double_is_marked(
    network: Network, make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine(settings={"sites": {"connections": 4}}).start()
    dice, tick = random.Random(SEED), threading.Event()
    killed: list[int] = []
    with _sink(network, tmp_path, delay_s=0.02) as sink:
        with _clients(engine, tmp_path, _domains(network, sink)) as records:
            eventually(sink.contents, DEADLINE_S, what="the first content at the sink")
            while len(killed) < KILLS:
                victim = dice.choice(eventually(engine.live, DEADLINE_S, what="a live worker"))
                os.kill(victim, signal.SIGKILL)
                killed.append(victim)
                tick.wait(KILL_EVERY_S)  # the storm's pace, not a wait for anything
        report = _judge(engine, records, sink)

        assert report.clean, report.describe()
        lost = {line["pid"] for line in engine.wait_log("worker.lost", count=KILLS)}
        assert lost == set(killed)
        assert engine.rows("SELECT 1 FROM attempts WHERE in_doubt"), "no kill hit a transaction"
        rows = engine.rows("SELECT DISTINCT status FROM recipients")
        assert [row.status for row in rows] == ["delivered"]
