"""No case of TLS ends otherwise than the table says; and the judge objects to what it must."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile import tls
from tests.hostile.table import Row
from tests.hostile.tls_cases import AUTH_CASES, CASES, RECORDS
from tests.hostile.tls_certificates import Issuer
from tests.hostile.tls_shaking import count
from tests.hostile.tls_table import AUTH, COLUMNS, EXPECTED, SAID, WORDS, Facts, expected
from tests.hostile.tls_talk import Setting
from tests.hostile.tls_trial import Policy, passed_on, word_of
from tests.support.trial import Plan

REFUSED = "refused by a reply - host - - - -"
WAITS = Facts("deferred", "tls", "", 0, "tls", "", "no TLS", "starttls")


@pytest.mark.timeout(300)
def test_every_outcome_is_the_one_wanted(tmp_path: Path) -> None:
    rows = list(tls.run(Plan(folder=tmp_path)))
    assert [row for row in rows if not row.clean] == []
    assert len(rows) > 45
    assert sum(row.tried for row in rows) > 200


def judged(monkeypatch: pytest.MonkeyPatch, folder: Path, policy: Policy, table: str) -> list[Row]:
    """The rows of a table of one line, or few, under one policy."""
    monkeypatch.setattr(tls, "POLICIES", (policy,))
    monkeypatch.setattr(tls, "SHORT", {policy.name: 2})
    monkeypatch.setattr(tls, "EXPECTED", table)
    return list(tls.run(Plan(folder=folder)))


def test_mail_in_clear_is_objected_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An engine that was told less than the policy says: it goes on in clear."""
    lying = Policy(name="require", column="must")
    (row,) = judged(monkeypatch, tmp_path, lying, "refused by a reply - - host - - -")
    assert not row.clean
    assert row.seen == SAID["clear"]
    told = "\n".join(row.findings)
    assert "454: clear" in told
    assert "tls_wanted is opportunistic" in told


def test_words_in_clear_are_objected_to_whatever_the_outcome(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Here the word is altered, so that mail in clear is no word that is known."""
    monkeypatch.setitem(WORDS, "clear", WORDS["clear"]._replace(charged=7))
    (row,) = judged(monkeypatch, tmp_path, tls.POLICIES[0], REFUSED)
    assert "delivered" in row.seen
    assert any("MAIL, RCPT, content in clear" in text for text in row.findings)


def test_a_greedy_worker_is_objected_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tls, "MOST", -1)
    (row,) = judged(monkeypatch, tmp_path, tls.POLICIES[0], "a true certificate - tls - - - -")
    assert row.seen == row.wanted
    assert ["the worker grew" in text for text in row.findings] == [True]


def test_a_relay_is_judged_as_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    relay = Policy(name="relay required", column="must", relay={"tls": "required"})
    (row,) = judged(monkeypatch, tmp_path, relay, "not offered - - clear - - -")
    assert (row.wanted, row.seen) == (SAID["clear"], SAID["host"])


def test_a_next_host_that_is_not_asked_fits_no_word() -> None:
    assert word_of(WAITS) == "host"
    assert word_of(WAITS, spared=True) not in WORDS
    assert passed_on(WAITS, "host") == "host"
    lost = Facts("delivered", "", "", 1, "", "", "TLS", "closed")
    assert passed_on(lost, "bounced") == "lost"
    assert passed_on(lost._replace(charged=0), "bounced") == "mail"
    assert passed_on(WAITS._replace(end="quit"), "host") not in ("host", "clear", "tls")


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": "failed"}, {"reason": "remote"}, {"doubt": "in doubt"}, {"charged": 1},
        {"waits": ""}, {"tls": "TLS"}, {"end": "mail"},
    ],
)  # fmt: skip
def test_each_fact_counts(wrong: dict[str, object]) -> None:
    assert word_of(WAITS._replace(**wrong)) != "host"  # type: ignore[arg-type]


def test_every_line_of_the_table_is_tried_and_no_other() -> None:
    assert set(expected(EXPECTED)) == set(CASES)
    assert set(expected(AUTH)) == set(AUTH_CASES)
    words = {
        word
        for table in (EXPECTED, AUTH)
        for line in expected(table).values()
        for cell in line.values()
        for word in cell
    }
    assert words <= set(WORDS) == set(SAID)
    assert {policy.column for policy in tls.POLICIES} == set(COLUMNS)


@pytest.mark.parametrize("version", RECORDS)
def test_a_fault_is_tried_at_each_record(version: str, tmp_path: Path) -> None:
    setting = Setting(
        name="mx.test", implicit=False, issuer=Issuer(tmp_path / "ca"), folder=tmp_path
    )
    assert RECORDS[version] == count(setting.context("", version))
