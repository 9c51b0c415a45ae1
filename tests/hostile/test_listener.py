"""The short form of the group, and that its judge objects: lost, untold, evil, dead, otherwise."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile import listener, listener_cuts, listener_smuggling
from tests.hostile.gate import FRIEND, STRANGER, Gate, gate
from tests.hostile.smuggling import ATTACKS
from tests.support.engine import DEADLINE_S, mail
from tests.support.sockets import eventually
from tests.support.trial import Plan


@pytest.mark.timeout(280)
def test_every_client_that_means_no_good_is_answered_as_wanted(tmp_path: Path) -> None:
    rows = list(listener.run(Plan(folder=tmp_path)))
    assert [row for row in rows if not row.clean] == []
    assert len(rows) > 200


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    with gate(tmp_path_factory.mktemp("gate")) as opened:
        yield opened


def test_a_spool_that_holds_something_else_is_seen(door: Gate) -> None:
    assert door.good()
    assert door.accounted().clean
    door.told.append("01a20000-0000-7000-8000-000000000000")
    assert door.accounted().seen.startswith("1 are missing")
    door.told.pop()
    told = door.told.pop()
    assert "1 nobody was told of" in door.accounted().seen
    door.told.append(told)
    door.told.append(door.engine.ms.send(mail("evil@evil.test")))
    assert "1 recipients are evil" in door.accounted().seen


def test_another_reply_to_an_attack_is_seen(door: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    attack = next(one for one in ATTACKS if one.name == "end of content: LF . CRLF")
    wrong = attack._replace(replies=(250, 250, 354, 250, 250, 250, 354, 250, 221))
    monkeypatch.setattr(listener_smuggling, "ATTACKS", (attack, wrong))
    right, other = listener_smuggling.run(door, Plan(folder=Path()), fixed=False)
    assert (right.clean, other.clean) == (True, False)


def test_half_a_content_that_is_taken_is_seen(door: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, behind = listener_cuts.SESSIONS["DATA"]
    # one whole content in what is taken for half of one
    monkeypatch.setitem(listener_cuts.SESSIONS, "DATA", (whole + behind, b""))
    seen = listener_cuts._fin(door, "DATA", [len(whole)])
    assert seen.endswith(f"behind octet {len(whole)} of {len(whole + behind)}")


def test_a_connection_that_stays_is_told(door: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    assert door.let_go().clean
    with door.connect(STRANGER):
        eventually(lambda: door.open() == 1, DEADLINE_S, what="a connection")
        monkeypatch.setattr("tests.hostile.gate.DEADLINE_S", 0.2)
        assert door.let_go().seen == "1 open"


def test_a_listener_that_dies_of_it_is_a_finding(tmp_path: Path) -> None:
    with gate(tmp_path) as door:
        pid = door.pid

        def deadly() -> str:
            os.kill(pid, signal.SIGKILL)
            eventually(
                lambda: len(live := door.engine.live("listener")) == 1 and live != [pid],
                DEADLINE_S, what="another listener",
            )  # fmt: skip
            return "dead"

        row = door.measured("kills", "dead", deadly)
        assert row.findings == ("the listener did not survive it",)
        with door.talk(FRIEND) as talk:
            assert talk.greeting.code == 220
