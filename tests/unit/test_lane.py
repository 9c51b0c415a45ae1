"""What a lane makes of claimed rows before the first byte of them is sent."""

from __future__ import annotations

from typing import Any, cast

from mailstrom.storage.base import Claimed, Lane
from mailstrom_workers.context import Context
from mailstrom_workers.lane import LaneRun
from mailstrom_workers.ledger import UNREAD_MS
from mailstrom_workers.machine import THIS


class FakeContext:
    """Enough for a lane that connects to nobody."""

    machine = THIS
    settings = None
    draining = None

    def now_ms(self) -> int:
        return 1_000

    def random(self) -> float:
        return 0.5


def row(recipient: int, **facts: Any) -> Claimed:
    return Claimed(
        **{
            "lane": 1, "recipient": recipient, "message": recipient, "message_id": "m",
            "address": "a@example.org", "domain": "example.org", "sender": "", "size": 1,
            "content": 1, "chunks": 1, "body": None, "damaged": False, "stream": "default",
            "priority": 1, "created_ms": 0, "expires_ms": 9, "attempts": 0, "deferrals": 0,
            "on_doubt": None, "require_tls": False, "eightbit": False, "smtputf8": False,
            **facts,
        }
    )  # fmt: skip


def test_what_could_not_be_read_is_given_back_and_what_is_damaged_fails() -> None:
    lane = Lane(token=1, site=1, site_key="s", hosts=(), provider=None, due=1)
    run = LaneRun(cast(Context, FakeContext()), lane, 1)
    rows = [row(1), row(2, unread=True), row(3, unread=True, damaged=True)]
    assert [one.recipients[0].recipient for one in run._group(rows)] == [1]
    settled = {one.recipient: one for one in run.ledger.take()}
    assert (settled[2].state, settled[2].due_ms) == ("queued", 1_000 + UNREAD_MS)
    assert settled[2].attempt is None, "nothing was tried"
    assert settled[3].state == "failed"
