"""What is said of a commit that failed, by every verb that writes: denied only once it cannot come.

An I/O error may come after the commit's last frame, as where the log's index cannot grow: whoever
recovers the log after a crash would find the commit whole. (What ``enqueue`` says:
test_sqlite_repair.)
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import pytest

from mailstrom.errors import OutcomeUnknown, SpoolBusy, SpoolError, SpoolFull
from mailstrom.storage.client import Selection, Target
from mailstrom.storage.sqlite import connection as connections
from mailstrom.storage.sqlite import copies, inserting, outcomes, poison
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.sql import STATEMENTS, run
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from mailstrom.types import Change
from tests.storage.spool import T0, change, submission

_PLACE = STATEMENTS["meta_set"]
_IO, _FULL = apsw.IOError("disk I/O error"), apsw.FullError("database or disk is full")
_BUSY = apsw.BusyError("database is locked")
ID = "the-one"
_STATE = (
    "SELECT (SELECT state FROM recipient WHERE address = 'a@example.org'),"
    " (SELECT value FROM meta WHERE key = 'recent_event'),"
    " (SELECT count(*) FROM meta WHERE key = 'copied_ms'),"
    " (SELECT count(*) FROM meta WHERE key = 'commit_failed')"
)
VERBS: dict[str, Callable[[SQLiteClientStore], object]] = {
    "change": lambda client: change(client, "cancel", [ID], None, T0),
    "recent": lambda client: client.recent(10),
    "adopt": lambda client: client.adopt(T0),
}


class Failing:
    """A connection of which some statements fail, before they take place."""

    def __init__(self, real: Any, errors: dict[str, Callable[[], Exception]]) -> None:
        self._real, self._errors = real, errors

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    def execute(self, sql: str, *args: Any) -> object:
        if sql in self._errors:
            raise self._errors[sql]()
        return self._real.execute(sql, *args)


def state(path: str) -> list[Any]:
    """What the verbs would change, and whether a failed commit's place was taken."""
    connection = apsw.Connection(path)
    try:
        return list(connection.execute(_STATE).fetchall()[0])
    finally:
        connection.close()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "spool.db")


@pytest.fixture
def client(path: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SQLiteClientStore]:
    """Of a copy on a full disk, with a message that waits and one that is over, told to nobody."""
    store = SQLiteClientStore(path)
    store.enqueue([submission("a@example.org", id=ID), submission(id="over")], T0)
    change(store, "cancel", ["over"], None, T0)
    copies.mark(store._write_connection(), path, T0)
    monkeypatch.setattr(connections, "has_room", lambda path: False)
    yield store
    store.close()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("errors", "said", "taken"),
    [
        ({"COMMIT": _IO}, SpoolFull, 1),
        ({"COMMIT": _IO, _PLACE: _FULL}, OutcomeUnknown, 0),
        ({"COMMIT": _IO, _PLACE: _IO}, OutcomeUnknown, 0),
        ({"COMMIT": _FULL, _PLACE: _FULL}, SpoolFull, 0),
        ({"COMMIT": _FULL}, SpoolFull, 1),
        ({"COMMIT": _BUSY}, SpoolBusy, 0),
        ({"BEGIN IMMEDIATE": _IO}, SpoolFull, 0),
    ],
)
def test_a_failed_commit_is_denied_only_once_its_place_is_taken(
    path: str,
    client: SQLiteClientStore,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    errors: dict[str, Exception],
    said: type[SpoolError],
    taken: int,
) -> None:
    real, before = client._write_connection, state(path)
    failing = {sql: (lambda error=error: error) for sql, error in errors.items()}
    with monkeypatch.context() as patch:
        patch.setattr(client, "_write_connection", lambda: Failing(real(), failing))
        with pytest.raises(said) as caught:
            VERBS[verb](client)
    assert type(caught.value) is said
    if isinstance(caught.value, OutcomeUnknown):
        assert caught.value.key == (ID if verb == "change" else "")
    assert state(path) == [*before[:3], taken]
    VERBS[verb](client)
    assert state(path)[:3] != before[:3], "and it works again"


