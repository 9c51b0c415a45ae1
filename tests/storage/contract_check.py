"""Conformance of ``check``: each invariant is broken on purpose, and it objects and names the row.

For stores that keep the tables of the schema; ``stores.tamper(sql)`` changes them behind the
store's back, as a fault or a bug of ours would. The spool that is tampered with has something of
everything, and is sound before.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import pytest

from tests.storage.spool import HOUR, T0, Spool, attempt, change, session_row, submission

PLANTED: dict[str, tuple[str, str]] = {
    # statement: what is done to the tables, what the finding says
    "orphan_recipient": (
        "INSERT INTO recipient (message, address, domain, checksum, priority, state, due_ms, site)"
        " SELECT 999, 'x@example.org', 'example.org', 0, 1, 'queued', 1, seq FROM site LIMIT 1",
        "x@example.org) belongs to no message",
    ),
    "no_recipient": (
        "DELETE FROM recipient WHERE message = (SELECT seq FROM message WHERE id = 'open')",
        "message open has no recipient",
    ),
    "finished": (
        "UPDATE message SET finished_ms = 1 WHERE id = 'waiting'",
        "message waiting is marked finished",
    ),
    "not_finished": (
        "UPDATE message SET finished_ms = NULL WHERE id = 'done'",
        "message done is not marked finished",
    ),
    "content": (
        "DELETE FROM content WHERE key >> 12 = (SELECT seq FROM message WHERE id = 'waiting')",
        "message waiting lacks content",
    ),
    "chunk": (
        "DELETE FROM content WHERE key = (SELECT content * 4096 + 1 FROM message"
        " WHERE id = 'large')",
        "message large lacks content",
    ),
    "lane_owner": ("DELETE FROM lane", "which does not exist"),
    "lane_worker": ("UPDATE worker SET state = 'lost'", "which has ended"),
    "worker_gone": ("DELETE FROM worker", "which has ended"),
    "next_due": (
        "UPDATE site SET next_due_ms = next_due_ms + 86400000",
        "would sleep past recipients",
    ),
    "due": (
        "UPDATE recipient SET due_ms = 1 << 50 WHERE state = 'deferred'",
        "d@example.org of message waiting waits until 1125899906842624 ms, later than anybody",
    ),
    "due_in_a_flipped_bit": (
        "UPDATE recipient SET due_ms = due_ms | (1 << 41) WHERE state = 'deferred'",
        "d@example.org of message waiting waits until 2093-",
    ),
    "send": (
        "UPDATE message SET send_ms = 1 << 50 WHERE id = 'waiting'",
        "message waiting is to be sent at 1125899906842624 ms, which is no time",
    ),
    "suspended": (
        "UPDATE site SET suspended_until_ms = 1 << 41",
        "site mx.example.org is left alone until 2039-",
    ),
    "paused": (
        "UPDATE site SET paused_ms = 1 << 41",
        "site mx.example.org is passed over until 2039-",
    ),
    "text_of_a_site": (
        "UPDATE site SET last_reply = CAST(x'35ff' AS TEXT)",
        "site mx.example.org has a text that is none",
    ),
    "text_of_a_domain": (
        "UPDATE domain SET error = CAST(x'ff' AS TEXT) WHERE name = 'unrouted.example'",
        "domain unrouted.example has a text that is none",
    ),
    "name_of_a_site": (
        "UPDATE site SET key = CAST(x'6dff' AS TEXT)",
        "has a name that is no text (m\N{REPLACEMENT CHARACTER})",
    ),
    "name_of_a_domain": (
        "UPDATE domain SET name = CAST(x'6dff' AS TEXT) WHERE name = 'example.org'",
        "domain m\N{REPLACEMENT CHARACTER} has a name that is no text",
    ),
    "domain_left_alone": (
        "UPDATE domain SET retry_ms = 1 << 50 WHERE name = 'unrouted.example'",
        "domain unrouted.example is not looked up until 1125899906842624 ms",
    ),
    "jump": (
        "INSERT INTO clock_jump (at_ms, old_ms, amount_ms, grace_ms, known, last)"
        " VALUES (1, 1, 1, 0, 0, 1 << 50)",
        "concerns messages 1 to 1125899906842624, and there were only 6",
    ),
    "jump_before_the_first": (
        "INSERT INTO clock_jump (at_ms, old_ms, amount_ms, grace_ms, known, last, done)"
        " VALUES (1, 1, 1, 0, 0, 2, -(1 << 50))",
        "to 2, and there were only 6",
    ),
    "jump_time": (
        "INSERT INTO clock_jump (at_ms, old_ms, amount_ms, grace_ms, known, last)"
        " VALUES (1 << 50, 1, 1, 0, 0, 0)",
        "took place at 1125899906842624 ms, which is no time",
    ),
    "jump_yet_to_come": (
        "INSERT INTO clock_jump (at_ms, old_ms, amount_ms, grace_ms, known, last)"
        " VALUES (1 << 42, 1, 1, 0, 0, 0)",
        "took place 2109-05-15 07:35:11, which is yet to come",
    ),
    "unrouted": (
        "UPDATE domain SET due_ms = NULL WHERE name = 'unrouted.example'",
        "domain unrouted.example has unrouted recipients",
    ),
    "unrouted_later": (
        "UPDATE domain SET due_ms = due_ms + 1 WHERE name = 'unrouted.example'",
        "domain unrouted.example has unrouted recipients",
    ),
    "router": (
        "UPDATE domain SET router = 77 WHERE name = 'unrouted.example'",
        "is being routed by worker 77",
    ),
    "lane_site": (
        "UPDATE recipient SET site = site + 1 WHERE state = 'sending'",
        "which is leased for another site",
    ),
    "lane_nowhere": ("UPDATE lane SET site = 77", "leased for a site that does not exist"),
    "site_gone": (
        "UPDATE recipient SET site = 77 WHERE state = 'deferred'",
        "d@example.org of message waiting waits at a site that does not exist",
    ),
    "domain_site": (
        "UPDATE domain SET site = 77 WHERE name = 'example.org'",
        "domain example.org leads to a site that does not exist",
    ),
    "sending": (
        "UPDATE recipient SET session = NULL WHERE state = 'sending'",
        "the wire of no session",
    ),
    "session": ("UPDATE session SET worker = 77", "session s-1 is open, and its worker 77"),
    "priority": (
        "UPDATE message SET priority = 0 WHERE id = 'waiting'",
        "has priority 1, its message 0",
    ),
    "row": (
        "UPDATE recipient SET address = 'D@example.org' WHERE address = 'd@example.org'",
        "D@example.org of message waiting does not fit its checksum",
    ),
    "sender": (
        "UPDATE message SET sender = 'mallory@example.com' WHERE id = 'done'",
        "of message done does not fit its checksum",
    ),
    "digest": (
        "UPDATE content SET data = zeroblob(length(data))"
        " WHERE key >> 12 = (SELECT seq FROM message WHERE id = 'done')",
        "chunk 0 of the content of message done does not fit its digest",
    ),
    "digest_of_a_chunk": (
        "UPDATE content SET data = zeroblob(length(data))"
        " WHERE key = (SELECT content * 4096 + 1 FROM message WHERE id = 'large')",
        "chunk 1 of the content of message large does not fit its digest",
    ),
    "digest_of_staged_content": (
        "INSERT INTO content SELECT -4096 * 900, zeroblob(9), digest FROM content LIMIT 1",
        "chunk 0 of the content of message (staged) does not fit its digest",
    ),
    "seal": (
        "UPDATE message SET eightbit = 1 - eightbit WHERE id = 'done'",
        "message done or its content does not fit its digest",
    ),
    "seal_of_long_content": (
        "UPDATE message SET message_id = '<forged@example.org>' WHERE id = 'large'",
        "message large or its content does not fit its digest",
    ),
    "seal_of_swapped_content": (
        "UPDATE content SET (data, digest) = (SELECT data, digest FROM content WHERE key"
        " = (SELECT content * 4096 FROM message WHERE id = 'large'))"
        " WHERE key >> 12 = (SELECT seq FROM message WHERE id = 'done')",
        "message done or its content does not fit its digest",
    ),
    "purged": (
        "UPDATE message SET purged_ms = 1 WHERE id = 'done'",
        "was purged and still has content",
    ),
    "purged_unfinished": (
        "UPDATE message SET purged_ms = 1 WHERE id = 'waiting'",
        "was purged and is not finished",
    ),
    "content_owner": (
        "INSERT INTO content SELECT 4096 * 900, data, digest FROM content WHERE key > 0 LIMIT 1",
        "content 900 belongs to no message",
    ),
    "staged_owner": (
        "INSERT INTO content SELECT -4096 * 900 + 5, data, digest FROM content LIMIT 1",
        "content -900 belongs to no message and is not staged",
    ),
    "staged": (
        "INSERT INTO staged SELECT -content, 1 FROM message WHERE id = 'large'",
        "content of message large is still marked as staged",
    ),
    "attempt_owner": ("UPDATE attempt SET message = 1 + message WHERE seq = 1", "attempt 1"),
    "attempt_lost": (
        "DELETE FROM attempt WHERE recipient IN (SELECT seq FROM recipient"
        " WHERE address = 'd@example.org')",
        "d@example.org of message waiting counts 1 attempts and has 0",
    ),
    "attempt_number": (
        "UPDATE attempt SET number = 2 WHERE recipient IN (SELECT seq FROM recipient"
        " WHERE address = 'd@example.org')",
        "whose numbers are not 1 to 1",
    ),
    "verdict_lost": (
        "UPDATE attempt SET verdict = 'deferred' WHERE verdict = 'delivered'",
        "is delivered, and no attempt says so",
    ),
    "doubt_lost": (
        "UPDATE recipient SET in_doubt = 0, doubts = 0",
        "is not in doubt, its attempts say otherwise",
    ),
    "doubt_unsaid": ("UPDATE attempt SET in_doubt = 0", "is in doubt, its attempts say otherwise"),
    "doubts": ("UPDATE recipient SET doubts = 9 WHERE in_doubt", "was lost 9 times in a row"),
    "event_owner": ("UPDATE event SET message = 900 WHERE id = 2", "event 2 ("),
    "event_recipient": (
        "UPDATE event SET recipient = 900 WHERE type = 'recipient.delivered'",
        "(recipient.delivered) tells of a message or recipient that does not exist",
    ),
    "tag": ("UPDATE tag SET message = 900", "tag t-1 belongs to no message"),
    "idempotency": (
        "UPDATE idempotency SET id = 'waiting'",
        "idempotency key k-1 names message waiting, which was sent under none",
    ),
    "tally": (
        "UPDATE tally SET recipients = recipients + 1 WHERE state = 'deferred'",
        "the tally counts 2 deferred recipients of 1 messages, there are 1 of 1",
    ),
    "tally_of_messages": (
        "UPDATE tally SET messages = messages + 1 WHERE state = 'held'",
        "the tally counts 1 held recipients of 2 messages, there are 1 of 1",
    ),
    "tally_by_numbers": (
        "UPDATE sqlite_sequence SET seq = seq + 3 WHERE name = 'recipient'",
        "the tally counts 4 queued recipients of 1 messages, there are 1 of 1",
    ),
    "tally_gone": ("DELETE FROM tally WHERE state = 'held'", "the tally lacks 1 of its rows"),
    "tally_of_a_message": (
        "INSERT INTO message_tally SELECT seq, 1, 0, 0 FROM message WHERE id = 'waiting'",
        "the tally of message waiting does not fit its recipients",
    ),
    "tally_of_no_message": (
        "INSERT INTO message_tally VALUES (900, 0, 0, 0)",
        "the tally of message 900 belongs to no message",
    ),
    "hours_lost": (
        "DELETE FROM hour_stat WHERE status = 'delivered'",
        "count 0 delivered, its events 1",
    ),
    "hours_doubled": (
        "UPDATE hour_stat SET recipients = recipients * 2 WHERE status = 'delivered'",
        "count 2 delivered, its events 1",
    ),
    **{
        f"number_of_{name}": (
            f"UPDATE sqlite_sequence SET seq = 0 WHERE name = '{name}'",
            f"of {name} is above the counter",
        )
        for name in ("message", "recipient", "lane", "worker", "site", "attempt", "event", "staged")
    },
}


class Tampered(Protocol):
    """Stores whose tables can be changed behind their back."""

    def tamper(self, sql: str, *params: Any) -> int:
        """Run one statement; rows changed."""
        ...


def something_of_everything(spool: Spool) -> None:
    """Mail in every state; sound."""
    spool.send("f@example.org", id="done", tags=("t-1",), idempotency=("k-1", b"1"))
    spool.send("u@unrouted.example", id="unrouted")
    spool.send("l@example.org", id="large", content=b"z" * 300_000)
    spool.send("d@example.org", id="waiting")
    spool.send("o@example.org", id="open")
    spool.send("h@example.org", id="held")
    spool.route()
    lane = spool.lane()
    rows = {row.message_id: row for row in spool.claim(lane)}
    spool.exchange(sessions=[session_row("s-1", lane)])
    spool.open(lane, rows.values(), "s-1")
    assert spool.settle(lane, rows["done"], "delivered")
    assert spool.settle(lane, rows["waiting"], "deferred", due_ms=T0 + HOUR)
    assert spool.settle(lane, rows["held"], "held")
    spool.sound()


class CheckContract:
    """What ``check`` and ``owners`` promise."""

    @pytest.mark.parametrize("name", PLANTED)
    def test_a_planted_violation_is_found_and_named(
        self, spool: Spool, stores: Tampered, name: str
    ) -> None:
        something_of_everything(spool)
        sql, words = PLANTED[name]
        assert stores.tamper(sql) > 0, "nothing was broken"
        found = spool.client.check()
        assert any(words in text for text in found), found
        assert all(": " in text for text in found), "each says what to do"

    def test_a_text_that_is_none_is_a_finding_with_what_to_do(
        self, spool: Spool, stores: Tampered
    ) -> None:
        something_of_everything(spool)
        stores.tamper("UPDATE message SET sender = CAST(x'ff' AS TEXT) WHERE id = 'done'")
        found = spool.client.check()
        assert any("the check of 'row' reads it" in text for text in found), found
        unreadable = [text for text in found if "the check of" in text]
        assert all(" NEW')" in text and "retry" not in text for text in unreadable)

    def test_of_a_kind_a_hundred_are_told(self, spool: Spool, stores: Tampered) -> None:
        spool.client.enqueue([submission(f"a@d{n}.example") for n in range(150)], T0)
        assert stores.tamper("UPDATE domain SET due_ms = NULL") == 150
        found = spool.client.check()
        assert len(found) == 101
        assert found[-1].startswith("there are more of this kind")

    def test_sums_of_purged_history_are_compared_as_far_as_they_go(
        self, spool: Spool, stores: Tampered
    ) -> None:
        something_of_everything(spool)
        assert stores.tamper("DELETE FROM event WHERE id < 4") == 3
        spool.sound()
        assert stores.tamper("DELETE FROM hour_stat") > 0
        assert len(spool.client.check()) == 3, "delivered, deferred, held"
        stores.tamper("INSERT INTO meta VALUES ('hours_from', ?)", T0 + HOUR)
        spool.sound()

    def test_a_late_attempt_that_changed_nothing_is_sound(self, spool: Spool) -> None:
        _, lane, (row,) = spool.sending("a@example.org")
        spool.engine.lapse(spool.worker, boot="boot-1", now_ms=T0)
        for verdict in ("deferred", "failed", "held", "claimed"):
            assert not spool.settle(lane, row, verdict)
            spool.sound()
        assert not spool.settle(lane, row, "delivered")
        spool.sound()

    def test_a_session_written_by_a_worker_that_lapsed_is_not_open_for_ever(
        self, spool: Spool
    ) -> None:
        _, lane, _ = spool.sending("a@example.org")
        spool.engine.lapse(spool.worker, boot="boot-1", now_ms=T0)
        row = session_row("s-late", lane)
        spool.exchange(sessions=[row])
        spool.sound()
        assert spool.rows("SELECT ended_ms, end_cause FROM sessions") == [(T0, "worker lost")]
        spool.exchange(
            sessions=[dataclasses.replace(row, ended_ms=T0 + 5, end_cause="quit", messages=1)]
        )
        assert spool.rows("SELECT ended_ms, end_cause, messages FROM sessions") == [
            (T0 + 5, "quit", 1)
        ]

    def test_every_change_keeps_the_sums(self, spool: Spool) -> None:
        something_of_everything(spool)
        for word, id in (
            ("cancel", "unrouted"), ("hold", "waiting"), ("release", "waiting"),
            ("resolve-failed", "held"), ("retry", "held"), ("cancel", "held"),
        ):  # fmt: skip
            assert change(spool.client, word, [id], None, T0) == 1, word
            spool.sound()

    def test_owners_are_those_that_did_not_end(self, spool: Spool) -> None:
        _, lane, _ = spool.sending("a@example.org", "b@example.org")
        other = spool.register(kind="janitor", pid=5, lock="j.lock")
        spool.engine.retire(spool.register(), state="stopped", now_ms=T0)
        assert [tuple(one) for one in spool.client.owners()] == [
            (spool.worker, "delivery", 4711, "machine", "delivery.lock", 1, 2),
            (other, "janitor", 5, "machine", "j.lock", 0, 0),
        ]
        spool.engine.release([lane.token], T0)
        assert [one.lanes for one in spool.client.owners()] == [0, 0]

    def test_a_verdict_without_an_attempt_in_doubt_stays_sound(self, spool: Spool) -> None:
        _, lane, (row,) = spool.sending("a@example.org")
        for _ in range(3):
            doubtful = attempt("deferred", in_doubt=True)
            assert spool.settle(lane, row, "claimed", attempt=doubtful)
            spool.sound()
            spool.open(lane, [row])
        assert spool.settle(lane, row, "delivered")
        spool.sound()
