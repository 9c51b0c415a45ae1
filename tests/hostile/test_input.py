"""What applications hand in: the short form is clean, and the judges object to what is not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.hostile import (
    input,
    input_addresses,
    input_bodies,
    input_config,
    input_told,
    input_wire,
)
from tests.hostile.input_config import Ran
from tests.hostile.input_host import RecordingHost, Taken
from tests.hostile.input_made import BASE, Case, Maker
from tests.hostile.input_payloads import EVIL
from tests.hostile.input_wire import Outcome, handed_in, judged, wrong
from tests.hostile.stand import Stand, standing
from tests.support.engine import mail
from tests.support.sockets import eventually, loopback_addresses
from tests.support.trial import Plan

LEAST_ROWS, LEAST_TRIALS = 15, 1_300
HEAD = b"From: a@sender.test\r\nTo: c1@d.test\r\nSubject: s\r\nX-Case: 1\r\n"


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with standing(tmp_path_factory.mktemp("judge"), input.SETTINGS) as stand:
        yield stand


@pytest.mark.timeout(300)
def test_nothing_that_is_handed_in_adds_to_what_was_meant(tmp_path: Path) -> None:
    rows = list(input.run(Plan(folder=tmp_path)))
    assert [row for row in rows if not row.clean] == []
    assert len(rows) >= LEAST_ROWS
    assert sum(row.tried for row in rows) >= LEAST_TRIALS


def case(**changes: object) -> Case:
    made = next(Maker(1, "d.test").cases(1, 0))
    return replace(made, place="Subject, legacy", names=BASE, **changes)  # type: ignore[arg-type]


def taken(
    head: bytes = HEAD, *, sender: bytes = b"a@sender.test", more: tuple[bytes, ...] = ()
) -> Taken:
    return Taken(
        mail=b"MAIL FROM:<" + sender + b">", rcpts=(b"RCPT TO:<c1@d.test>", *more),
        content=head + b"\r\nx\r\n",
    )  # fmt: skip


def test_what_was_intended_is_clean() -> None:
    assert wrong(case(), [taken()]) == []
    assert wrong(case(), [taken(b"Date: x\r\nMessage-ID: <a@b>\r\n" + HEAD)]) == []


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (taken(HEAD + b"Bcc: x@y.test\r\n"), "fields too many: ['bcc']"),
        (taken(HEAD + b"Subject: two\r\n"), "fields too many: ['subject']"),
        (taken(HEAD.replace(b"Subject: s\r\n", b"")), "fields too few: ['subject']"),
        (taken(HEAD.replace(b": s", b": s\xe2\x80\xa8Bcc: x")), "a reader of any line end"),
        (taken(HEAD.replace(b": s", b": s\x0bX-Evil: x")), "a reader of any line end"),
        (taken(HEAD.replace(b": s", b": s\rx")), "a bare line end"),
        (taken(HEAD.replace(b": s", b": =?utf-8?q?a=0Ab?=")), "decodes to a line end"),
        (taken(more=(b"RCPT TO:<" + EVIL.encode() + b">",)), "recipients"),
        (taken(sender=b"b@sender.test"), "MAIL FROM"),
        (taken(HEAD + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nx"), "parts"),
    ],
)  # fmt: skip
def test_whatever_is_added_or_changed_is_seen(one: Taken, words: str) -> None:
    assert any(words in text for text in wrong(case(), [one])), wrong(case(), [one])


def test_a_second_transaction_and_a_lost_one_are_seen() -> None:
    assert "2 transactions" in wrong(case(), [taken(), taken()])[0]
    assert "0 transactions" in wrong(case(), [])[0]


def test_an_address_that_became_another_is_seen() -> None:
    odd = case(sender=None, attacked=f"a@sender.test<{EVIL}>", recipients=("c1@d.test",))
    assert wrong(odd, [taken(sender=b"z@evil.invalid")])


def test_what_was_written_by_nobody_is_a_finding(stand: Stand) -> None:
    """A message that no case accounts for, and one that was accepted and never came."""
    network = stand.network
    host = RecordingHost(loopback_addresses()[0], network.port)
    network.serve(host)
    domain = network.new_domain()
    network.route(domain, [host.address])
    before = input_wire.count(stand)
    stand.engine.final(stand.engine.ms.send(mail(f"c@{domain}")))
    lost = Outcome(replace(case(), number=999), id="none")
    (row,) = judged(stand, host, [lost, Outcome(case(), refused="x")], before)
    assert not row.clean
    assert any("a transaction of no case" in text for text in row.findings)
    assert any("there were 0 transactions" in text for text in row.findings)
    (row,) = judged(stand, host, [Outcome(case(), refused="x")], before)
    assert any("1 messages were written, 0 accepted" in text for text in row.findings)


def test_an_error_of_another_kind_is_a_finding(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> str:
        raise IndexError("out of range")

    monkeypatch.setattr(type(stand.engine.ms), "send", broken)
    plain = replace(case(), made=lambda: (mail("a@b.test"), {}))
    assert handed_in(stand, plain).findings == ["IndexError: out of range"]


def test_the_host_sees_what_is_no_command_and_no_line(stand: Stand) -> None:
    host = RecordingHost(loopback_addresses()[0], stand.network.port)
    stand.network.serve(host)
    said = (
        b"EHLO a\r\nMAIL FROM:<a\nRSET>\r\nRCPT TO:<x@y> NOTIFY=NEVER\r\nSubject: x\r\n"
        b"MAIL FROM:<a@b> BODY=8BITMIME\r\nRCPT TO:<x@y>\r\nDATA\r\na\rb\r\n..c\r\n.\r\nQUIT\r\n"
    )
    with socket.create_connection((host.address, host.port), 10) as client:
        client.sendall(said)
        eventually(lambda: host.taken, 10, what="the content")
    assert len(host.violations) == 4
    assert host.taken[0].content == b"a\rb\r\n.c\r\n"
    assert (host.taken[0].sender, host.taken[0].recipients) == ("a@b", ["x@y"])


def test_a_domain_that_is_not_behind_the_last_at_is_a_finding(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(input_addresses, "KNOWN", ((f'"a@{EVIL}"@good.invalid', None),))
    monkeypatch.setattr(input_addresses, "last_at", lambda _: "evil.invalid")
    row = input_addresses.tricks(stand, Plan(folder=tmp_path))
    assert not row.clean
    assert "was taken" in row.findings[0]
    assert "not 'evil.invalid'" in row.findings[1]


@pytest.mark.parametrize(
    ("text", "domain"),
    [('"a@b"@c', "c"), ("a@b@c", "c"), ("x <a@b(@d)>", "b"), ('"\\"@b"@c', "c"), ("a", "")],
)
def test_the_judge_of_addresses_reads_on_its_own(text: str, domain: str) -> None:
    assert input_addresses.last_at(text) == domain


def test_a_body_that_changed_is_a_finding(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(input_bodies, "octets", lambda: iter([("dots", b".\r\n..\r\n")]))
    monkeypatch.setattr(input_bodies, "texts", lambda: iter([]))
    (row,) = input_bodies.rows(stand, Plan(folder=tmp_path))
    assert row.clean
    monkeypatch.setattr(input_bodies, "_ended", lambda body: body.replace(b"..", b"."))
    (row,) = input_bodies.rows(stand, Plan(folder=tmp_path))
    assert "dots: 7 octets, not the 6 given" in row.findings[0]


@pytest.mark.parametrize(
    ("made", "seen"),
    [("1 / 0, {}", "exit 1"), ("put('To', 'c@d.test')", "taken"), ("put('To', '(')", "refused")],
)
def test_what_ends_a_child_is_seen(made: str, seen: str) -> None:
    assert str(input_addresses.shape(made)["seen"]).startswith(seen)


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (Ran(code=None, told="it did not end", cpu_s=0), "exit None"),
        (Ran(code=1, told="x.toml", cpu_s=0), "exit 1"),
        (Ran(code=78, told="x.toml\nTraceback", cpu_s=0), "a traceback"),
        (Ran(code=78, told="what?", cpu_s=0), "is not named"),
        (Ran(code=78, told="x.toml \x1b[2J", cpu_s=0), "x1b"),
    ],
)
def test_what_a_command_must_not_say_is_seen(one: Ran, words: str) -> None:
    assert words in str(input_config.wrong(one, (78,), "x.toml"))
    assert input_config.wrong(Ran(code=78, told="x.toml: no", cpu_s=0), (78,), "x.toml") is None


def test_a_key_that_was_taken_or_not_named_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_config, "loaded", lambda _, texts: ["taken", "v1.toml: no"])
    values = [("", "hostname", '"\\r\\nQUIT"'), ("log", "level", "1")]
    monkeypatch.setattr(input_config, "values", lambda _: iter(values))
    row = input_config.broken_values(tmp_path, Plan(folder=tmp_path))
    assert "was taken" in row.findings[0]
    assert "the key is not named" in row.findings[1]


def test_a_line_that_is_no_json_is_seen(stand: Stand) -> None:
    with stand.engine.log_file.open("ab") as log:
        log.write(b'{"event": "owned"}\n{"event": "x"\nforged\x1b[2J\n')
    told = " ".join(input_told.log_lines(stand.engine))
    assert "no JSON object" in told
    assert "x1b" in told
