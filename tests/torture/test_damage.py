"""Damaged spools, in the short form; and that the oracle objects to what it must object to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import apsw
import pytest
from msgspec import structs

from mailstrom.storage.base import Claimed
from mailstrom.storage.sqlite import claims, worker
from mailstrom.storage.sqlite.salvage import salvage
from mailstrom.storage.sqlite.salvage_report import Salvaged
from mailstrom.testing.script import Script
from tests.support.checker import History, Sent, check, content_digest
from tests.support.engine import Engine, mail
from tests.support.network import Network, dots
from tests.support.sockets import eventually
from tests.support.trial import Plan
from tests.support.witnesses import seen_by_server
from tests.torture import damage_judge
from tests.torture.damage import KINDS, MESSAGES, Base, base_at, run
from tests.torture.damage_judge import audit, judge, misled, strangers, unnamed
from tests.torture.damage_spool import client_at, deliver
from tests.torture.table import Row


@pytest.mark.timeout(400)
def test_damage_never_sends_what_was_not_accepted(tmp_path: Path) -> None:
    rows = list(run(Plan(folder=tmp_path)))
    *faults, misled, strangers = rows
    assert len(faults) == len(KINDS)
    for row in rows:
        assert row.clean, row
    assert sum(row.tried for row in faults) >= 165
    assert all(row.tried >= 5 for row in faults if "envelope" in row.fault), rows
    # Both are known (docs/known-issues.md): the table says how much, and no trial of them is empty.
    assert 0 < misled.tried < misled.messages
    assert 0 < strangers.tried <= strangers.messages


@pytest.mark.parametrize(
    ("planted", "clean"),
    [
        (lambda row: structs.replace(row, damaged=False), []),
        (
            lambda row: row if row.body is None else structs.replace(row, damaged=False),
            ["damage: the envelope's content"],  # only that of long messages can be another's
        ),
    ],
)
def test_an_envelope_that_is_not_compared_is_noticed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    planted: Callable[[Claimed], Claimed],
    clean: list[str],
) -> None:
    real = claims.complete
    monkeypatch.setattr(
        claims, "complete", lambda rows, found: [planted(one) for one in real(rows, found)]
    )
    rows = _aimed(tmp_path, monkeypatch)
    assert [row.fault for row in rows if row.clean] == clean


class Any:
    """Equals everything."""

    def __eq__(self, _other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("name", "columns"),
    [("_fits", ("require_tls", "on_doubt", "envid")), ("checksum", ("address", "orcpt"))],
)
def test_a_digest_of_the_envelope_that_is_dropped_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, columns: tuple[str, ...]
) -> None:
    plants = {"_fits": lambda row, kept: True, "checksum": lambda *texts: Any()}
    monkeypatch.setattr(claims, name, plants[name])
    rows = _aimed(tmp_path, monkeypatch)
    noticed = {row.fault.rpartition(" ")[2] for row in rows if not row.clean}
    assert noticed >= set(columns)


def test_a_mixture_of_two_spools_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault: envelopes out of a foreign -wal, with content that lay in this spool; no
    digest is compared.
    """
    monkeypatch.setattr(worker, "digest", lambda data: Any())
    real = claims.complete
    monkeypatch.setattr(
        claims,
        "complete",
        lambda rows, found: [structs.replace(r, damaged=False) for r in real(rows, found)],
    )
    row, _, strangers = _aimed(tmp_path, monkeypatch, "another spool")
    assert any("not the sender, bytes" in text for text in row.findings), row.findings
    assert strangers.tried


def _aimed(folder: Path, monkeypatch: pytest.MonkeyPatch, word: str = "envelope") -> list[Row]:
    """The kinds that are aimed at the envelope, or at something else, alone."""
    kinds = {name: kind for name, kind in KINDS.items() if word in name}
    monkeypatch.setattr("tests.torture.damage.KINDS", kinds)
    rows = list(run(Plan(folder=folder)))
    return [row for row in rows if "(known)" not in row.fault] if word == "envelope" else rows


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return base_at(tmp_path / "base", 3, log=False)


def tamper(path: Path, *statements: str) -> None:
    connection = apsw.Connection(str(path))
    for statement in statements:
        connection.execute(statement)
    connection.close()


