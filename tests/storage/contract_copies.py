"""Conformance of copies: made in use, marked, left alone by engines, adopted."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from mailstrom.errors import SpoolError
from mailstrom.storage import open_client_store, open_worker_store
from mailstrom.storage.base import Retention, WorkerStore
from mailstrom.storage.client import ClientStore, Selection
from mailstrom.types import Reason, Status
from tests.storage.spool import BODY, DAY, HOUR, T0, Spool, change, submission

NOTHING = Retention(bodies_ms=0, attempts_ms=0, events_ms=0)


class _Copy:
    """Stores on a copy, opened as anybody would open them."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.opened = ExitStack()

    def client(self) -> ClientStore:
        """A new client store."""
        store = open_client_store(self.path)
        self.opened.callback(store.close)
        return store

    def worker(self) -> WorkerStore:
        """A new worker store."""
        store = open_worker_store(self.path)
        self.opened.callback(store.close)
        return store


@contextmanager
def _opened(path: Path) -> Iterator[Spool]:
    stores = _Copy(path)
    with stores.opened:
        yield Spool(stores)


class CopyContract:
    """What ``backup``, ``adopt`` and ``copied`` promise."""

    def test_a_copy_holds_everything_and_the_original_knows_nothing_of_it(
        self, spool: Spool, tmp_path: Path
    ) -> None:
        id, lane, (row,) = spool.sending("a@example.org", tags=("t",), metadata={"n": 1})
        spool.settle(lane, row, "delivered")
        other = spool.send("b@example.org", content=b"x" * 600_000)
        spool.client.backup(str(tmp_path / "copy.db"), T0)
        assert not spool.engine.copied
        assert not spool.client.stats(T0).copied
        assert spool.engine.next_due_ms(T0) is not None
        before = spool.client.statuses([id, other])
        with _opened(tmp_path / "copy.db") as copy:
            assert copy.client.statuses([id, other]) == before
            assert copy.client.content(id) == BODY
            assert copy.client.content(other) == b"x" * 600_000
            assert copy.engine.copied
            assert copy.client.stats(T0).copied
            assert copy.client.check() == [], "being a copy breaks nothing"
        spool.sound()

    def test_a_copy_is_one_file_for_its_owner_and_nothing_else_is_left(
        self, spool: Spool, tmp_path: Path
    ) -> None:
        folder = tmp_path / "copies"
        folder.mkdir()
        spool.client.backup(str(folder / "copy.db"), T0)
        assert os.listdir(folder) == ["copy.db"]
        assert stat.S_IMODE((folder / "copy.db").stat().st_mode) == 0o600
        shared = tmp_path / "shared"
        shared.mkdir()
        shared.chmod(0o2770)
        spool.client.backup(str(shared / "copy.db"), T0)
        assert stat.S_IMODE((shared / "copy.db").stat().st_mode) == 0o660

    @pytest.mark.parametrize("name", ["copy.db", "copy.db-wal", "copy.db-journal"])
    def test_a_copy_overwrites_nothing(self, spool: Spool, tmp_path: Path, name: str) -> None:
        folder = tmp_path / "copies"
        folder.mkdir()
        (folder / name).write_bytes(b"precious")
        with pytest.raises(SpoolError, match=f"{name}: exists"):
            spool.client.backup(str(folder / "copy.db"), T0)
        assert os.listdir(folder) == [name]
        assert (folder / name).read_bytes() == b"precious"

    def test_a_copy_into_a_missing_directory_says_so(self, spool: Spool, tmp_path: Path) -> None:
        with pytest.raises(SpoolError, match="cannot be written"):
            spool.client.backup(str(tmp_path / "missing" / "copy.db"), T0)
        assert not (tmp_path / "missing").exists()
        assert spool.send()

    def test_nothing_moves_in_a_copy_until_it_is_adopted(
        self, spool: Spool, tmp_path: Path
    ) -> None:
        ids = [spool.send("a@example.org", expires_ms=T0 + HOUR) for _ in range(2)]
        spool.send("b@example.net")
        spool.route()
        change(spool.client, "cancel", [ids[1]], None, T0)
        spool.client.backup(str(tmp_path / "copy.db"), T0)
        late = T0 + 40 * DAY
        with _opened(tmp_path / "copy.db") as copy:
            more = copy.send("c@example.org", created_ms=T0, expires_ms=late + DAY)
            assert copy.client.content(more) == BODY, "sending into it is accepted, and waits"
            assert copy.engine.next_due_ms(late) is None
            assert copy.engine.due_domains(copy.worker, 9, T0) == []
            assert copy.engine.due_sites(T0) == []
            assert copy.lease() == []
            assert copy.engine.expire(9, late) == 0
            assert copy.engine.purge(NOTHING, 9, late) == 0
            assert len(copy.client.find(Selection(), limit=9)) == 4
            copy.sound()
            assert copy.client.adopt(T0)
            assert not copy.client.adopt(T0), "it is none any more"
            assert not copy.engine.copied
            assert copy.engine.next_due_ms(T0) is not None
            assert {row.message_id for row in copy.claim(copy.lane())} == {ids[0], more}
            assert copy.engine.expire(9, late) == 2
            copy.sound()
        with _opened(tmp_path / "copy.db") as again:
            assert not again.engine.copied, "adopted for good"
        assert not spool.client.adopt(T0)

    def test_time_that_mail_lay_in_a_copy_is_no_age(self, spool: Spool, tmp_path: Path) -> None:
        soon = spool.send("soon@example.org", expires_ms=T0 + HOUR)
        later = spool.send("later@example.org", send_ms=T0 + DAY, expires_ms=T0 + DAY + HOUR)
        far = spool.send("far@example.org", send_ms=T0 + 9 * DAY, expires_ms=T0 + 9 * DAY + HOUR)
        held = spool.send("held@example.org", expires_ms=T0 + HOUR)
        change(spool.client, "hold", [held], None, T0)
        done = spool.send("done@example.org", expires_ms=T0 + HOUR)
        change(spool.client, "cancel", [done], None, T0)
        spool.client.backup(str(tmp_path / "copy.db"), T0 + HOUR // 2)
        now = T0 + 2 * DAY
        with _opened(tmp_path / "copy.db") as copy:
            came = copy.send("came@example.org", created_ms=now - 5, send_ms=now - 5,
                             expires_ms=now + 5)  # fmt: skip
            assert copy.client.adopt(now)
            assert copy.engine.expire(9, now) == 0
            expiry = {
                id: round(status.expires_at.timestamp() * 1000) - now
                for id, status in copy.client.statuses([soon, later, far, held, done, came]).items()
            }
            assert expiry == {
                soon: HOUR // 2,
                later: HOUR,
                far: 7 * DAY + HOUR,
                held: HOUR // 2,
                done: HOUR - 2 * DAY,
                came: 10,
            }
            assert not copy.client.adopt(now + DAY), "counted once"
            assert copy.engine.expire(9, now + HOUR // 2) == 3
            assert copy.status(soon) == {"soon@example.org": "failed"}
            copy.sound()
        assert spool.engine.expire(9, T0 + HOUR) == 2, "the original's mail ages as it did"

    def test_a_clock_that_was_set_back_takes_no_time_from_a_copy(
        self, spool: Spool, tmp_path: Path
    ) -> None:
        id = spool.send(expires_ms=T0 + HOUR)
        spool.client.backup(str(tmp_path / "copy.db"), T0)
        with _opened(tmp_path / "copy.db") as copy:
            assert copy.client.adopt(T0 - DAY)
            assert copy.engine.expire(9, T0 + HOUR - 1) == 0
            assert copy.engine.expire(9, T0 + HOUR) == 1
            assert copy.only(id).reason is Reason.EXPIRED

    def test_a_clock_that_jumps_while_mail_lies_in_a_copy_is_counted_once(
        self, spool: Spool, tmp_path: Path
    ) -> None:
        id = spool.send(expires_ms=T0 + HOUR)
        spool.engine.keep_clock(wall_ms=T0, monotonic_ms=0, boot="b", limit=100)
        spool.client.backup(str(tmp_path / "copy.db"), T0)
        with _opened(tmp_path / "copy.db") as copy:
            ahead = T0 + 100 * DAY  # it jumped; but half an hour went by, too
            late = {"monotonic_ms": HOUR // 2, "boot": "b", "limit": 100}
            while copy.engine.keep_clock(wall_ms=ahead + HOUR // 2, **late):
                pass
            assert copy.client.adopt(ahead + HOUR // 2)
            expires = copy.client.statuses([id])[id].expires_at.timestamp() * 1000
            assert round(expires) == ahead + HOUR + HOUR // 2

    def test_a_copy_of_a_copy_is_a_copy(self, spool: Spool, tmp_path: Path) -> None:
        spool.client.backup(str(tmp_path / "one.db"), T0)
        with _opened(tmp_path / "one.db") as one:
            one.client.backup(str(tmp_path / "two.db"), T0)
            one.client.adopt(T0)
        with _opened(tmp_path / "two.db") as two:
            assert two.engine.copied

    def test_what_was_on_the_wire_when_it_was_copied_becomes_in_doubt(
        self, spool: Spool, tmp_path: Path
    ) -> None:
        id, lane, rows = spool.sending("wire@example.org")
        waiting = spool.send("claimed@example.org")
        spool.claim(lane)
        spool.client.backup(str(tmp_path / "copy.db"), T0)
        with _opened(tmp_path / "copy.db") as copy:
            assert copy.status(id) == {"wire@example.org": "sending"}
            lapsed = copy.engine.lapse(spool.worker, boot="boot-1", now_ms=T0 + HOUR)
            assert (lapsed.lanes, lapsed.released, lapsed.in_doubt) == (1, 1, 1)
            assert (copy.only(id).status, copy.only(id).reason, copy.only(id).in_doubt) == (
                Status.DEFERRED, Reason.IN_DOUBT, True
            )  # fmt: skip
            assert copy.status(waiting) == {"claimed@example.org": "queued"}
            assert copy.lease(now=T0 + DAY) == []
            copy.sound()
        assert spool.settle(lane, rows[0], "delivered"), "the original goes on as if nothing was"
        spool.sound()

    def test_a_copy_made_while_senders_write_is_consistent(
        self, spool: Spool, tmp_path: Path
    ) -> None:
        for _ in range(20):
            spool.send(*(f"r{n}@example.org" for n in range(20)), content=b"y" * 100_000)
        writer = spool.stores.client()
        stop = threading.Event()
        sent: list[str] = []
        errors: list[BaseException] = []

        def write() -> None:
            try:
                while not stop.is_set():
                    one = submission("late@example.org")
                    sent.extend(str(id) for id in writer.enqueue([one], T0))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            for number in range(3):
                spool.client.backup(str(tmp_path / f"copy-{number}.db"), T0)
        finally:
            stop.set()
            thread.join()
        assert errors == []
        for number in range(3):
            with _opened(tmp_path / f"copy-{number}.db") as copy:
                copy.sound()
                found = copy.client.statuses(sent)
                assert set(found) == set(sent[: len(found)]), "all up to a moment, nothing after it"
        spool.sound()
