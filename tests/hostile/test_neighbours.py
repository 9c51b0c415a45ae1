"""The short form of the group, and that its judge objects where the others do suffer."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from mailstrom.testing.script import Act, Rule, Script
from tests.hostile import neighbours
from tests.hostile.stand import standing
from tests.support.network import Network
from tests.support.trial import Plan

pytestmark = pytest.mark.timeout(300)


def test_no_hostile_site_is_felt_by_the_others(tmp_path: Path) -> None:
    rows = list(neighbours.run(Plan(folder=tmp_path)))
    assert [row for row in rows if not row.clean] == []
    assert len(rows) >= 15


def test_a_hostile_site_that_has_its_mail_by_then_is_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def honest(network: Network, kind: str, stack: ExitStack) -> tuple[str, None]:
        return network.site(Script())[0], None

    monkeypatch.setattr(neighbours, "hostile", honest)
    with standing(tmp_path, neighbours.SETTINGS) as stand:
        slow = Script(rules=[Rule(stage="dot", delay=3.0)])
        row = neighbours.beside(stand, "never greets", [stand.network.site(slow)[0]], 1)
    assert row.seen == "all others delivered, it is delivered"
    assert not row.clean


def test_others_that_wait_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "WAIT_S", 3.0)
    with standing(tmp_path, neighbours.SETTINGS) as stand:
        mute = Script(rules=[Rule(stage="dot", act=Act.SILENCE)])
        good = [stand.network.site(script)[0] for script in (Script(), mute)]
        row = neighbours.beside(stand, "says 421, always", good, 1)
    assert row.seen == "1 of 2 others delivered, it waits"
    assert not row.clean


def test_known_sites_that_come_last_are_not_clean(tmp_path: Path) -> None:
    row = neighbours.behind(Plan(folder=tmp_path), "never greets", 200, known=True)
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
