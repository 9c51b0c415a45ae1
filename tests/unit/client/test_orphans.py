"""``orphans``: who died is told by the lock, not by the clock or the row."""

from __future__ import annotations

import os
from pathlib import Path

from mailstrom import Mailstrom
from mailstrom.lockfile import LockFile
from mailstrom.storage import run_directory
from tests.storage.files import SQLiteStores
from tests.storage.spool import T0, Spool


def test_a_process_that_died_with_work_in_hand_is_told_and_is_no_damage(tmp_path: Path) -> None:
    stores = SQLiteStores(tmp_path / "spool.db")
    path = stores.path
    with stores.opened, Mailstrom(path) as ms:
        spool = Spool(stores)
        spool.send("a@example.org")
        spool.route()
        assert ms.orphans() == []
        folder = run_directory(path)
        os.makedirs(folder, exist_ok=True)
        lock = LockFile(os.path.join(folder, "delivery-1-x.lock"))
        assert lock.acquire()
        worker = spool.register(lock="delivery-1-x.lock")
        assert ms.orphans() == [], "it lives"
        lock.release()
        assert ms.orphans() == [], "it had nothing in hand"
        spool.claim(spool.lane(worker=worker))
        (told,) = ms.orphans()
        assert told.startswith(
            f"worker {worker} (delivery, pid 4711 on machine) is gone, with 1 lane and 1 claimed"
        )
        assert ms.check() == []
        spool.engine.lapse(worker, boot="boot-1", now_ms=T0)
        assert ms.orphans() == []