def copy_of(path: str, folder: Path, name: str) -> str:
    """What a crash leaves of a spool: the files without the log's index."""
    (folder / name).mkdir()
    for end in ("", "-wal"):
        shutil.copy(f"{path}{end}", folder / name / f"spool.db{end}")
    return str(folder / name / "spool.db")


def commit_of(
    path: str, folder: Path, verb: Callable[[SQLiteClientStore], object]
) -> tuple[int, bytes]:
    """What a verb adds to the log of a spool, and where; done to a twin of it."""
    twin = copy_of(path, folder, "twin")
    with closing(SQLiteClientStore(twin)) as store:
        verb(store)
        log = Path(f"{twin}-wal").read_bytes()
    known = Path(f"{path}-wal").read_bytes()
    assert log.startswith(known), "the same log, with one commit more"
    return len(known), log[len(known) :]


@pytest.mark.parametrize("seen_to", [True, False])
def test_a_change_that_was_denied_does_not_come_back_with_the_log(
    path: str,
    tmp_path: Path,
    client: SQLiteClientStore,
    monkeypatch: pytest.MonkeyPatch,
    seen_to: bool,
) -> None:
    """Its frames lie whole in the log, whose index could not grow; then the machine crashes."""

    target = [Target(ID)]
    known, rest = commit_of(path, tmp_path, lambda twin: twin.change(Change.CANCEL, target, T0))

    def written() -> Exception:
        real().execute("ROLLBACK")
        with open(f"{path}-wal", "r+b") as stream:
            stream.seek(known)
            stream.write(rest)
        return apsw.IOError("disk I/O error")

    real = client._write_connection
    with monkeypatch.context() as patch:
        patch.setattr(client, "_write_connection", lambda: Failing(real(), {"COMMIT": written}))
        if not seen_to:
            patch.setattr(outcomes, "may_come_back", lambda error: False)
        with pytest.raises(SpoolFull):
            change(client, "cancel", [ID], None, T0)
    assert state(path)[0] == "queued"
    found = state(copy_of(path, tmp_path, "image"))
    assert (found[0], found[3]) == (("queued", 1) if seen_to else ("cancelled", 0))


@pytest.mark.parametrize("seen_to", [True, False])
@pytest.mark.parametrize("amount", [1, 2, 257])
def test_messages_that_were_denied_do_not_come_back_with_the_log(
    path: str,
    tmp_path: Path,
    client: SQLiteClientStore,
    monkeypatch: pytest.MonkeyPatch,
    amount: int,
    seen_to: bool,
) -> None:
    """As of a change; up to 256 go in by one step, which is its own commit."""
    batch = [submission() for _ in range(amount)]
    known, rest = commit_of(path, tmp_path, lambda twin: twin.enqueue(batch, T0))

    def written() -> Exception:
        if not real().get_autocommit():
            real().execute("ROLLBACK")
        with open(f"{path}-wal", "r+b") as stream:
            stream.seek(known)
            stream.write(rest)
        return apsw.IOError("disk I/O error")

    def stored(spool: str) -> list[Any]:
        with closing(apsw.Connection(spool)) as connection:
            ids = json.dumps([one.id for one in batch])
            return list(run(connection, "known_ids", {"ids": ids}))

    real = client._write_connection
    step = inserting._sized(STATEMENTS["enqueue"], 1 if amount == 1 else 4)
    failing = {step if amount < 257 else "COMMIT": written}
    with closing(SQLiteClientStore(path)) as other:  # has the log's index open
        assert len(other.find(Selection(), limit=5)) == 2
        with monkeypatch.context() as patch:
            patch.setattr(client, "_write_connection", lambda: Failing(real(), failing))
            if not seen_to:
                patch.setattr(outcomes, "may_come_back", lambda error: False)
            with pytest.raises(SpoolFull):
                client.enqueue(batch, T0)
        assert stored(path) == []
        image = copy_of(path, tmp_path, "image")
    assert len(stored(image)) == (0 if seen_to else amount)
    assert state(image)[3] == int(seen_to)


