"""The short form of the property machine, and planted bugs of a store that it must find."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mailstrom.storage.sqlite.sql import STATEMENTS
from tests.storage.test_memory_machine import MemoryMachine
from tests.torture import machine
from tests.torture.plan import Plan


@pytest.mark.timeout(240)
def test_no_order_of_verbs_breaks_a_store(tmp_path: Path) -> None:
    rows = list(machine.run(Plan(folder=tmp_path)))
    assert [row.findings for row in rows if not row.clean] == []
    assert len(rows) == 2
    for row in rows:
        assert row.tried >= 250
        assert row.messages > 0


PLANTED = {
    "a loss on the wire is not marked": ("doubt", "in_doubt = 1,", ""),
    "a settled attempt is not counted": ("settle", "attempts + j.attempted", "attempts"),
    "expiry is not moved by a jump": ("jump_expiry", "WHERE seq > :done", "WHERE 0 AND seq > 0"),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    statement, before, after = PLANTED[name]
    assert before in STATEMENTS[statement]
    monkeypatch.setitem(STATEMENTS, statement, STATEMENTS[statement].replace(before, after))
    for first in range(10):
        row, _ = machine.drive(MemoryMachine, "memory", 7_000 + first, 1, time.monotonic() + 60)
        if not row.clean:
            assert row.findings[0].startswith(f"seed {7_000 + first}: ")
            return
    pytest.fail(f"{name}: nobody noticed")
