"""The short form of the property machine, and planted bugs of a store that it must find."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mailstrom.storage.sqlite.sql import STATEMENTS
from tests.torture import machine
from tests.torture.plan import Plan

LEAST = {"sending, lapse": 2, "sending, retire": 2, "sending, release": 2, "sending, boot": 2,
         "claimed, boot": 2, "held": 3}  # fmt: skip
"""Losses that each store's short form must have met."""


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


PLANTED = {
    "a loss on the wire is not marked": ("doubt", "in_doubt = 1,", ""),
    "a settled attempt is not counted": ("settle", "attempts + j.attempted", "attempts"),
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
AT_ONCE = frozenset(name for name in PLANTED if "wire for" in name or "doubt" in name)
"""Found by the short form's own rounds in memory; the others by one of ten."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    statement, before, after = PLANTED[name]
    assert before in STATEMENTS[statement]
    monkeypatch.setitem(STATEMENTS, statement, STATEMENTS[statement].replace(before, after))
    first, rounds = (100_000, 2) if name in AT_ONCE else (7_000, 10)
    for seed in range(first, first + rounds):
        row = machine.drive("memory", seed, 1, float("inf")).row
        if not row.clean:
            assert row.findings[0].startswith(f"seed {seed}: ")
            assert f"-m tests.torture.machine memory {seed})" in row.findings[0]
            return
    pytest.fail(f"{name}: nobody noticed")
