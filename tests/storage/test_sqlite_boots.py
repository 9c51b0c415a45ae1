"""After a reboot: what was claimed before may have been on the wire, and is marked before all else.

A power cut can take an open with it that was not synced, never the claim. So the row on the disk is
``claimed`` although the far end may have the message. And a spool that was only being created.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mailstrom.config import Config
from mailstrom.errors import SpoolBusy
from mailstrom.storage.base import Lapsed
from mailstrom.storage.client import Selection
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from mailstrom.types import Change, OnDoubt
from mailstrom_workers.janitor import Janitor
from tests.storage.files import SQLiteStores
from tests.storage.spool import T0, Spool, change, submission
from tests.torture.disk_image import SECTOR
from tests.torture.disk_record import recording


def client_of(stores: SQLiteStores, boot: str) -> SQLiteClientStore:
    store = SQLiteClientStore(stores.path, sync=lambda fd: None, boot=boot)
    stores.opened.callback(store.close)
    return store


def claimed(stores: SQLiteStores) -> tuple[Spool, str]:
    """A message that a worker of the boot ``boot-1`` has claimed."""
    spool = Spool(stores)
    id = spool.send("a@example.org", expires_ms=T0 + 1_000)
    spool.route()
    assert len(spool.claim(spool.lane())) == 1
    return spool, id


@pytest.mark.parametrize("word", ["cancel", "hold"])
def test_a_claim_of_another_boot_is_changed_only_after_its_lapse(
    stores: SQLiteStores, word: str
) -> None:
    spool, id = claimed(stores)
    for boot in ("boot-2", ""):
        client = client_of(stores, boot)
        assert change(client, word, [id], None, T0) == 0
        assert client.targets(Selection(), T0, change=Change(word), limit=9) == []
    assert spool.engine.lapse(spool.worker, boot="boot-2", now_ms=T0).in_doubt == 1
    client = client_of(stores, "boot-2")
    assert len(client.targets(Selection(), T0, change=Change(word), limit=9)) == 1
    assert change(client, word, [id], None, T0) == 1
    assert spool.rows("SELECT in_doubt FROM attempts") == [(1,)]
    spool.sound()


@pytest.mark.parametrize("word", ["cancel", "hold"])
def test_a_claim_of_this_boot_is_taken_from_its_lane(stores: SQLiteStores, word: str) -> None:
    spool, id = claimed(stores)
    client = client_of(stores, "boot-1")
    assert len(client.targets(Selection(), T0, change=Change(word), limit=9)) == 1
    assert change(client, word, [id], None, T0) == 1
    assert spool.rows("SELECT count(*) FROM attempts") == [(0,)]


class Crowded(SQLiteWorkerStore):
    """A store that finds the lock taken whenever it lapses."""

    def lapse(
        self, worker: int, *, boot: str, now_ms: int, on_doubt: OnDoubt = OnDoubt.RETRY
    ) -> Lapsed:
        """Nothing done."""
        raise SpoolBusy("the lock is taken")


def test_nothing_expires_before_the_dead_are_lapsed(stores: SQLiteStores) -> None:
    spool, id = claimed(stores)
    crowded = Crowded(stores.path, sync=lambda fd: None)
    stores.opened.callback(crowded.close)
    janitor = Janitor(stores.path, 0, Config(store=stores.path, hostname="sender.test"))
    with pytest.raises(SpoolBusy):
        janitor.round(crowded)
    assert spool.status(id) != {"a@example.org": "failed"}
    assert spool.rows("SELECT count(*) FROM attempts") == [(0,)]
    janitor.round(spool.engine)
    assert spool.status(id) == {"a@example.org": "failed"}
    assert spool.rows("SELECT in_doubt FROM attempts") == [(1,)]


def test_a_spool_whose_creation_was_cut_off_is_created_anew(tmp_path: Path) -> None:
    """The first page is half written, the rollback journal that undoes it is whole."""
    (tmp_path / "first").mkdir()
    with recording(str(tmp_path / "first")) as recorder:
        SQLiteClientStore(str(tmp_path / "first" / "spool.db")).close()
    page = next(step for step in recorder.steps if (step.what, step.name) == ("write", "spool.db"))
    journal = bytearray(SECTOR)
    for step in recorder.steps[: recorder.steps.index(page)]:
        if step.what == "write" and step.name == "spool.db-journal":
            journal[step.offset : step.offset + len(step.data)] = step.data
    (tmp_path / "spool.db").write_bytes(bytes(SECTOR) + page.data[SECTOR:])
    (tmp_path / "spool.db-journal").write_bytes(journal)
    store = SQLiteClientStore(str(tmp_path / "spool.db"))
    try:
        one = submission()
        assert store.enqueue([one], T0) == [one.id]
        assert store.check() == []
    finally:
        store.close()
