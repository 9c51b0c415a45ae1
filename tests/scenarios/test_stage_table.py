"""The stage table, measured: one engine, every fault at every stage on a real socket.

Each cell has a domain whose first host fails and whose second works, and a domain whose only host
fails. All run at once in one engine with shortened stage timeouts; retries and suspensions are far
away, so what is seen is the first delivery alone. Cells of the body share one message larger than
the kernel's buffers: the host's fault is always before the dot. Where the mode wants another
message before it on the same session, that goes to the same domains first, and is delivered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mailstrom.config.settings import StageTimeouts
from mailstrom.policy.timeouts import Timeouts
from mailstrom.testing.script import Script
from mailstrom.testing.smtp import SMTPServer
from tests.scenarios.conftest import sound
from tests.scenarios.stage_table import (
    ALONE,
    Cell,
    Outcome,
    attempted,
    expected,
    render,
    script,
)
from tests.support.engine import STAGES, Engine, Tables, mail
from tests.support.network import Network
from tests.support.sockets import eventually

PAGE = Path(__file__).parents[2] / "docs" / "design" / "stage-table.md"
BIG_LINES = 110_000  # about 8 MiB: more than a sender's buffer (4 MiB) can take unread

SETTINGS: Tables = {
    "delivery": {"max_connections": 400},
    "retry": {"schedule": ["1h"]},
    "sites": {"suspend": ["1h"], "idle": "0s", "connections": 1},
    # Longer than a machine with many sessions stands still; a dot is held for a while.
    "timeouts": {"connect": "6s", "quit": "1s", **dict.fromkeys(STAGES, "6s"), "dot": "20s"},
}


@dataclass(frozen=True, slots=True)
class Tried:
    """A cell's two recipients, the second host of the first, the host of the other, both hosts."""

    first: str
    second_host: SMTPServer
    only: str
    only_host: SMTPServer | None
    hosts: tuple[SMTPServer, ...]


def _prepare(network: Network, cell: Cell) -> Tried:
    hosts: list[SMTPServer] = []
    if cell.stage == "connect":
        nobody = network.deaf if cell.fault == "timeout" else network.nobody
        addresses = [nobody() for _ in "12"]
    else:
        tls = cell.stage == "starttls"
        how = script(cell)
        names = ("mx1.test",) if tls else ()
        hosts = [network.host(how, names=names) for _ in ("first", "only")]
        addresses = [host.host for host in hosts]
    second = network.host(Script(pipelining=cell.mode != "serial"))
    name = f"{cell.stage}-{cell.fault}-{cell.mode}.test"
    network.route(f"two.{name}", [addresses[0], second.host])
    network.route(f"one.{name}", [addresses[1]])
    only = hosts[1] if hosts else None
    return Tried(f"a@two.{name}", second, f"a@one.{name}", only, tuple(hosts))


@pytest.fixture(scope="module")
def engine(network: Network, folder: Path) -> Iterator[Engine]:
    with sound(Engine(network, folder, workers=1, settings=SETTINGS)) as engine:
        yield engine


@pytest.fixture(scope="module")
def tried(network: Network) -> dict[Cell, Tried]:
    """Hosts and domains of every cell."""
    return {cell: _prepare(network, cell) for cell in expected()}


@pytest.fixture(scope="module")
def measured(network: Network, engine: Engine, tried: dict[Cell, Tried]) -> dict[Cell, Outcome]:
    """Every cell, delivered once."""
    heard: list[str] = []  # nothing goes ahead of the wire before a lane heard of its server
    warm: list[str] = []
    small: list[str] = []
    big: list[str] = []
    for cell, one in tried.items():
        both = (one.first, one.only)
        (big if cell.stage == "body" and cell.mode != "bdat" else small).extend(both)
        if cell.mode not in ALONE:
            warm += [f"warm{address.removeprefix('a')}" for address in both]
        if cell.mode == "behind":
            heard += [f"heard{address.removeprefix('a')}" for address in both]
    engine.ms.send_many(mail(address) for address in heard)
    engine.ms.send_many(mail(address) for address in warm)
    engine.ms.send(mail(*big, text=f"{'x' * 76}\n" * BIG_LINES))
    engine.ms.send_many(mail(address) for address in small)
    engine.start()
    holding = [host for cell, one in tried.items() if cell.mode == "behind" for host in one.hosts]
    eventually(
        lambda: network.on_loop(lambda: all(map(_stands_behind, holding))),
        90,
        what="an envelope behind each dot that is held",
    )
    network.pass_time()
    eventually(
        lambda: not engine.rows("SELECT 1 FROM recipients WHERE status IN ('queued', 'sending')"),
        90,
        what="a first verdict on every recipient",
    )
    return {cell: _outcome(engine, one) for cell, one in tried.items()}


def _stands_behind(host: SMTPServer) -> bool:
    """Whether something was read that waits for the answer to a dot."""
    return any(one.answering and one.dialogue.buffered for one in host.connected)


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
    failed = engine.rows(
        "SELECT recipient, stage FROM attempts WHERE verdict <> 'delivered' AND host LIKE 'mx1.%'"
    )
    named = {f"@two.{'-'.join(cell)}.test": attempted(cell) for cell in measured}
    named |= {f"@one.{'-'.join(cell)}.test": attempted(cell) for cell in measured}
    assert failed
    assert [row for row in failed if row.stage != named[row.recipient.removeprefix("a")]] == []


def test_what_went_before_was_delivered_once_and_shared_the_session(
    engine: Engine, measured: dict[Cell, Outcome]
) -> None:
    assert measured
    warm = engine.rows(
        "SELECT r.address, r.status, count(*) AS attempts, min(a.session_id) AS session"
        " FROM recipients r JOIN attempts a"
        " ON a.message_id = r.message_id AND a.recipient = r.address"
        " WHERE r.address LIKE 'warm@%' GROUP BY r.address"
    )
    assert len(warm) == 2 * sum(cell.mode not in ALONE for cell in measured)
    assert {(row.status, row.attempts) for row in warm} == {("delivered", 1)}
    sessions = {row.address.removeprefix("warm"): row.session for row in warm}
    strangers = [
        row.recipient
        for row in engine.rows(
            "SELECT recipient, session_id FROM attempts"
            " WHERE recipient LIKE 'a@%' AND verdict <> 'delivered' AND host LIKE 'mx1.%'"
        )
        if sessions.get(row.recipient.removeprefix("a"), row.session_id) != row.session_id
    ]
    # A 421 before the content ends a session that was used before: they had another one.
    assert {name.split("@")[1].split(".")[1] for name in strangers} == {
        "rcpt-421-behind",
        "data-421-behind",
    }


def test_what_was_left_behind_a_dot_unread_went_over_a_second_session(
    measured: dict[Cell, Outcome], tried: dict[Cell, Tried]
) -> None:
    unread = {
        cell.fault: host.connections
        for cell in measured
        if (cell.stage, cell.mode) == ("mail", "behind")
        and (host := tried[cell].only_host) is not None
    }
    assert {fault: len(connections) for fault, connections in unread.items()} == {
        "4xx": 1,
        "5xx": 1,
        "421": 2,
        "close": 2,
        "silence": 2,
        "garbage": 2,
    }


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
