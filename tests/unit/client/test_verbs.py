"""The verbs that ask and change, as an application sees them; both kinds of store."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailstrom import (
    Change,
    InvalidMessage,
    Mailstrom,
    MessageNotFound,
    SpoolBusy,
    SpoolError,
    Status,
)
from mailstrom.client import asking, changing, waiting
from mailstrom.events import EVENTS
from mailstrom.words import EVENT_WORDS

MESSAGE = b"From: a@example.com\r\nTo: b@example.org\r\nSubject: hello\r\n\r\nbody\r\n"


def to(*addresses: str, sender: str = "a@example.com") -> bytes:
    return f"From: {sender}\r\nTo: {', '.join(addresses)}\r\n\r\nbody\r\n".encode()


@pytest.fixture(params=["file", "memory:"])
def ms(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mailstrom]:
    name = str(tmp_path / "spool.db") if request.param == "file" else request.param
    with Mailstrom(name) as opened:
        yield opened
        assert opened.check() == []


def test_the_client_knows_every_event_word() -> None:
    assert set(EVENT_WORDS) == set(EVENTS)
    assert len(EVENT_WORDS) == len(set(EVENT_WORDS))


# --- asking -------------------------------------------------------------------------------------


def test_statuses_come_in_the_order_asked_without_the_unknown(
    ms: Mailstrom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "PAGE", 2)
    ids = [ms.send(MESSAGE) for _ in range(5)]
    asked = [ids[3], "unknown", ids[0], ids[3], "\ud800", ids[4], ids[1]]
    assert list(ms.statuses(iter(asked))) == [ids[3], ids[0], ids[4], ids[1]]
    assert ms.statuses([]) == {}


def test_a_completed_message_is_told_of_once_and_an_incomplete_one_always(ms: Mailstrom) -> None:
    done, waits = ms.send(MESSAGE), ms.send(MESSAGE)
    assert [one.id for one in ms.recent()] == [done, waits]
    ms.cancel(done)
    assert [(one.id, one.completed) for one in ms.recent()] == [(done, True), (waits, False)]
    assert [one.id for one in ms.recent()] == [waits]
    assert [one.id for one in ms.recent(limit=1)] == [waits]


def test_find_takes_words_and_lists_and_normalises_as_send_does(ms: Mailstrom) -> None:
    one = ms.send(to("X@BÜCHER.example"), tags=["t1"], stream="bulk")
    two = ms.send(to("b@example.org", "c@example.net", sender="N@EXAMPLE.com"), tags=["t1", "t2"])
    three = ms.send(to("b@example.org"), sender="")
    ms.cancel(two, recipient="c@example.net")

    def ids(**filters: Any) -> list[str]:
        return [status.id for status in ms.find(**filters)]

    assert ids() == [three, two, one]
    assert ids(domain="BÜCHER.example") == ids(domain=["xn--bcher-kva.example"]) == [one]
    assert ids(recipient="X@Bücher.Example") == [one]
    assert ids(recipient="x@bücher.example") == [], "the local part is kept as given"
    assert ids(sender="N@example.COM") == [two]
    assert ids(sender="") == [three]
    assert ids(tag="t1") == [two, one]
    assert ids(tag=["t2", "none"]) == [two]
    assert ids(stream={"bulk"}) == [one]
    assert ids(status="cancelled") == ids(status=[Status.CANCELLED]) == [two]
    assert ids(status="cancelled", domain="example.org") == [], "one recipient must match both"
    assert ids(since=timedelta(hours=1)) == [three, two, one]
    assert ids(until=timedelta(hours=1)) == []
    assert ids(since=datetime.now(UTC) + timedelta(hours=1)) == []
    for empty in ({"tag": []}, {"status": ()}, {"domain": [], "tag": "t1"}):
        assert ids(**empty) == [], "an empty list matches nothing"
    assert ids(limit=1) == [three]
    assert ids(limit=5, after=three) == [two, one]


def test_find_reads_in_pages(ms: Mailstrom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "PAGE", 3)
    ids = ms.send_many([MESSAGE] * 8)
    newest_first = [status.id for status in ms.find(limit=100)]
    assert sorted(newest_first) == sorted(ids)
    assert [status.id for status in ms.find(limit=7)] == newest_first[:7]
    assert [status.id for status in ms.find(limit=3)] == newest_first[:3]
    assert [s.id for s in ms.find(limit=6, after=newest_first[1])] == newest_first[2:]


def test_find_goes_on_where_the_last_of_a_page_was_purged_meanwhile(
    ms: Mailstrom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "PAGE", 3)
    ids = {*ms.send_many([MESSAGE] * 7)}
    real = ms._store.find
    purged: list[str] = []

    def find(meant: Any, *, limit: int, after: str | None) -> Any:
        if after is not None and len(purged) < 2:
            purged.append(after)
        if after in purged:
            raise MessageNotFound(after)
        page = real(meant, limit=limit + len(purged), after=after)
        return [status for status in page if status.id not in purged][:limit]

    ms._store.find = find  # type: ignore[method-assign]
    found = [status.id for status in ms.find(limit=100)]
    assert len(purged) == 2
    assert len(found) == 7
    assert set(found) == ids
    with pytest.raises(MessageNotFound):
        ms.find(after=purged[0])


def test_wait_ends_when_another_thread_completes_the_message(ms: Mailstrom) -> None:
    id = ms.send(MESSAGE)
    looked = threading.Event()
    real = ms._store.statuses

    def statuses(ids: Any) -> Any:
        found = real(ids)
        looked.set()
        return found

    ms._store.statuses = statuses  # type: ignore[method-assign]
    canceller = threading.Thread(target=lambda: (looked.wait(30), ms.cancel(id)))
    canceller.start()
    assert ms.wait(id, timeout=30).status is Status.CANCELLED
    canceller.join(30)


def test_waiting_reads_again_only_after_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    revisions = iter([1, 1, 1, 2, 2, 3, 3])
    looks: list[int] = []
    monkeypatch.setattr("time.sleep", lambda seconds: None)

    def look() -> str | None:
        looks.append(1)
        return "found" if len(looks) == 3 else None

    assert waiting.until(look, lambda: next(revisions), None) == "found"
    assert len(looks) == 3
    assert list(revisions) == [], "asked before each look, and once a pause"


def test_waiting_distrusts_a_revision_that_never_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    looks: list[float] = []

    def look() -> bool | None:
        looks.append(now[0])
        return len(looks) == 2 or None

    assert waiting.until(look, lambda: 7, 100.0)
    assert looks[1] - looks[0] >= waiting.DISTRUST_S
    assert waiting.until(lambda: None, lambda: 7, 1.0) is None


# --- the message as it leaves -------------------------------------------------------------------


def test_a_message_comes_back_as_an_object_with_the_same_bytes(ms: Mailstrom) -> None:
    given = EmailMessage()
    given["From"] = "Büro <a@example.com>"
    given["To"] = ", ".join(f'"Ünîcode, {n}" <b{n}@example.org>' for n in range(20))
    given["Subject"] = "Grüße " * 40
    given.set_content("Grüße\n" * 3)
    given.add_attachment(b"\0\xff" * 500, maintype="application", subtype="x", filename="ü.bin")
    id = ms.send(given)
    found = ms.message(id)
    assert found.as_bytes() == ms.raw(id)
    assert found["Subject"].strip() == str(given["Subject"]).strip()
    assert len(found["To"].addresses) == 20
    attached = next(iter(found.iter_attachments()))
    assert attached.get_content() == b"\0\xff" * 500
    with pytest.raises(MessageNotFound):
        ms.message("nothing-here")


LINES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=60), max_size=6
)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    subject=st.text(st.characters(min_codepoint=32, exclude_categories=("Cs",)), max_size=90),
    lines=LINES,
    folded=st.booleans(),
    end=st.sampled_from(["", "\r\n", "\r\n\r\n"]),
)
def test_the_bytes_of_the_object_are_those_of_the_wire(
    client: Mailstrom, subject: str, lines: list[str], folded: bool, end: str
) -> None:
    content = (
        "From: a@example.com\r\nTo: b@example.org,"
        + ("\r\n\t" if folded else " ")
        + "c@example.org\r\nX-Odd:  two  spaces \r\n"
        + "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n"
        + f"Subject: {subject}\r\n\r\n"
        + "\r\n".join(lines)
        + end
    )
    try:
        id = client.send(content.encode())
    except InvalidMessage:
        return
    found = client.message(id)
    assert found.as_bytes() == client.raw(id)
    assert found["X-Odd"].strip() == "two  spaces"
    assert [address.addr_spec for address in found["To"].addresses] == [
        "b@example.org",
        "c@example.org",
    ]


def test_a_message_may_be_changed_and_sent_again(ms: Mailstrom) -> None:
    found = ms.message(ms.send(MESSAGE))
    del found["Subject"], found["Message-ID"]
    found["Subject"] = "Grüße " * 30
    again = ms.message(ms.send(found))
    assert again["Subject"].strip() == ("Grüße " * 30).strip()
    assert found["Message-ID"] is None


# --- what happened ------------------------------------------------------------------------------


def test_events_are_read_behind_a_cursor_and_by_type(ms: Mailstrom) -> None:
    id = ms.send(to("b@example.org", "c@example.org"))
    ms.hold(id)
    ms.release(id)
    everything = ms.events()
    words = [event.type for event in everything]
    assert set(words) <= set(EVENT_WORDS)
    assert {"message.held", "message.released"} <= set(words)
    assert [event.id for event in everything] == sorted({event.id for event in everything})
    held = ms.events(types="message.held")
    assert {event.message_id for event in held} == {id}
    assert ms.events(after=everything[-1].id) == []
    assert ms.events(everything[0].id, limit=1) == everything[1:2]
    assert ms.events(types=[]) == []
    with pytest.raises(ValueError, match=r"'mesage.held'.*message\.held"):
        ms.events(types=["mesage.held"])


def test_following_begins_now_or_behind_an_event_and_goes_on(ms: Mailstrom) -> None:
    ms.hold(ms.send(MESSAGE))
    before = ms.events()
    stream = ms.follow()
    two = ms.send(MESSAGE)
    ms.hold(two)
    assert next(stream).id > before[-1].id
    held = ms.follow(0, types=["message.held"])
    first, second = islice(held, 2)
    assert (first, second.message_id) == (before[-1], two)
    timer = threading.Timer(0.05, lambda: ms.hold(ms.send(MESSAGE)))
    timer.start()
    assert next(held).id > second.id, "waited for"
    timer.join(30)


def test_following_one_type_passes_over_the_others_once(
    ms: Mailstrom, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = ms.send_many([MESSAGE] * 40)
    ms.change_all("hold", ids=ids)
    newest = ms.events(limit=10_000)[-1].id
    assert ms._newest(0) == ms._newest(newest - 3) == ms._newest(newest) == newest
    assert ms._ahead(0, ("message.cancelled",)) == (newest, [])
    assert ms._ahead(newest, ("message.cancelled",)) is None
    monkeypatch.setattr(asking, "EVENT_PAGE", 3)
    assert [event.message_id for event in islice(ms.follow(0, types="message.held"), 40)] == [
        event.message_id for event in ms.events(types="message.held")
    ]


def test_following_ends_with_the_client(tmp_path: Path) -> None:
    ms = Mailstrom(tmp_path / "spool.db")
    stream = ms.follow()
    ms.close()
    with pytest.raises(SpoolError, match="closed"):
        next(stream)


def test_stats_count_what_waits_and_what_ended(ms: Mailstrom) -> None:
    ids = ms.send_many([MESSAGE] * 4)
    ms.cancel(ids[0])
    ms.hold(ids[1])
    stats = ms.stats()
    assert stats.waiting == {"queued": 2, "sending": 0, "deferred": 0, "held": 1}
    assert stats.finished == {"delivered": 0, "failed": 0, "cancelled": 1}
    assert (stats.copied, stats.suspended_sites) == (False, 0)


def test_suppressions_are_listed_and_looked_up(ms: Mailstrom) -> None:
    assert ms.suppressions.list() == []
    assert ms.suppressions.get("B@EXAMPLE.org") is None
    with pytest.raises(InvalidMessage, match="address"):
        ms.suppressions.get("nobody")
    with pytest.raises(ValueError, match="limit"):
        ms.suppressions.list(limit=0)


# --- changing -----------------------------------------------------------------------------------


def test_held_mail_waits_for_its_release(ms: Mailstrom) -> None:
    id = ms.send(to("b@example.org", "c@example.org"))
    assert ms.hold(id, recipient="b@EXAMPLE.org") == 1
    assert ms.hold(id) == 1, "the other one"
    assert ms.hold(id) == 0
    assert ms.status(id).status is Status.HELD
    assert {one.reason for one in ms.status(id).recipients.values()} == {"user"}
    assert ms.resolve(id, "delivered") == 0, "nothing is in doubt"
    assert ms.release(id) == 2
    assert ms.status(id).status is Status.QUEUED
    assert ms.cancel(id) == 2
    assert ms.retry(id) == ms.release(id) == ms.hold(id) == 0


def test_change_all_counts_first_and_changes_in_pages(
    ms: Mailstrom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changing, "PAGE", 3)
    sizes: list[int] = []
    real = ms._store.change

    def change(word: Change, targets: Any, now_ms: int) -> int:
        sizes.append(len(targets))
        return real(word, targets, now_ms)

    ms._store.change = change  # type: ignore[method-assign]
    ids = ms.send_many([to("b@example.org", "c@example.net")] * 5, tags=["news"])
    other = ms.send(MESSAGE)
    assert ms.change_all("cancel", dry_run=True, tag="news") == 10
    assert sizes == []
    assert ms.change_all(Change.CANCEL, tag="news", domain="EXAMPLE.net") == 5
    assert sizes == [3, 2]
    assert ms.change_all("cancel", tag="news") == 5, "the rest"
    assert {status.status for status in ms.statuses(ids).values()} == {Status.CANCELLED}
    assert ms.change_all("cancel", tag="news") == 0
    assert ms.status(other).status is Status.QUEUED
    assert ms.change_all("hold", everything=True) == 1
    assert ms.change_all("release", ids=[*ids, other, "unknown"]) == 1
    assert ms.change_all("release", ids=[]) == ms.change_all("hold", tag=[]) == 0


def test_what_was_chosen_is_changed_and_nothing_that_matched_later(
    ms: Mailstrom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changing, "PAGE", 3)
    seen = [ms.send(to(f"{n}a@example.org", f"{n}b@example.org")) for n in range(4)]
    held = [ms.send(MESSAGE), ms.send(MESSAGE)]
    for id in held:
        ms.hold(id)
    chosen = ms._chosen("hold", shown=2, status=["queued", "held"])
    assert chosen.count == 8
    assert [target[:2] for target in chosen.first] == [
        (seen[0], "0a@example.org"), (seen[0], "0b@example.org")
    ]  # fmt: skip
    later = [ms.send(MESSAGE) for _ in range(5)]  # accepted since
    ms.release(held[0])  # came into a state that the change touches
    ms.cancel(seen[1])
    assert chosen.apply() == 6
    assert chosen.others == 6
    assert {id: one.status for id, one in ms.statuses([*seen, *held, *later]).items()} == {
        **dict.fromkeys(seen, Status.HELD),
        seen[1]: Status.CANCELLED,
        held[0]: Status.QUEUED,
        held[1]: Status.HELD,
        **dict.fromkeys(later, Status.QUEUED),
    }


def test_what_was_chosen_by_ids_stays_what_it_was(
    ms: Mailstrom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changing, "PAGE", 2)
    ids = [ms.send(to(f"{n}a@example.org", f"{n}b@example.org")) for n in range(5)]
    chosen = ms._chosen("cancel", ids=[*reversed(ids), "unknown"], recipient="2a@example.org")
    assert (chosen.count, chosen.first) == (1, [])
    chosen = ms._chosen("cancel", ids=[*reversed(ids), "unknown"])
    assert (chosen.count, chosen.apply(), chosen.others) == (10, 10, 0)
    assert (chosen.apply(), ms.stats().finished["cancelled"]) == (0, 10)


def test_a_bulk_change_that_stops_tells_how_far_it_came(
    ms: Mailstrom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changing, "PAGE", 2)
    ms.send_many([MESSAGE] * 5)
    real = ms._store.change
    calls: list[int] = []

    def change(word: Change, targets: Any, now_ms: int) -> int:
        calls.append(1)
        if len(calls) == 3:
            raise SpoolBusy("another writer")
        return real(word, targets, now_ms)

    ms._store.change = change  # type: ignore[method-assign]
    with pytest.raises(SpoolBusy) as caught:
        ms.change_all("hold", everything=True)
    assert caught.value.changed == 4  # type: ignore[attr-defined]
    assert ms.stats().waiting["held"] == 4


# --- copies -------------------------------------------------------------------------------------


def test_a_backup_waits_for_its_adoption(ms: Mailstrom, tmp_path: Path) -> None:
    id = ms.send(MESSAGE)
    ms.backup(tmp_path / "copy.db")
    with pytest.raises(SpoolError, match=r"copy\.db"):
        ms.backup(tmp_path / "copy.db")
    assert ms.adopt() is False
    with Mailstrom(tmp_path / "copy.db") as copy:
        assert copy.status(id).id == id
        assert copy.stats().copied
        assert copy.adopt() is True
        assert not copy.stats().copied
        assert copy.adopt() is False
        assert copy.check() == []
