"""The stage table, measured: one engine, every fault at every stage on a real socket.

Each cell has a domain whose first host fails and whose second works, and a domain whose only host
fails. All run at once in one engine with shortened stage timeouts; retries and suspensions are far
away, so what is seen is the first delivery alone. Cells of the body share one message larger than
the kernel's buffers: the host's fault is always before the dot.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mailstrom.config.settings import StageTimeouts
from mailstrom.policy.timeouts import Timeouts
from mailstrom.testing.script import Script
from mailstrom.testing.smtp import SMTPServer
from tests.scenarios.conftest import sound
from tests.scenarios.stage_table import Cell, Outcome, expected, render, script
from tests.support.engine import STAGES, Engine, Tables, mail
from tests.support.network import Network
from tests.support.sockets import eventually, loopback_addresses

PAGE = Path(__file__).parents[2] / "docs" / "design" / "stage-table.md"
BIG_LINES = 110_000  # about 8 MiB: more than a sender's buffer (4 MiB) can take unread

SETTINGS: Tables = {
    "delivery": {"max_connections": 400},
    "retry": {"schedule": ["1h"]},
    "sites": {"suspend": ["1h"], "idle": "0s"},
    "timeouts": {"connect": "3s", "quit": "1s", **dict.fromkeys(STAGES, "3s")},
}


@dataclass(frozen=True, slots=True)
class Tried:
    """A cell's two recipients and the second host of the first."""

    first: str
    second_host: SMTPServer
    only: str


@pytest.fixture(scope="module")
def deaf(network: Network) -> Iterator[str]:
    """An address whose queue of connections is full: a connect gets no answer."""
    address = loopback_addresses()[0]
    with socket.create_server((address, network.port), backlog=0):
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex((address, network.port))
        yield address
        for one in waiting:
            one.close()


def _prepare(network: Network, cell: Cell, deaf: str) -> Tried:
    if cell.stage == "connect":
        addresses = [deaf, deaf] if cell.fault == "timeout" else [network.nobody() for _ in "12"]
    else:
        tls = cell.stage == "starttls"
        how = script(cell)
        addresses = [
            network.host(how, names=("mx1.test",) if tls else ()).host for _ in ("first", "only")
        ]
    second = network.host(Script(pipelining=cell.mode == "pipelined"))
    name = f"{cell.stage}-{cell.fault}-{cell.mode}.test"
    network.route(f"two.{name}", [addresses[0], second.host])
    network.route(f"one.{name}", [addresses[1]])
    return Tried(f"a@two.{name}", second, f"a@one.{name}")


@pytest.fixture(scope="module")
def engine(network: Network, folder: Path) -> Iterator[Engine]:
    with sound(Engine(network, folder, workers=1, settings=SETTINGS)) as engine:
        yield engine


@pytest.fixture(scope="module")
def measured(network: Network, engine: Engine, deaf: str) -> dict[Cell, Outcome]:
    """Every cell, delivered once."""
    tried = {cell: _prepare(network, cell, deaf) for cell in expected()}
    small: list[str] = []
    big: list[str] = []
    for cell, one in tried.items():
        (big if cell.stage == "body" else small).extend((one.first, one.only))
    engine.ms.send(mail(*big, text=f"{'x' * 76}\n" * BIG_LINES))
    engine.ms.send_many(mail(address) for address in small)
    engine.start()
    eventually(
        lambda: not engine.rows("SELECT 1 FROM recipients WHERE status IN ('queued', 'sending')"),
        90,
        what="a first verdict on every recipient",
    )
    return {cell: _outcome(engine, one) for cell, one in tried.items()}


def _outcome(engine: Engine, tried: Tried) -> Outcome:
    first, _ = _seen(engine, tried.first)
    last, attempts = _seen(engine, tried.only)
    next_host = "yes" if tried.second_host.connections else "no"
    return Outcome(*first, next_host, *last, str(attempts))


def _seen(engine: Engine, address: str) -> tuple[tuple[str, str, str], int]:
    (row,) = engine.rows("SELECT * FROM recipients WHERE address = ?", address)
    return (row.status, row.reason or "-", "yes" if row.in_doubt else "no"), row.attempts


@pytest.mark.parametrize("cell", expected(), ids="-".join)
def test_outcome(cell: Cell, measured: dict[Cell, Outcome]) -> None:
    assert measured[cell] == expected()[cell]


def test_attempts_name_the_stage_that_failed(engine: Engine, measured: dict[Cell, Outcome]) -> None:
    """Of hosts that failed, as no attempt is charged to a session that never came to be."""
    assert measured
    wrong = engine.rows(
        "SELECT recipient, stage, verdict FROM attempts WHERE verdict <> 'delivered'"
        " AND host LIKE 'mx1.%' AND recipient NOT LIKE '%@___.' || stage || '-%'"
    )
    assert wrong == []


def test_the_page_shows_what_was_measured(measured: dict[Cell, Outcome]) -> None:
    assert PAGE.read_text() == render(measured), (
        "write it anew: python -P -m tests.scenarios.stage_table > docs/design/stage-table.md"
    )


def test_default_timeouts_are_those_of_rfc_5321() -> None:
    defaults = Timeouts()
    minutes = {"greeting": 5, "mail": 5, "rcpt": 5, "data": 2, "body": 3, "dot": 10}
    for stage, value in minutes.items():  # section 4.5.3.2
        assert getattr(defaults, stage) == value * 60
        assert getattr(StageTimeouts(), stage) == value * 60
