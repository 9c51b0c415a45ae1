"""What a sender asked to be told of: kept, and handed to whoever delivers."""

from __future__ import annotations

import pytest

from mailstrom.errors import InvalidMessage
from mailstrom.storage.client import CHUNK_BYTES, Notice
from tests.storage.spool import T0, Spool, submission

ASKED = {
    "origin": "smtp",
    "client": {"address": "192.0.2.7", "helo": "client.example.com", "tls": None},
    "ret": "hdrs",
    "envid": "QQ=314+159 ü",
    "reports": True,
    "priority_wire": -9,
}
EVERY = tuple(
    Notice(notify, orcpt)
    for notify, orcpt in (
        (None, None),
        ("never", None),
        ("success,failure,delay", "rfc822;Ä\"'\\b@example.org"),
        (None, "utf-8;ü@exämple.org"),
        ("failure", ""),
    )
)


class NoticeContract:
    """Fields of ``Submission`` from ``origin`` on."""

    @pytest.mark.parametrize("content", [b"x", b"y" * (CHUNK_BYTES + 1)], ids=["short", "long"])
    def test_what_was_asked_for_is_claimed_with_each_recipient(
        self, spool: Spool, content: bytes
    ) -> None:
        addresses = [f"r{number}@example.org" for number in range(len(EVERY))]
        asked = submission(*addresses, content=content, notices=EVERY, **ASKED)
        others = [submission() for _ in range(5)]
        spool.client.enqueue([*others, asked], T0)
        spool.route()
        claimed = {row.address: row for row in spool.claim(spool.lane())}
        for address, notice in zip(addresses, EVERY, strict=True):
            row = claimed.pop(address)
            assert Notice(row.notify, row.orcpt) == notice
            assert (row.ret, row.envid, row.priority_wire) == ("hdrs", ASKED["envid"], -9)
            assert not row.damaged
        for row in claimed.values():
            assert (row.ret, row.envid, row.priority_wire, row.notify, row.orcpt) == (None,) * 5
            assert not row.damaged
        spool.sound()

    @pytest.mark.parametrize("size", [1, CHUNK_BYTES + 1])
    def test_who_said_requiretls_demands_tls_as_well(self, spool: Spool, size: int) -> None:
        spool.send("a@example.org", content=b"x" * size, requiretls=True)
        spool.send("b@example.org", content=b"x" * size, require_tls=True)
        spool.route()
        found = {row.address: row for row in spool.claim(spool.lane())}
        demands = {name: (row.require_tls, row.requiretls) for name, row in found.items()}
        assert demands == {"a@example.org": (True, True), "b@example.org": (True, False)}
        assert not any(row.damaged for row in found.values())
        spool.sound()

    @pytest.mark.parametrize("most", [1, 700])
    def test_many_recipients_each_have_their_own(self, spool: Spool, most: int) -> None:
        notices = tuple(Notice("success", f"rfc822;o{n}@example.com") for n in range(most))
        spool.send(*(f"r{n}@example.org" for n in range(most)), notices=notices)
        spool.route()
        lane = spool.lane()
        taken = [*spool.claim(lane, limit=500), *spool.claim(lane, limit=500)]
        assert len(taken) == most
        for row in taken:
            assert row.orcpt == f"rfc822;o{row.address[1:].partition('@')[0]}@example.com"

    @pytest.mark.parametrize(
        "notices",
        [
            (Notice(), Notice()),
            (Notice("sometimes"),),
            (Notice("never,failure"),),
            (Notice("failure,failure"),),
            (Notice(""),),
        ],
        ids=["one too many", "no such word", "never and more", "twice", "empty"],
    )
    def test_what_nobody_can_have_asked_is_refused_and_its_neighbours_are_stored(
        self, spool: Spool, notices: tuple[Notice, ...]
    ) -> None:
        bad, good = submission(notices=notices), submission()
        told, stored = spool.client.enqueue([bad, good], T0)
        assert isinstance(told, InvalidMessage)
        assert told.rule == "notify"
        assert stored == good.id
