"""The short form of the group, and that its judge objects where the others do suffer."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from mailstrom.testing.script import Act, Rule, Script
from tests.hostile import neighbours, neighbours_many
from tests.hostile.neighbours_hosts import Hosts
from tests.hostile.stand import standing
from tests.support.engine import DEADLINE_S
from tests.support.network import Network
from tests.support.sockets import free_port, loopback_addresses
from tests.support.trial import Plan

SILENCE_S = 0.3

pytestmark = pytest.mark.timeout(300)


def test_no_hostile_site_is_felt_by_the_others(tmp_path: Path) -> None:
    rows = list(neighbours.run(Plan(folder=tmp_path)))
    assert [row for row in rows if not row.clean] == []
    assert len(rows) >= 18


def test_a_hostile_site_that_has_its_mail_by_then_is_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def honest(network: Network, kind: str, stack: ExitStack) -> tuple[str, None]:
        return network.site(Script())[0], None

    monkeypatch.setattr(neighbours, "hostile", honest)
    with standing(tmp_path, neighbours_many.SETTINGS) as stand:
        slow = Script(rules=[Rule(stage="dot", delay=3.0)])
        row = neighbours.beside(stand, "never greets", [stand.network.site(slow)[0]], 1)
    assert row.seen == "all others delivered, it is delivered"
    assert not row.clean


def test_others_that_wait_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "WAIT_S", 3.0)
    with standing(tmp_path, neighbours_many.SETTINGS) as stand:
        mute = Script(rules=[Rule(stage="dot", act=Act.SILENCE)])
        good = [stand.network.site(script)[0] for script in (Script(), mute)]
        row = neighbours.beside(stand, "says 421, always", good, 1)
    assert row.seen == "1 of 2 others delivered, it waits"
    assert not row.clean


def test_known_sites_that_come_last_are_not_clean(tmp_path: Path) -> None:
    row = neighbours_many.behind(Plan(folder=tmp_path), "never greets", 200, known=True)
    assert row.seen == "50 of 50 delivered, after all hostile ones had their turn"
    assert not row.clean


def test_less_than_their_speed_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def arrivals(folder: Path, kind: str | None) -> float:
        return 1.0 if kind is None else 1.1

    row = neighbours.Row(case="c", wanted="w", seen="w")
    monkeypatch.setattr(neighbours, "arrivals", arrivals)
    found = neighbours.measured(Plan(folder=tmp_path), neighbours.DNS, row)
    assert found.findings == ("the others had 91% of their speed",)
    assert not found.clean


def test_a_relay_whose_mail_all_hangs_is_not_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "WAIT_S", 10.0)
    monkeypatch.setattr(
        neighbours, "mute", lambda stage: Rule(stage=stage, act=Act.SILENCE, first=2)
    )
    row = neighbours.relayed(Plan(folder=tmp_path), "mail")
    assert row.seen == "0 of 98 others delivered, it waits"
    assert not row.clean


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("never answers MAIL", ["220", "250"]),
        ("never answers RCPT", ["220", "250", "250"]),
        ("never answers DATA", ["220", "250", "250", "250"]),
        ("never answers the final dot", ["220", "250", "250", "250", "354"]),
        ("stalls in the TLS handshake", ["220", "250", "220"]),
    ],
)
def test_hosts_fall_silent_where_they_are_said_to(kind: str, said: list[str]) -> None:
    (address,) = loopback_addresses()
    verbs = [b"EHLO a", b"MAIL FROM:<>", b"RCPT TO:<a@b.test>", b"DATA", b"."]
    if "TLS" in kind:
        verbs = [b"EHLO a", b"STARTTLS", b"\x16\x03\x01"]
    heard: list[str] = []
    port = free_port(address)
    with Hosts(kind, port, [address]), socket.create_connection((address, port)) as peer:
        lines = peer.makefile("rb")
        peer.settimeout(DEADLINE_S)
        for verb in [b"", *verbs]:
            if verb:
                peer.sendall(verb + b"\r\n")
            if len(heard) == len(said):
                break
            line = lines.readline()
            while line[3:4] == b"-":
                line = lines.readline()
            heard.append(line[:3].decode())
        peer.settimeout(SILENCE_S)
        with pytest.raises(TimeoutError):
            peer.recv(1)
    assert heard == said
