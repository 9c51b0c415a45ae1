"""The short form of the property machine, and planted bugs of a store that it must find."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis.internal.conjecture import providers

from mailstrom.storage.sqlite.sql import STATEMENTS
from tests.storage.machine import DEATHS
from tests.storage.spool import DAY
from tests.support.trial import Plan
from tests.torture import machine

LEAST = {"sending, lapse": 12, "sending, retire": 12, "sending, release": 12, "sending, boot": 12,
         "claimed, boot": 6, "held": 30}  # fmt: skip
"""Losses of one walk: three recipients a death, of which one, two or three are on the wire."""


@pytest.mark.timeout(240)
def test_no_order_of_verbs_breaks_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driven: list[machine.Driven] = []
    drive = machine.drive

    def kept(*args: object, **options: object) -> machine.Driven:
        driven.append(drive(*args, **options))  # type: ignore[arg-type]
        return driven[-1]

    monkeypatch.setattr(machine, "drive", kept)
    rows = list(machine.run(Plan(folder=tmp_path)))
    assert [row.findings for row in rows if not row.clean] == []
    assert len(rows) == 2
    for row in rows:
        assert row.tried >= 250
        assert row.messages > 0
    for found in driven:
        assert not Counter(LEAST) - found.losses, found.losses
        assert found.died == set(DEATHS)


def test_a_seed_repeats_whatever_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    constants = providers.HypothesisProvider._local_constants.func  # type: ignore[attr-defined]

    def noted(provider: object) -> object:
        asked.append("constants of the loaded modules")
        return constants(provider)

    monkeypatch.setattr(providers.HypothesisProvider, "_local_constants", property(noted))
    monkeypatch.setattr(machine, "EXAMPLES", 4)
    monkeypatch.setattr(machine, "STEPS", 20)
    first, second, other = (machine.drive("memory", n, 1, float("inf")) for n in (31, 31, 32))
    assert (first.trace, first.row, first.losses) == (second.trace, second.row, second.losses)
    assert other.trace != first.trace
    assert asked == []


@pytest.mark.parametrize("name", machine.STORES)
def test_a_walk_alone_meets_every_death(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PLAYS", (machine.walk,))
    found = machine.drive(name, 5, 1, float("inf"))
    assert found.row.clean
    assert found.died == set(DEATHS)
    assert found.losses == Counter(LEAST)


@pytest.mark.parametrize("name", machine.STORES)
def test_a_key_that_a_purge_forgot_stays_forgotten_when_the_clock_is_put_back(name: str) -> None:
    played = machine.STORES[name]()
    played.start(0)
    try:
        played.send_once(0, "y", False)
        played.clock_jumps(0, DAY)
        played.time_passes(0, 1)  # nothing is purged for an hour after a jump
        for one in played.invariants:
            one.function(played)
        played.purge(0)
        played.clock_jumps(0, -DAY)
        played.send_once(0, "y", True)
        assert len(played.rows) == 2, "another message"
    finally:
        played.opened.close()


def test_what_failed_first_is_told_with_what_failed_at_the_end() -> None:
    try:
        try:
            raise AssertionError("a step")
        finally:
            {}["the end"]
    except KeyError as error:
        told = machine._failures(error)
    assert re.fullmatch(
        r"KeyError: 'the end', line \d+ of test_machine.py;"
        r" behind AssertionError: a step, line \d+ of test_machine.py",
        told,
    )


PLANTED = {
    "a loss on the wire is not marked": ("doubt", "in_doubt = 1,", ""),
    "a settled attempt is not counted": (
        "settle", "attempts = attempts + 1,", "attempts = attempts,",
    ),
    "expiry is not moved by a jump": ("jump_expiry", "WHERE seq > :done", "WHERE 0 AND seq > 0"),
    "a lapse takes what is on the wire for unsent": (
        "lapse_claimed", "AND state = 'claimed'", "AND state IN ('claimed', 'sending')",
    ),
    "a release takes what is on the wire for unsent": (
        "release_claimed", "AND state = 'claimed'", "AND state IN ('claimed', 'sending')",
    ),
    "the policy of doubt is not that of the worker": (
        "held_by_lanes", "coalesce(m.on_doubt, :on_doubt)", "coalesce(m.on_doubt, 'retry')",
    ),
    "nobody is held by doubt": (
        "held_by_lanes", "coalesce(m.on_doubt, :on_doubt)", "substr(:on_doubt, 1, 0) || 'retry'",
    ),
}  # fmt: skip
WALKED = frozenset(name for name in PLANTED if "wire" in name or "doubt" in name)
"""Found by the walk of any one round; the others by one of ten rounds' wandering."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    statement, before, after = PLANTED[name]
    assert before in STATEMENTS[statement]
    monkeypatch.setitem(STATEMENTS, statement, STATEMENTS[statement].replace(before, after))
    play, rounds = (machine.walk, 1) if name in WALKED else (machine.wander, 10)
    monkeypatch.setattr(machine, "PLAYS", (play,))
    first = 7_000
    for seed in range(first, first + rounds):
        row = machine.drive("memory", seed, 1, float("inf")).row
        if not row.clean:
            assert row.findings[0].startswith(f"seed {seed}: ")
            assert f"-m tests.torture.machine memory {seed})" in row.findings[0]
            return
    pytest.fail(f"{name}: nobody noticed")
