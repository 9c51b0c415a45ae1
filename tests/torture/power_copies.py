"""Power cuts while a spool is backed up, restored from its copy and adopted.

At each cut: a copy that has its name is whole and marked, and one whose backup returned has its
name; the spool opens, or says that its restore was interrupted; the same ``restore`` said again
puts the copy there; and the former spool is whole under the name it was given, with every message
that was acknowledged before.
"""

from __future__ import annotations

import os
import shutil
from random import Random

from mailstrom.errors import NotASpool, SpoolError
from mailstrom.storage.sqlite import restore
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from tests.torture.disk_image import Image
from tests.torture.disk_record import Recorder
from tests.torture.power_known import Known
from tests.torture.power_oracle import SPOOL, Judgement
from tests.torture.power_world import World

COPY = "copy.db"
BACKUP, NAMED, RESTORE, RESTORED, ADOPT, ADOPTED = range(6)
"""How far it had come."""


class CopyWorld(World):
    """A spool that is copied while it is in use, restored and adopted."""

    def copied(self, recorder: Recorder) -> list[tuple[int, int, Known]]:
        """Do it all; where each step of it began, with what was known then."""
        marks = [(0, -1, self.known.copy())]

        def mark(stage: int) -> None:
            marks.append((len(recorder.steps), stage, self.known.copy()))

        copy = os.path.join(os.path.dirname(self.path), COPY)
        for _ in range(30):
            self.verb()
        mark(BACKUP)
        self._depth = 1  # others come in between, one deep
        self.clients[0].backup(copy, self.now)
        self._depth = 0
        mark(NAMED)
        for _ in range(20):
            self.verb()
        self.close()
        mark(RESTORE)
        restore.restore(copy, self.path, self.now)
        mark(RESTORED)
        client = SQLiteClientStore(self.path)
        mark(ADOPT)
        assert client.adopt(self.now + 5_000)
        mark(ADOPTED)
        client.close()
        return marks


def judge_copy(
    image: Image, folder: str, stage: int, before: Known, promised: Known, random: Random, now: int
) -> Judgement:
    """Judge an image.

    Args:
        stage: how far it had come.
        before: what was known when the backup began.
        promised: what the original had promised at the cut.
    """
    found = Judgement()
    os.mkdir(folder)
    path, copy = os.path.join(folder, SPOOL), os.path.join(folder, COPY)
    try:
        for name, data in image.files.items():
            with open(os.path.join(folder, name), "wb") as stream:
                stream.write(data)
        if os.path.exists(copy):
            _copy(copy, found)
            _holds(copy, before, "the copy", found)
        elif stage >= NAMED:
            found.findings.append("the backup returned, and its file is not there")
        if stage < RESTORE:
            _holds(path, promised, "the spool", found)
        elif stage == RESTORE:
            _interrupted(path, copy, before, promised, found, now)
        else:
            _holds(path, before, "the restored spool", found)
            _former(folder, promised, found)
            _adopted(path, stage, found)
    except SpoolError as error:
        found.findings.append(f"{type(error).__name__}: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _copy(copy: str, found: Judgement) -> None:
    if restore.look(copy) is None:
        found.findings.append("a copy has its name and no mark")


def _interrupted(
    path: str, copy: str, before: Known, promised: Known, found: Judgement, now: int
) -> None:
    try:
        SQLiteClientStore(path).close()
    except NotASpool as error:
        if "say it again" not in str(error):
            raise
    restore.restore(copy, path, now + 1_000)
    _holds(path, before, "the spool restored again", found)
    _former(os.path.dirname(path), promised, found)
    _adopted(path, RESTORED, found)


def _former(folder: str, promised: Known, found: Judgement) -> None:
    """Of what was put aside one is the former spool."""
    wanted = set(promised.acked) - promised.purgeable
    for name in sorted(os.listdir(folder)):
        if ".replaced-" in name and not name.endswith(("-wal", "-shm", "-run")):
            aside = os.path.join(folder, name)
            client = SQLiteClientStore(aside)
            try:
                whole = wanted <= set(client.statuses(sorted(wanted)))
            finally:
                client.close()
            if whole:
                _holds(aside, promised, "the former spool", found)
                return
    found.lost += sum(len(promised.acked[id].recipients) for id in wanted)
    found.findings.append("the former spool is nowhere")


def _holds(path: str, known: Known, what: str, found: Judgement) -> None:
    """It opens, is sound, and has what was acknowledged."""
    client = SQLiteClientStore(path)
    try:
        found.findings += [f"{what}: check: {text}" for text in client.check()]
        there = client.statuses(list(known.acked))
        for id, one in known.acked.items():
            if id in known.purgeable:
                continue
            if id not in there or set(there[id].recipients) != set(one.recipients):
                found.lost += len(one.recipients)
                found.findings.append(f"{what} lacks {id}, which was acknowledged")
            elif client.content(id) != one.content:
                found.findings.append(f"{what}: {id} has other bytes than were accepted")
    finally:
        client.close()


def _adopted(path: str, stage: int, found: Judgement) -> None:
    store = SQLiteWorkerStore(path)
    try:
        copied = store.copied
    finally:
        store.close()
    if copied and stage == ADOPTED:
        found.findings.append("adoption returned, and the mark is back")
    if not copied and stage < ADOPT:
        found.findings.append("a restored copy has no mark")
