"""Hosts that break off, refuse, mix and vanish: the short form, and that its judges object."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mailstrom.testing.records import Dot, Transaction
from mailstrom.testing.script import Rule, Script
from mailstrom.testing.smtp import SMTPServer
from tests.hostile import odd, servers, servers_bdat, servers_lies, servers_mixed, servers_reuse
from tests.hostile.servers_judge import Trial, family
from tests.hostile.servers_stages import SETTINGS, group, told, wanted
from tests.hostile.servers_trains import TAKEN, Came, Train, run, witnessed
from tests.hostile.stand import Stand, standing
from tests.scenarios.stage_table import Cell
from tests.support.trial import Plan


@pytest.mark.timeout(300)
def test_every_outcome_is_the_wanted_one(tmp_path: Path) -> None:
    rows = list(servers.run(Plan(folder=tmp_path)))
    assert [row for row in rows if not row.clean] == []
    assert len(rows) > 110
    assert sum(row.tried for row in rows) > 1_500


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with standing(tmp_path_factory.mktemp("servers"), SETTINGS) as stand:
        yield stand


def test_a_row_of_which_nothing_was_tried_is_not_clean(stand: Stand) -> None:
    assert not family(stand, "nothing", "all is well", lambda: iter(())).clean


def test_one_trial_of_many_that_ended_otherwise_is_told(stand: Stand) -> None:
    trials = [Trial(name=str(number), wanted=0, seen=number == 7) for number in range(9)]
    row = family(stand, "nine", "none", lambda: trials)
    assert (row.clean, row.tried, row.seen) == (False, 9, "7: True, not 0")


@pytest.mark.parametrize(
    ("stage", "fault", "field", "other"),
    [
        ("dot", "half", "last_in_doubt", "no"),
        ("dot", "half", "next_host", "yes"),
        ("rcpt", "reset", "attempts", "0"),
        ("mail", "5xx", "last_status", "deferred"),
    ],
)
def test_another_outcome_of_a_cell_is_seen(
    stand: Stand, stage: str, fault: str, field: str, other: str
) -> None:
    cell = Cell(stage, fault, "serial")
    table = wanted()
    right = group(stand, "right", [cell], told(table[cell]), table)
    altered = {cell: table[cell]._replace(**{field: other})}
    wrong = group(stand, "wrong", [cell], told(altered[cell]), altered)
    assert (right.clean, wrong.clean) == (True, False)


# Mixed replies


def mixed(stand: Stand, monkeypatch: pytest.MonkeyPatch, code: int) -> bool:
    """Whether a row is clean where each recipient gets ``code``, and 550 and 250 are expected."""
    placed = servers_mixed._place
    monkeypatch.setattr(servers_mixed, "pattern", lambda dice, lost: [550, 250, 250])

    def planted(stand: Stand, mode: str, codes: list[int], **how: Any) -> servers_mixed.Tried:
        tried = placed(stand, mode, [550, code, 250], **how)
        return servers_mixed.Tried(codes=codes, domain=tried.domain, hosts=tried.hosts)

    monkeypatch.setattr(servers_mixed, "_place", planted)
    rows = servers_mixed.first_verdicts(stand, Plan(folder=Path()), 1)
    return next(rows).clean


@pytest.mark.parametrize("code", [250, 450, 550, 421])
def test_a_host_that_answers_otherwise_than_was_expected_of_it_is_seen(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    assert mixed(stand, monkeypatch, code) is (code == 250)


def host_with(*taken: tuple[str, ...]) -> SMTPServer:
    """A host that took these recipients, each tuple in a transaction."""
    host = SMTPServer()
    for names in taken:
        dot = Dot(
            at=0.0, connection=1, sender="", recipients=names, message_id="", digest="", octets=0,
            kept=True,
        )  # fmt: skip
        told = [(name, 250) for name in names]
        host.transactions.append(Transaction(connection=1, sender="", recipients=told, dot=dot))
    return host


def test_a_recipient_that_is_named_again_after_it_was_taken_is_seen() -> None:
    fates = [servers_mixed.Fate("delivered", 250, -1)] * 2
    names = ("u0@x.test", "u1@x.test")

    def objection(*taken: tuple[str, ...]) -> str:
        tried = servers_mixed.Tried(codes=[250, 250], domain="x.test", hosts=[host_with(*taken)])
        return servers_mixed.witnessed(tried, fates)

    assert objection(names) == ""
    assert "2 copies" in objection(names, names[:1])
    assert "0 copies" in objection(names[:1])
    asked = host_with(names)
    asked.transactions.append(Transaction(connection=2, sender="", recipients=[(names[1], 450)]))
    tried = servers_mixed.Tried(codes=[250, 250], domain="x.test", hosts=[asked])
    assert "named again" in servers_mixed.witnessed(tried, fates)


# Lies


def test_content_that_is_read_as_commands_is_seen(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = servers_lies.Lie(case="nothing", answers={}, wanted=TAKEN, taken=1)
    assert servers_lies.row(stand, "right", [honest]).clean

    command = odd._Talk._command

    def never_content(talk: odd._Talk, line: str) -> None:
        command(talk, line)
        talk._content = False

    monkeypatch.setattr(odd._Talk, "_command", never_content)
    planted = servers_lies.Lie(
        case="x", answers={"RCPT": "550 5.1.1 no\r\n"}, wanted=servers_lies.BOUNCED
    )
    wrong = servers_lies.row(stand, "wrong", [planted])
    assert not wrong.clean
    assert "strays=['.'" in wrong.seen, "the lone dot"


def test_a_ladder_that_stands_elsewhere_is_seen(stand: Stand) -> None:
    lie = next(lie for lie in servers_lies.LIES if lie.case == "354 to RCPT")
    planted = servers_lies.Lie(case="x", answers=lie.answers, wanted=lie.wanted, rung="full")
    assert not servers_lies.row(stand, "wrong", [planted]).clean


def test_a_bdat_that_ends_otherwise_is_seen(stand: Stand) -> None:
    (case,) = [case for case in servers_bdat.CASES if case.case == "554 to BDAT"]
    right = servers_bdat.row(stand, "right", [case])
    other = servers_bdat.Case(case="x", rule=case.rule, first=case.first, proved=case.first)
    assert (right.clean, servers_bdat.row(stand, "wrong", [other]).clean) == (True, False)


# Trains


def test_a_train_tells_a_charge_that_was_not_wanted(stand: Stand) -> None:
    refuses = Script(rules=(Rule(stage="mail", code=554, last=1),))
    train = Train(name="x", script=refuses, local=["m0", "m1"], wanted=Came({TAKEN: 4}, {}))
    (trial,) = run(stand, [train])
    assert trial.seen != trial.wanted


@pytest.mark.parametrize(
    ("taken", "delivered", "doubted", "words"),
    [
        ([("m1@x", "m1.too@x")], {"m1@x", "m1.too@x"}, set(), ""),
        ([("m1@x",), ("m1@x",)], {"m1@x"}, {"m1@x"}, ""),
        ([("m1@x",), ("m1@x",)], {"m1@x"}, set(), "m1@x: 2 copies"),
        ([], {"m1@x"}, set(), "m1@x: 0 copies"),
        ([("m1@x", "m2.too@x")], {"m1@x", "m2.too@x"}, set(), "several messages"),
    ],
)
def test_what_a_host_objects_to(
    taken: list[tuple[str, ...]], delivered: set[str], doubted: set[str], words: str
) -> None:
    found = witnessed(host_with(*taken), delivered, doubted=doubted)
    assert words in found
    assert bool(words) is bool(found)


def test_recipients_of_one_message_in_another_are_seen() -> None:
    sound = host_with(("yes-7.0@x", "yes-7-yes-7.1@x"), ("half-8.0@x", "norcpt-half-8.1@x"))
    assert servers_reuse.unsound(sound) == ""
    assert servers_reuse.unsound(host_with(("yes-7.0@x", "yes-8-yes-8.1@x"))) != ""
