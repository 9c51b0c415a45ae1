"""Mixed mail through honest servers comes out as it went in; the judge sees where it does not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from email.message import EmailMessage
from pathlib import Path

import pytest

from tests.hostile import honest, honest_peers
from tests.hostile.honest_judge import differences, missing
from tests.hostile.honest_kinds import KINDS, mixed
from tests.hostile.honest_letters import Letter, to
from tests.hostile.honest_peers import House
from tests.hostile.stand import Stand, standing
from tests.support.postfix import Received
from tests.support.sockets import eventually
from tests.support.trial import Plan

pytestmark = pytest.mark.debian

(LETTER,) = mixed("x.test", 1, long=False)["7-bit text"]
BUILT = next(one for one in mixed("x.test", 1, long=True)["built of random pieces"] if one.attached)


@pytest.mark.timeout(300)
def test_all_rows_are_clean(tmp_path: Path) -> None:
    rows = list(honest.run(Plan(folder=tmp_path)))
    assert [row for row in rows if not row.clean] == []
    assert len({row.case.partition(":")[0] for row in rows}) == 6  # four servers, one twice, none
    assert len(rows) >= 70


# The letters


def test_letters_are_the_same_each_time_and_each_has_an_id_of_its_own() -> None:
    once, again = (mixed("x.test", 1, long=True) for _ in range(2))
    letters = [letter for kind in once.values() for letter in kind]
    assert len({letter.message_id for letter in letters}) == len(letters) >= 150
    assert list(once) == list(KINDS)
    assert [one.wire for kind in again.values() for one in kind] == [one.wire for one in letters]


# The judge


def _copy(letter: Letter, raw: bytes, *recipients: str) -> Received:
    return Received(sender=letter.sender, recipients=recipients or letter.recipients, content=raw)


def test_what_arrived_as_it_was_sent_is_no_difference() -> None:
    raw = LETTER.wire
    assert raw is not None
    other = replace(LETTER, message_id="<another@sender.test>")
    assert differences(LETTER, raw, [_copy(LETTER, raw)]) == ()
    assert missing(other, [_copy(LETTER, raw)])


@pytest.mark.parametrize(
    ("old", "new"), [(b"\r\n\r\n", b"\r\n\r\n."), (b"news", b"mews"), (b"\r\n", b"\n")]
)
def test_one_octet_is_a_difference(old: bytes, new: bytes) -> None:
    raw = LETTER.wire
    assert raw is not None
    (told,) = differences(LETTER, raw, [_copy(LETTER, raw.replace(old, new, 1))])
    assert "changed on the way at octet" in told
    (told,) = differences(replace(LETTER, message=raw.replace(old, new, 1) + b"x"), raw,
                          [_copy(LETTER, raw)])  # fmt: skip
    assert "changed when it was accepted" in told


def test_loss_copies_strangers_and_senders_are_differences() -> None:
    raw = LETTER.wire
    assert raw is not None
    good = _copy(LETTER, raw)
    assert differences(LETTER, raw, []) == (f"{LETTER.message_id}: lost for one@x.test",)
    assert "one more for one@x.test" in differences(LETTER, raw, [good, good])[0]
    stranger = _copy(LETTER, raw, "one@x.test", "evil@x.test")
    assert "one more for evil@x.test" in differences(LETTER, raw, [stranger])[0]
    assert "from 'b@sender.test'" in differences(
        LETTER, raw, [replace(good, sender="b@sender.test")]
    )[0]  # fmt: skip


def test_another_attachment_is_a_difference() -> None:
    assert isinstance(BUILT.message, EmailMessage)
    raw = BUILT.message.as_bytes().replace(b"\n", b"\r\n")
    assert differences(BUILT, raw, [_copy(BUILT, raw)]) == ()
    told = differences(replace(BUILT, attached=b"?"), raw, [_copy(BUILT, raw)])
    assert told == (f"{BUILT.message_id}: the attachment is another one",)


# The servers' own logs, and rows


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with standing(tmp_path_factory.mktemp("honest")) as stand:
        yield stand


def test_a_server_that_changes_a_body_makes_a_row_unclean(stand: Stand) -> None:
    with ExitStack() as opened:
        house = honest._started(stand, opened, honest_peers.opensmtpd, secured=False)

        def lying() -> list[Received]:
            return [replace(one, content=one.content + b".") for one in house.server.received()]

        letters = mixed(house.domain, 1, long=False)["7-bit text"]
        row = honest.through(stand, replace(house, received=lying), "7-bit text", letters)
        assert row.seen == "delivered, not as it was sent"
        assert not row.clean
        assert honest.through(stand, house, "8-bit text",
                              mixed(house.domain, 1, long=False)["8-bit text"]).clean  # fmt: skip


def test_a_refusal_where_delivery_was_wanted_makes_a_row_unclean(stand: Stand) -> None:
    with ExitStack() as opened:
        house = honest._started(stand, opened, honest_peers.postfix)
        letter = to(house.domain, "judge", "no")
        row = honest.through(stand, house, "7-bit text", [letter])
    assert (row.wanted, row.seen) == (honest.SAME, "failed bounced")
    assert any("reject:" in finding for finding in row.findings)


RUDE = {
    "Postfix": (b"MAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\n" * 3, "improper command pipelin"),
    "Exim": (b"EHLO x\r\nMAIL FROM:<a@b.test>\r\n", "unexpected disconnection"),
    "OpenSMTPD": (b"DATA\r\n", "503"),
    "chasquid": (b"HOCUS\r\n", "nknown command"),
}


@pytest.mark.parametrize("name", RUDE)
def test_each_log_complains_of_a_client_that_breaks_the_protocol(name: str, stand: Stand) -> None:
    said, word = RUDE[name]

    def started(opened: ExitStack) -> House:
        if name == "chasquid":
            return honest._started(stand, opened, _chasquid)
        start = {
            "Postfix": honest_peers.postfix,
            "Exim": honest_peers.exim,
            "OpenSMTPD": honest_peers.opensmtpd,
        }[name]
        return honest._started(stand, opened, start, secured=False)

    with ExitStack() as opened:
        house = started(opened)
        assert house.complaints(house.log(), refusing=True) == ()
        with socket.create_connection((house.server.address, house.server.port), 30) as rude:
            rude.sendall(said)
            rude.shutdown(socket.SHUT_WR)  # and no QUIT
            eventually(
                lambda: any(word in told for told in house.complaints(house.log(), refusing=True)),
                what=f"a complaint of {name}",
            )


def _chasquid(address: str, port: int, domain: str, tls: honest_peers.TLS | None) -> House:
    assert tls is not None
    return honest_peers.chasquid(address, port, domain, tls, ("one",))