def test_a_sound_spool_is_delivered_and_salvaged_whole(base: Base) -> None:
    path = base.folder / "spool.db"
    done = salvage(str(path), str(base.folder / "new.db"), base.truth.now_ms)
    found, kept = audit(base.folder / "new.db", done, base.truth, None)
    assert (found, done.sound, done.whole) == ([], True, MESSAGES)
    assert len(kept) == MESSAGES
    wire = deliver(path, base.truth)
    assert judge(wire, base.truth, None, path, repeats=False) == []
    assert {one.address for one in wire.seen} == base.truth.waiting


def test_the_oracle_sees_other_bytes_a_phantom_a_double_and_a_wrong_host(base: Base) -> None:
    path = base.folder / "spool.db"
    wire = deliver(path, base.truth)
    seen = list(wire.seen)
    first = next(one for one in seen if one.require_tls)
    for planted, word in (
        (replace(first, content=first.content + b"x"), "not the sender, bytes"),
        (replace(first, sender="other@s.test"), "not the sender, bytes"),
        (replace(first, require_tls=False), "not the sender, bytes"),
        (replace(first, address="nobody@d0.test"), "phantom"),
        (replace(first, host="mx.evil.test"), "went to mx.evil.test"),
    ):
        wire.seen[0] = planted
        assert any(word in text for text in judge(wire, base.truth, None, path, repeats=False))
    led = [replace(one, host="mx.evil.test") if one == first else one for one in seen]
    wire.seen = led
    assert judge(wire, base.truth, None, path, repeats=False, routes=True) == []
    assert misled(wire) == [(first.address, "mx.evil.test")]
    wire.seen[0] = wire.seen[1]
    assert any("twice" in text for text in judge(wire, base.truth, None, path, repeats=False))


def test_the_oracle_sees_every_byte_of_another_spool(base: Base, tmp_path: Path) -> None:
    other = base_at(tmp_path / "other", 4, log=False, name="there")
    path, new = other.folder / "spool.db", other.folder / "new.db"
    done = salvage(str(path), str(new), other.truth.now_ms)
    wire = deliver(path, other.truth)
    assert all("phantom" in text for text in judge(wire, base.truth, None, path, repeats=True))
    assert judge(wire, base.truth, other.truth, path, repeats=True) == []
    assert strangers(wire, other.truth) == len(wire.seen) > 0
    mail = base.truth.mails[base.truth.by_address[sorted(base.truth.waiting)[0]]]
    for planted in (
        replace(wire.seen[0], content=mail.content),
        replace(wire.seen[0], sender=mail.sender),
        replace(wire.seen[0], address=mail.recipients[0]),
    ):
        mixed = replace(wire, seen=[planted, *wire.seen[1:]])
        assert judge(mixed, base.truth, other.truth, path, repeats=True), planted
    found, kept = audit(new, done, base.truth, None)
    assert len(found) == 20
    assert kept == set()
    assert audit(new, done, base.truth, other.truth) == ([], set(other.truth.mails))


def test_a_salvage_that_does_not_tell_of_a_foreign_log_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(source: str, target: str, now_ms: int) -> Salvaged:
        return replace(salvage(source, target, now_ms), replaced=0)

    monkeypatch.setattr(damage_judge, "salvage", silent)
    row, *_ = _aimed(tmp_path, monkeypatch, "another spool")
    assert any("nothing is said of its -wal" in text for text in row.findings), row.findings


def test_the_oracle_misses_a_message_and_sees_wrong_content_of_a_salvage(base: Base) -> None:
    new = base.folder / "new.db"
    done = salvage(str(base.folder / "spool.db"), str(new), base.truth.now_ms)
    tamper(
        new,
        "DELETE FROM content WHERE key = (SELECT min(seq) * 4096 FROM message)",
        "DELETE FROM recipient WHERE seq = (SELECT max(seq) FROM recipient)",
    )
    found, kept = audit(new, done, base.truth, None)
    assert found
    assert len(kept) < MESSAGES


def test_the_oracle_sees_a_recipient_that_nobody_names_and_one_that_waits_too_long(
    base: Base,
) -> None:
    new = base.folder / "new.db"
    done = salvage(str(base.folder / "spool.db"), str(new), base.truth.now_ms)
    lost = sorted(base.truth.waiting)[-1]
    assert unnamed(new, done, base.truth, set(), silent=False) == []
    tamper(
        new,
        f"DELETE FROM recipient WHERE address = '{lost}'",
        "UPDATE recipient SET due_ms = due_ms + 1000 * 86400000"
        " WHERE seq = (SELECT max(seq) FROM recipient WHERE due_ms IS NOT NULL)",
    )
    assert unnamed(new, done, base.truth, set(), silent=False) == [
        f"{lost} is neither salvaged nor named"
    ]
    assert "nothing is said" in unnamed(new, done, base.truth, {lost}, silent=False)[0]
    assert unnamed(new, done, base.truth, {lost}, silent=True) == []
    found, _ = audit(new, done, base.truth, None)
    assert any("past its expiry" in text for text in found)


