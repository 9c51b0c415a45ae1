"""The short form of the crowd around one spool, and faults that its oracle must notice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.network import Network
from tests.support.trial import Plan
from tests.torture import contention, contention_pins
from tests.torture.contention_stage import Crowd
from tests.torture.launch import with_faults
from tests.torture.table import Row

pytestmark = pytest.mark.timeout(300)

BLIND = {"torture_points": {"folder": "/", "points": {}, "set": {
    "mailstrom.storage.sqlite.wal:LEAST_LIMIT_BYTES": 1 << 60}}}  # fmt: skip
"""A client that knows no limit of the log."""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


def clean(row: Row, least: int) -> None:
    assert row.clean, (row.fault, row.lost, row.silent, row.findings, row.seed)
    assert row.tried >= least, (row.fault, row.tried)


def test_32_writers_beside_an_engine_reports_and_copies(network: Network, tmp_path: Path) -> None:
    clean(contention.writers(network, tmp_path / "case", Plan(folder=tmp_path)), 32 * 20)


def test_a_writer_stopped_inside_its_transaction(network: Network, tmp_path: Path) -> None:
    clean(contention.stopped(network, tmp_path / "case", Plan(folder=tmp_path)), 6)


def test_forks_with_the_spool_open(network: Network, tmp_path: Path) -> None:
    clean(contention.forks(network, tmp_path / "case", Plan(folder=tmp_path)), 18)


def test_twenty_supervisors_at_once(network: Network, tmp_path: Path) -> None:
    clean(contention.supervisors(network, tmp_path / "case", Plan(folder=tmp_path)), 19 + 3)


def test_engines_in_applications_beside_a_supervisor(network: Network, tmp_path: Path) -> None:
    clean(contention.embedded(network, tmp_path / "case", Plan(folder=tmp_path)), 80)


def test_two_checkpointers_against_eight_writers(network: Network, tmp_path: Path) -> None:
    clean(contention.checkpointers(network, tmp_path / "case", Plan(folder=tmp_path)), 100)


def test_one_key_from_32_processes(network: Network, tmp_path: Path) -> None:
    clean(contention.one_key(network, tmp_path / "case", Plan(folder=tmp_path)), 50)


@pytest.mark.parametrize("kind", ["snapshot", "file"])
def test_a_reader_left_open_at_full_load(network: Network, tmp_path: Path, kind: str) -> None:
    row = contention_pins.pinned(network, tmp_path / "case", Plan(folder=tmp_path), kind=kind)
    clean(row, 1)
    assert row.worst_recovery_s is not None


def test_a_reader_that_renews_its_snapshot(network: Network, tmp_path: Path) -> None:
    clean(contention_pins.letting_go(network, tmp_path / "case", Plan(folder=tmp_path)), 500)


def test_eight_readers_each_short(network: Network, tmp_path: Path) -> None:
    clean(contention_pins.short_readers(network, tmp_path / "case", Plan(folder=tmp_path)), 500)


def test_without_a_reader_there_was_no_case(network: Network, tmp_path: Path) -> None:
    plan = Plan(folder=tmp_path)
    row = contention_pins.pinned(network, tmp_path / "case", plan, kind="snapshot", reads=False)
    assert "nothing was brought about" in row.findings


def test_writers_that_know_no_limit_are_noticed(network: Network, tmp_path: Path) -> None:
    row = contention_pins.pinned(
        network, tmp_path / "case", Plan(folder=tmp_path), kind="snapshot",
        writers_env=with_faults(BLIND),
    )  # fmt: skip
    assert "nobody was refused" in row.findings


def test_a_dropped_row_is_noticed(network: Network, tmp_path: Path) -> None:
    with Crowd(network, tmp_path / "case") as crowd:
        crowd.ready(sender := crowd.start("send", count=3))
        crowd.ended(sender)
        dropped = crowd.told().accepted[1].id
        assert crowd.engine.tamper("DELETE FROM message WHERE id = ?", dropped) == 1
        row = crowd.verdict("a row dropped on purpose", tried=1, finished=False)
    assert (row.messages, row.lost) == (3, 1)


def test_a_refused_message_that_is_stored_is_noticed(network: Network, tmp_path: Path) -> None:
    with Crowd(network, tmp_path / "case") as crowd:
        crowd.ready(sender := crowd.start("send", count=1))
        crowd.ended(sender)
        record = crowd.folder / "record0.jsonl"
        begun, accepted = record.read_text().splitlines()
        message_id = accepted.split('"')[3]
        record.write_text(f'{begun}\n["refused", "{message_id}", "SpoolBusy", 0.5, "busy"]\n')
        row = crowd.verdict("a refusal that is none", tried=1, finished=False)
    assert any("was refused" in text and "is stored" in text for text in row.findings)