@pytest.mark.parametrize("verb", ["enqueue", "change"])
def test_a_place_that_the_system_does_not_let_us_confirm_leaves_the_outcome_unknown(
    client: SQLiteClientStore, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    real, verbs = client._write_connection, {"enqueue": lambda c: c.enqueue([submission()], T0)}

    def failed() -> Exception:
        monkeypatch.setattr(poison, "calm", lambda *_: False)
        monkeypatch.setattr(poison, "check_others", no_locks)
        return apsw.IOError("disk I/O error")

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    first = {"COMMIT": failed, STATEMENTS["enqueue"]: failed}
    monkeypatch.setattr(client, "_write_connection", lambda: Failing(real(), first))
    with pytest.raises(OutcomeUnknown, match=os.strerror(errno.ENOLCK)):
        (VERBS | verbs)[verb](client)


@pytest.mark.parametrize(
    ("verb", "said", "ask"),
    [
        ("change", "the change was written, but", f"ask status('{ID}') once"),
        ("adopt", "the copy was adopted, but", "repeat it once"),
    ],
)
def test_what_was_done_is_said_where_the_disk_does_not_confirm_it(
    client: SQLiteClientStore, verb: str, said: str, ask: str
) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    client._sync._sync = broken  # type: ignore[attr-defined]
    with pytest.raises(OutcomeUnknown) as caught:
        VERBS[verb](client)
    assert said in str(caught.value)
    assert ask in str(caught.value)


def test_a_copy_whose_adoption_was_not_confirmed_is_synced_when_it_is_adopted_again(
    path: str, client: SQLiteClientStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    client._sync._sync = synced.append  # type: ignore[attr-defined]

    def unseen() -> None:
        raise SpoolError("cannot be looked at") from OSError(errno.EIO, "")

    with monkeypatch.context() as patch:
        patch.setattr(client._sync, "verify", unseen)
        with pytest.raises(OutcomeUnknown, match="adopted"):
            client.adopt(T0)
    assert (synced, state(path)[2]) == ([], 0)
    with closing(SQLiteWorkerStore(path)) as engine:
        assert engine.repair()
    assert client.adopt(T0) is False
    assert len(synced) == 1


@pytest.mark.parametrize("repairing", [False, True])
def test_a_sync_that_was_not_even_tried_stops_all_until_the_repair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repairing: bool
) -> None:
    """Also where a repair that began before the commit is about to take a flag away."""
    path = os.fspath(tmp_path / "spool.db")
    synced: list[int] = []
    with (
        closing(SQLiteClientStore(path, sync=synced.append)) as client,
        closing(SQLiteClientStore(path, sync=synced.append)) as other,
        closing(SQLiteWorkerStore(path, sync=synced.append)) as engine,
    ):
        client.enqueue([submission()], T0)
        real, looks = os.stat, []

        def stat(name: Any, *args: Any, **kwargs: Any) -> os.stat_result:
            if str(name).endswith("-shm"):
                looks.append(name)
                if len(looks) == 2:  # behind the commit; the first is ahead of it
                    raise OSError(errno.EIO, os.strerror(errno.EIO), name)
            return real(name, *args, **kwargs)

        begun: list[poison.Mark] = []

        def flagged(_writer: object) -> None:
            if repairing:
                poison.poison(path, OSError(errno.EIO, "another's"))
                begun.append(engine._sync.begin_repair())
                del looks[1:]  # what the repair looked at

        monkeypatch.setattr(client._log_room, "require", flagged)
        monkeypatch.setattr(os, "stat", stat)
        count = len(synced)
        with pytest.raises(OutcomeUnknown) as unknown:
            client.enqueue([submission()], T0)
        monkeypatch.undo()
        assert len(synced) == count
        assert Path(poison.poison_path(path)).read_text() == "EIO\n" * (1 + repairing)
        assert not any(engine._sync.heal(mark) for mark in begun)
        for one in (client, other):
            with pytest.raises(SpoolError, match="being repaired"):
                one.enqueue([submission()], T0)
        assert engine.repair()
        assert len(synced) > count
        assert str(other.statuses([unknown.value.key])[unknown.value.key].status) == "queued"
        other.enqueue([submission()], T0)