def test_an_engine_on_a_damaged_spool_sends_only_what_is_whole(tmp_path: Path) -> None:
    with Network() as network:
        engine = Engine(network, tmp_path, workers=1)
        try:
            domain, hosts = network.site(Script())
            sent = []
            for number in range(40):
                address = f"r{number}@{domain}"
                message = mail(address, text=f"number {number}\n" * 40)
                message["Message-ID"] = f"<{number}@sender.test>"
                id = engine.ms.send(message)
                wire = content_digest(engine.ms.raw(id))
                sent.append(Sent(id=id, message_id=f"<{number}@sender.test>", recipient=address,
                                 digest=wire))  # fmt: skip
            engine.tamper("UPDATE content SET data = zeroblob(length(data)) WHERE key = 4 * 4096")
            engine.tamper("UPDATE message SET sender = 'x' || substr(sender, 2) WHERE seq = 5")
            engine.tamper("UPDATE recipient SET address = 'x' || address WHERE message = 6")
            engine.tamper("UPDATE message SET content = -8 WHERE seq = 9")
            engine.start()
            sql = "SELECT count(*) FROM recipients WHERE finished_ms IS NULL"
            eventually(lambda: engine.rows(sql)[0][0] == 0, 45.0, what="the end of the queue")
            history = History(acknowledged=tuple(sent), seen=seen_by_server(dots(hosts)), spool=())
            report = check(history)
            assert (report.phantom, report.wrong_bytes, report.doubled_unmarked) == ((), (), ())
            assert len(dots(hosts)) == 36
            failed = engine.log("recipient.failed", reason="damaged")
            assert len(failed) == 4
            assert engine.stop() == 0
        finally:
            engine.close()


def test_text_that_is_none_is_set_aside_and_its_neighbours_are_sent(base: Base) -> None:
    path = base.folder / "spool.db"
    broken = sorted(base.truth.waiting)[0]
    tamper(
        path,
        "UPDATE recipient SET address = CAST(x'ff' || substr(CAST(address AS BLOB), 2) AS TEXT)"
        f" WHERE address = '{broken}'",
    )
    wire = deliver(path, base.truth)
    assert (wire.refused, wire.crashed) == (None, None)
    assert {one.address for one in wire.seen} == base.truth.waiting - {broken}
    assert len(wire.damaged) == 1


def test_a_tls_demand_that_is_lost_is_never_sent_and_one_that_is_added_is_kept(base: Base) -> None:
    path, truth = base.folder / "spool.db", base.truth
    due = [truth.mails[truth.by_address[address]] for address in sorted(truth.waiting)]
    lowered = next(mail for mail in due if mail.require_tls)
    raised = next(mail for mail in due if not mail.require_tls)
    flip = "UPDATE message SET require_tls = 1 - require_tls WHERE id IN"
    tamper(path, f"{flip} ('{lowered.id}', '{raised.id}')")
    wire = deliver(path, truth)
    assert judge(wire, truth, None, path, repeats=False) == []
    assert set(wire.damaged) == set(lowered.recipients) & truth.waiting
    assert {one.address for one in wire.seen} == truth.waiting - set(lowered.recipients)
    demands = [one.require_tls for one in wire.seen if one.address in raised.recipients]
    assert demands
    assert all(demands)


def test_a_kind_of_damage_that_changes_nothing_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = replace(KINDS["no -wal"], fault=lambda path, chance, base, other: None)
    monkeypatch.setattr("tests.torture.damage.KINDS", {"nothing": quiet})
    assert [row.tried for row in run(Plan(folder=tmp_path))] == [0, 0, 0]


def test_the_population_has_every_state(base: Base) -> None:
    client = client_at(base.folder / "spool.db")
    rows = client.query("SELECT DISTINCT status FROM recipients", (), 10.0)
    client.close()
    assert {"queued", "deferred", "held", "delivered", "sending"} <= {str(row[0]) for row in rows}
