"""Hosts that talk nonsense: the short form is clean, and the judge objects to what is not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile import replies, replies_stage, replies_told
from tests.hostile.rawhost import Manners, RawHost
from tests.hostile.replies_stage import BOUNCED, DELIVERED, DOUBT, Trial, at_once, judged
from tests.hostile.stand import Stand, standing
from tests.support.sockets import loopback_addresses
from tests.support.trial import Plan

LEAST_ROWS, LEAST_TRIALS = 50, 350


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with standing(tmp_path_factory.mktemp("judge"), replies.SETTINGS) as stand:
        replies.warm(stand)
        yield stand


@pytest.mark.timeout(300)
def test_every_case_comes_to_what_is_wanted(tmp_path: Path) -> None:
    rows = list(replies.run(Plan(folder=tmp_path)))
    assert [row for row in rows if not row.clean] == []
    assert len(rows) >= LEAST_ROWS
    assert sum(row.tried for row in rows) >= LEAST_TRIALS


def test_another_outcome_is_told_of_the_one_host_that_has_it(stand: Stand) -> None:
    well = Trial(name="well", manners=Manners(), wanted=DELIVERED)
    odd = Trial(name="odd", manners=Manners(says={"rcpt": b"550 5.1.1 no\r\n"}), wanted=DELIVERED)
    row = judged(stand, "case", "all delivered", [well, odd, well])
    assert (row.tried, row.clean) == (3, False)
    assert row.seen == f"odd: {BOUNCED} (wanted: {DELIVERED})"
    (other,) = at_once(stand, [("case", "all delivered", [well, odd])])
    assert other.seen == row.seen


def test_a_host_that_has_nothing_shows_a_false_delivery(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies_stage, "wait", lambda *_: DELIVERED)
    lying = Trial(
        name="lying", manners=Manners(says={"rcpt": b"550 5.1.1 no\r\n"}), wanted=DELIVERED
    )
    assert judged(stand, "case", "delivered", [lying]).findings == (
        "lying: told delivered, and the host has nothing",
    )


def test_a_host_that_has_it_shows_a_doubt_that_is_not_marked(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = replies_stage.wait

    def forgetful(stand: Stand, sent: replies_stage.Sent) -> str:
        return looked(stand, sent).replace(" in_doubt in doubt", " remote")

    monkeypatch.setattr(replies_stage, "wait", forgetful)
    garbage = Trial(name="odd", manners=Manners(says={"dot": b"what?\r\n"}), wanted=DOUBT)
    row = judged(stand, "case", "in doubt", [garbage])
    assert row.findings == ("odd: the host may have it, and no doubt is marked",)


def test_what_no_client_may_say_is_seen(stand: Stand) -> None:
    host = RawHost(loopback_addresses()[0], stand.network.port, Manners(offer=("SIZE",)))
    stand.network.serve(host)
    said = (
        b"EHLO c.test\r\n"
        b"MAIL FROM:<a@x.test> BODY=8BITMIME SMTPUTF8\r\n"
        b"RSET\r\nMAIL FROM:<a@x.test>\r\n"
        b"RCPT TO:<gr\xc3\xbc\xc3\x9fe@x.test>\r\nSubject: hello\r\nBDAT 0 LAST\r\nQUIT\r\n"
    )
    with socket.create_connection((host.address, host.port), 10) as client:
        client.sendall(said)
        with client.makefile("rb") as replies:
            assert replies.readlines()[-1].startswith(b"221 ")
    told = " ".join(host.violations)
    for words in (
        "8BITMIME was not offered", "SMTPUTF8 was not offered", "sent ahead without PIPELINING",
        "octets above 127", "no command", "CHUNKING was not offered",
    ):  # fmt: skip
        assert words in told


@pytest.mark.parametrize(
    ("least", "figure"), [("MOST_MEMORY", "memory"), ("MOST_CPU_S", "processor")]
)
def test_what_costs_too_much_is_a_finding(
    least: str, figure: str, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies_stage, least, -1)
    row = judged(stand, "case", "w", [Trial(name="n", manners=Manners(), wanted=DELIVERED)])
    assert row.seen == "w"
    assert [figure in text for text in row.findings] == [True]


@pytest.mark.parametrize(
    "text", ["\x1b[2J", "a\x9b31m", "a\u202eb", "a\u2028b", "a\rb", "\0", "\ud800"]
)
def test_what_moves_a_cursor_or_hides_text_is_seen(text: str) -> None:
    assert replies_told.look(f"well {text}") is not None
    assert replies_told.look("well, gr\u00fc\u00dfe\n") is None


def test_a_word_in_the_log_that_is_not_escaped_is_a_finding(stand: Stand) -> None:
    """Nor is a log clean that tells nothing of what the hosts said."""
    with stand.engine.log_file.open("ab") as log:
        log.write(b'{"event": "x", "reply": "\x1b]0;owned\x07"}\n')
    row = replies_told.log(stand)
    assert not row.clean
