"""The short form of the clocks: all clean, and the oracle objects when it should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.network import Network
from tests.support.trial import Plan
from tests.torture import clocks
from tests.torture.clocks import GROUPS, HOUR, Bench, Mail, jump

MOVES = 3
"""Copies and moves of the short form."""


@pytest.mark.timeout(300)
def test_no_clock_and_no_copy_loses_or_doubles_anything(tmp_path: Path) -> None:
    rows = list(clocks.run(Plan(folder=tmp_path)))
    assert [(row.fault, row.lost, row.silent, row.findings) for row in rows if not row.clean] == []
    assert sum(row.tried for row in rows) >= sum(map(len, GROUPS)) + MOVES
    assert sum(row.messages for row in rows) >= 100


@pytest.mark.timeout(180)
def test_what_a_jump_would_break_is_noticed(tmp_path: Path) -> None:
    """One spool with everything that a clock could do to it, done by hand."""
    (tmp_path / "bench").mkdir()
    with Network() as network:
        bench = Bench(network, tmp_path / "bench")
        try:
            bench.start()
            jump("an hour ahead", HOUR)(bench)
            expired, dropped, doubled = (bench.send("plain") for _ in "123")
            for id in (expired, dropped, doubled):
                assert bench.engine.final(id).succeeded
            of = "message = (SELECT seq FROM message WHERE id = ?)"
            tamper = bench.engine.tamper
            tamper(f"UPDATE recipient SET state = 'failed', reason = 'expired' WHERE {of}", expired)
            tamper("UPDATE hour_stat SET recipients = recipients + 1")
            seen = bench.host.dots
            seen.append(next(dot for dot in seen if _is_of(bench, dot.recipients, doubled)))
            seen.remove(next(dot for dot in seen if _is_of(bench, dot.recipients, dropped)))
            bench.findings.clear()
            row = bench.judge()
        finally:
            bench.engine.close()
    assert not row.clean
    assert (row.lost, row.silent) == (1, 1)
    told = " ".join(row.findings)
    for words in ("failed by a clock", "the hourly sums count", "hourly sums of"):
        assert words in told


def test_a_jump_that_did_not_happen_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "DEADLINE_S", 1.0)
    (tmp_path / "bench").mkdir()
    with Network() as network:
        bench = Bench(network, tmp_path / "bench")
        try:
            bench.start()
            before = bench.jumps()
            bench.clock.set(1_000)  # less than a jump
            with pytest.raises(AssertionError, match="a jump was seen"):
                bench.seen(before, "nothing")
        finally:
            bench.engine.close()


def test_mail_that_did_not_wait_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    with Network() as network:
        bench = Bench(network, tmp_path / "bench")
        try:
            bench.start()
            held, far = (bench.send("plain") for _ in "12")
            for id in (held, far):
                bench.engine.final(id)
            bench.arrived("too soon", Mail(held=held, far=far))
            told = len(bench.findings)
            bench.arrived("in time", Mail(done=[held, far]))
            assert len(bench.findings) == told
            assert bench.engine.tamper("DELETE FROM attempt") == 2
            bench.sent[held] = replace(bench.sent[held], digest="of other bytes")
            bench.arrived("too old", Mail(done=[held, far]))
        finally:
            bench.engine.close()
    assert told == 2
    assert len(bench.findings) == 4


def _is_of(bench: Bench, recipients: tuple[str, ...], id: str) -> bool:
    return any(one in recipients for one in bench.engine.ms.status(id).recipients)
