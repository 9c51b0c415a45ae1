"""Every named step of the crash table, once: the short form; and that it would notice.

Planted here: marks that a death must not leave, or must; a row that is gone; a verdict in doubt
that nobody recorded; a point that nobody reaches; a table whose places have moved.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from tests.support.engine import environment
from tests.support.trial import Plan
from tests.torture import named_stage
from tests.torture.launch import INJECT, with_faults
from tests.torture.named_clients import Clients
from tests.torture.named_exact import Pairs, inexact
from tests.torture.named_kills import Case, cases, play, rows
from tests.torture.named_points import CLIENT_SCENES, POINTS, settings
from tests.torture.named_stage import Stage, unexpected

CHECKOUT = Path(__file__).resolve().parents[2]
QUEUE = CHECKOUT / "docs" / "design" / "queue.md"
STEPS = 20
"""Statements of the migrations and of the creation that are tried, at least."""


@pytest.mark.timeout(600)
def test_a_death_at_every_named_step_loses_nothing_and_marks_what_it_must(tmp_path: Path) -> None:
    plan = Plan(folder=tmp_path)
    wanted = cases(long=False, seed=plan.seed)
    outcomes = play(plan, wanted)
    found = rows(outcomes, plan.seed)
    assert [text for row in found for text in row.findings] == []
    assert all(row.clean for row in found)
    assert {outcome.case.point for outcome in outcomes if outcome.result.hit} == set(POINTS)
    fixed = [case for case in wanted if not case.point.endswith(".statement")]
    assert sum(row.tried for row in found) >= len(fixed) + STEPS


def test_a_case_is_repeated_by_its_words() -> None:
    for case in cases(long=True):
        assert Case.parse(str(case)) == case
    with pytest.raises(ValueError, match="no such case"):
        Case.parse("lane.nowhere kill 1 1")


def test_the_long_form_has_every_fault_at_every_point_of_an_engine() -> None:
    played = {(case.point, case.do) for case in cases(long=True)}
    assert {name for name, _ in played} == set(POINTS)
    assert {name for name, do in played if do == "stop_kill"} == {
        name for name, point in POINTS.items() if point.scene not in CLIENT_SCENES
    }


# The oracle


@pytest.mark.parametrize(
    ("marks", "doubt", "told"),
    [
        ({("m", "a"): [0]}, "open", "nothing is in doubt"),
        ({("m", "a"): [1]}, "none", "nothing was on the wire"),
        ({("m", "a"): [1], ("m", "b"): [1]}, "others", "a part was settled"),
        ({("m", "a"): [1, 0, 1]}, "open", "some are not"),
        ({("m", "a"): [1], ("n", "a"): [1]}, "open", "more in doubt"),
        ({("m", "a"): [2]}, "open", "more in doubt"),
    ],
)
def test_marks_that_a_death_does_not_explain_are_found(
    marks: named_stage.Marks, doubt: str, told: str
) -> None:
    found = unexpected(marks, doubt, do="kill", messages=1, scene="mail")
    assert any(told in finding for finding in found)


def test_marks_that_a_death_explains_are_not_found() -> None:
    marks = {("m", "a"): [1, 1, 1], ("m", "b"): [0, 0]}
    assert unexpected(marks, "open", do="kill", messages=1, scene="mail") == []


M, L, A, B, C = (frozenset({(one, "a"), (one, "b")}) for one in ("m", "l", "a", "b", "c"))
"""Messages of two recipients: delivered, late, and three that came behind it."""


@pytest.mark.parametrize(
    ("point", "doubted", "opened", "stood", "told"),
    [
        ("ahead.committed", A, A, None, None),
        ("ahead.committed", A | B, A | B, A | B, None),
        ("ahead.committed", A | B, A, None, "the claim had opened"),
        ("ahead.committed", A, A | B, None, "the claim had opened"),
        ("ahead.committed", {("a", "a")}, {("a", "a")}, None, "a part of a message"),
        ("ahead.committed", A, (), None, "no claim opened anything"),
        ("ahead.committed", (), (), None, "at least 1 messages"),
        ("ahead.committed", A, A, A | B, "open was"),
        ("ahead.commit", (), (), None, None),
        ("ahead.commit", L, (), L, None),
        ("ahead.commit", A, (), None, "nothing but l had been opened"),
        ("ahead.spared", L | A, (), None, "nothing but l had been opened"),
        ("ahead.behind", A | B, (), A | B, None),
        ("ahead.behind", A, (), None, "at least 2 messages"),
        ("give_back.commit", L | A | B, (), L | A | B, None),
        ("give_back.commit", L | A, (), None, "at least 3 messages"),
        ("give_back.committed", L | A, L | A | B, None, None),
        ("give_back.committed", L, L | A | B, None, None),
        ("give_back.committed", L | A | C, L | A | B, None, "given back was"),
        ("give_back.committed", L | A | C, L | A | B, L | A, "open was"),
        ("give_back.committed", L | A | B, L | A | B, None, "given back was"),
        ("give_back.committed", L | B, L | A | B, None, "given back was"),
        ("give_back.committed", A, L | A | B, None, "given back was"),
        ("give_back.committed", L | A, L | A, None, "given back was"),  # nothing to give
        ("lane.idle", A, (), (), "open was"),
    ],
)
def test_what_is_in_doubt_is_what_was_open(
    point: str, doubted: Pairs, opened: Pairs, stood: Pairs | None, told: str | None
) -> None:
    found = inexact(
        POINTS[point],
        frozenset(doubted),
        sent=[pair for one in (M, L, A, B, C) for pair in sorted(one)],
        late="" if point.startswith("lane") else "l",
        opened=frozenset(opened),
        stood=None if stood is None else frozenset(stood),
        first=True,
    )
    assert any(told in text for text in found) if told else found == []


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path / "stage", frozenset(("mail",))) as stage:
        yield stage


def test_planted_faults_on_an_engine_are_noticed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Stage._until_over

    def then(sql: str) -> None:
        def final(own: Stage, mail: named_stage._Mail) -> None:
            real(own, mail)
            assert own.engine.tamper(sql) > 0

        monkeypatch.setattr(Stage, "_until_over", final)

    then("UPDATE attempt SET in_doubt = 0 WHERE in_doubt")
    unmarked = stage.case("wire.dot")
    assert (unmarked.hit, unmarked.silent) == (True, 1)
    assert any("doubled_unmarked" in text for text in unmarked.findings)
    assert "a transaction was open, and nothing is in doubt" in unmarked.findings

    then("DELETE FROM recipient WHERE finished_ms IS NOT NULL")
    gone = stage.case("lane.claimed")
    assert gone.hit
    assert any("store check" in text for text in gone.findings)

    monkeypatch.undo()
    monkeypatch.setattr(named_stage, "TOKEN_S", 1.0)
    monkeypatch.setattr(Stage, "_arm", lambda own, told: None)
    nobody = stage.case("lane.claimed")
    assert (nobody.hit, nobody.findings) == (False, ["the point was not reached"])


def test_a_visit_that_messages_at_once_do_not_bring_is_reached(stage: Stage) -> None:
    """Those behind the first are opened together: two visits, however many they are."""
    found = stage.case("open.open", hit=4)
    assert (found.hit, found.findings) == (True, [])


def test_a_row_that_is_gone_after_a_client_died_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Clients.run

    def losing(own: Clients, line: dict[str, object]) -> dict[str, object]:
        answer = real(own, line)
        connection = apsw.Connection(str(line["store"]))
        for table in ("recipient", "message", "event", "idempotency", "content"):
            connection.execute(f"DELETE FROM {table}")
        connection.close()
        return answer

    with Clients(tmp_path) as clients:
        assert clients.case("client.synced").findings == []
        monkeypatch.setattr(Clients, "run", losing)
        assert "0 messages are there" in clients.case("client.synced").findings


@pytest.mark.parametrize(
    "spec",
    [
        {"at": "mailstrom.lockfile:LockFile.gone", "when": "before"},
        {"at": "mailstrom.lockfile:Gone.acquire", "when": "before"},
        {"sql": "no_such_statement"},
        {"sql": "COMMIT", "inside": "no_such_statement"},
        {"sql": "COMMIT", "within": "mailstrom.lockfile:gone"},
        {"sql": "claim+lost"},
        {"sql": "COMMIT", "inside": "gone+opened"},
    ],
)
def test_a_place_that_has_moved_ends_the_process_loudly(
    spec: dict[str, str], tmp_path: Path
) -> None:
    told = {"folder": str(tmp_path), "points": {"moved": spec}}
    ran = subprocess.run(
        [sys.executable, "-P", "-c", "import mailstrom.lockfile, mailstrom.storage.sqlite.sql"],
        env=with_faults({"torture_points": told}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 86, ran.stderr
    assert "torture_points" in ran.stderr


def test_who_comes_first_dies_and_the_next_one_lives(tmp_path: Path) -> None:
    told = settings(str(tmp_path), frozenset(("janitor",)))
    told["points"] = {"janitor.role": told["points"]["janitor.role"]}
    (tmp_path / "armed").write_text(
        json.dumps({"point": "janitor.role", "hit": 2, "do": "kill", "token": "token"})
    )
    program = (
        "from mailstrom.lockfile import LockFile\n"
        f"for _ in range(3): LockFile({str(tmp_path / 'janitor.lock')!r}).acquire()\n"
    )
    argv = [sys.executable, "-P", "-c", program]
    env = with_faults({"torture_points": told})
    ended = [subprocess.run(argv, env=env, timeout=60, check=False).returncode for _ in range(2)]
    assert ended == [-9, 0]
    assert json.loads((tmp_path / "token").read_text())["point"] == "janitor.role"
    assert str(INJECT) not in environment().get("PYTHONPATH", "")


# The table


def _table() -> dict[str, str]:
    """Row -> its last cell, of the crash table."""
    text = QUEUE.read_text("utf-8")
    inner = text.partition("<!-- crash table -->")[2].partition("<!-- end of crash table -->")[0]
    found = re.findall(r"^\| ([A-Z]\d+) \|.*\| ([^|]*) \|$", inner, re.MULTILINE)
    return dict(found)


def _tests() -> set[str]:
    return {
        node.name
        for file in (CHECKOUT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_each_row_of_the_crash_table_names_what_looks_there() -> None:
    table = _table()
    assert len(table) > 40
    tests = _tests() | {file.name for file in (CHECKOUT / "tests").rglob("test_*.py")}
    named: dict[str, set[str]] = {}
    for row, cell in table.items():
        codes = re.findall(r"`([^`]+)`", cell)
        assert codes, f"{row} names no test"
        for code in codes:
            part, colon, points = code.partition(": ")
            if not colon:
                assert part in tests, f"{row}: there is no {part}"
                continue
            assert part == "named_kills", f"{row}: {part}"
            own = {name for name, point in POINTS.items() if point.row == row}
            for point in points.split(", "):
                matching = {name for name in own if name == point or (
                    point.endswith(".*") and name.startswith(point[:-1])
                )}  # fmt: skip
                assert matching, f"{row}: {point} is no point of this row"
                named.setdefault(row, set()).update(matching)
    for name, point in POINTS.items():
        assert name in named.get(point.row, set()), f"{point.row} does not name {name}"
