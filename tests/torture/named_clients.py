"""A client, or a tool that opens the spool, killed at a named point: what it left, and the way on.

Each case has a spool of its own and no engine. Whoever comes next must find the whole change or
nothing (as the point's ``stored`` says), a sound spool, and the same command must go on: with an
idempotency key the first id comes back, a copy gets its name, a restore ends, a migration goes on
with the step that was cut.

One function a scene, which makes the file long and flat. The clients are children of one process
(``inject/torture_jobs``), forked for each case.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mailstrom import Mailstrom
from mailstrom.clock import wall_ms
from mailstrom.errors import NotASpool
from mailstrom.storage import open_worker_store
from mailstrom.storage.sqlite.connection import interrupted
from mailstrom.storage.sqlite.restore import restore
from tests.support.engine import environment
from tests.torture.launch import INJECT
from tests.torture.named_points import POINTS, settings

WHEEL = Path(__file__).parents[1] / "data" / "mailstrom-0.1.0-py3-none-any.whl"
HOUR_MS = 3_600_000
DAY_MS = 86_400_000
DEADLINE_S = 60.0
_KILLED = -9
_INJECTED = 3
_OLD = """
import sys
sys.path.insert(0, sys.argv[1])
from mailstrom import Mailstrom
ms = Mailstrom(sys.argv[2])
for number in range(3):
    ms.send(b"From: a@a.test\\r\\nSubject: old\\r\\n\\r\\nx\\r\\n", sender="a@a.test",
            recipients=["u%d@b.test" % number])
ms.close()
"""


@dataclass(slots=True)
class Found:
    """What a case showed.

    Args:
        hit: whether the fault happened; one that did not must not be counted.
        recipients: at stake.
        lost: acknowledged and gone.
        findings: everything else that is wrong.
    """

    hit: bool = False
    recipients: int = 0
    lost: int = 0
    findings: list[str] = field(default_factory=list)

    def expect(self, holds: bool, sentence: str) -> None:
        """Note a finding unless something holds."""
        if not holds:
            self.findings.append(sentence)


class Clients:
    """The process that forks clients; a context manager.

    Args:
        folder: for spools; each case has its own directory in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._old: Path | None = None
        self._numbers = 0

    def __enter__(self) -> Self:
        """Start it."""
        env = environment()
        paths = [str(INJECT), *filter(None, [env.get("PYTHONPATH")])]
        env["PYTHONPATH"] = ":".join(paths)
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(INJECT / "torture_jobs.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            text=True,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it."""
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(DEADLINE_S)

    def case(self, name: str, *, hit: int = 1, do: str = "kill", size: int = 1) -> Found:
        """Play one point.

        Args:
            hit: at which visit.
            do: kill or raise.
            size: recipients of a message.
        """
        self._numbers += 1
        folder = self.folder / f"case{self._numbers}"
        folder.mkdir()
        found = Found()
        try:
            _PLAYS[POINTS[name].scene](_Case(self, folder, name, hit, do, size, found))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return found

    def run(self, line: dict[str, Any]) -> dict[str, Any]:
        """One job; what it said and how it ended."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(line) + "\n")
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        return answer

    def old_spool(self) -> Path:
        """The folder of a spool that the first release made, closed."""
        if self._old is None:
            old = self.folder / "old"
            old.mkdir()
            argv = [sys.executable, "-P", "-I", "-c", _OLD, str(WHEEL), str(old / "spool.db")]
            subprocess.run(argv, check=True, timeout=DEADLINE_S, capture_output=True)
            self._old = old
        return self._old


@dataclass(slots=True)
class _Case:
    clients: Clients
    folder: Path
    name: str
    hit: int
    do: str
    size: int
    found: Found

    @property
    def store(self) -> Path:
        return self.folder / "spool.db"

    @property
    def stored(self) -> bool | None:
        return POINTS[self.name].stored

    def recipients(self, number: int) -> list[str]:
        return [f"u{number}.{each}@{'bc'[each % 2]}.test" for each in range(self.size)]

    def play(self, job: str, **options: Any) -> list[Any]:
        """Run a job that is to die; what it said before."""
        (self.folder / "armed").write_text(
            json.dumps({"point": self.name, "hit": self.hit, "do": self.do, "token": "token"})
        )
        scene = POINTS[self.name].scene
        armed = settings(str(self.folder), frozenset((scene,)))
        armed["points"] = {self.name: armed["points"][self.name]}
        answer = self.clients.run({"arm": armed, "job": job, "store": str(self.store), **options})
        self.found.hit = (self.folder / "token").exists()
        if self.found.hit and self.do == "kill":
            self.found.expect(answer["status"] == _KILLED, f"ended with {answer['status']}")
        elif not self.found.hit:
            self.found.expect(answer["status"] == 0, f"undisturbed: {answer['status']}")
        said: list[Any] = answer["said"]
        return said

    def sound(self, ms: Mailstrom) -> None:
        """No finding of ``store check``."""
        for finding in ms.check():
            self.found.findings.append(f"store check: {finding}")


def content(number: int, *, length: int = 0) -> bytes:
    """A message of at least ``length`` octets, ready for the wire."""
    head = (
        f"From: a@sender.test\r\nTo: list@b.test\r\nSubject: {number}\r\n"
        f"Message-ID: <{number}@torture.test>\r\nDate: Fri, 01 Jan 2027 00:00:00 +0000\r\n\r\n"
    )
    line = b"." + b"x" * 70 + b"\r\n"
    return head.encode() + line * (1 + length // len(line))


def _encoded(*contents: bytes) -> list[str]:
    return [b64encode(one).decode() for one in contents]


def _count(ms: Mailstrom) -> int:
    return len(ms.query("SELECT id FROM messages"))


def _send(case: _Case) -> None:
    scene = POINTS[case.name].scene
    length = 700_000 if scene == "stage" else 0
    number = 5 if scene == "send_many" else 1
    contents = [content(each, length=length) for each in range(number)]
    options: dict[str, Any] = {"sender": "a@sender.test", "recipients": case.recipients(0)}
    keys = [f"key {each}" for each in range(number)] if scene == "keyed" else None
    with Mailstrom(case.store):
        pass
    job = "send_many" if scene == "send_many" else "send"
    said = case.play(job, contents=_encoded(*contents), options=options, keys=keys)
    case.found.recipients = number * case.size
    with Mailstrom(case.store) as ms:
        case.sound(ms)
        there = _count(ms)
        case.found.expect(there in (0, number), f"{there} of {number} messages are there")
        if said and there == 0:
            case.found.lost += number * case.size
        if case.do == "kill" and case.found.hit and case.stored is not None:
            case.found.expect((there > 0) == case.stored, f"{there} messages are there")
        if keys is not None:
            id = ms.send(contents[0], idempotency_key=keys[0], **options)
            case.found.expect(_count(ms) == 1, "the key gave a second message")
            case.found.expect(ms.raw(id) == contents[0], "other bytes than were sent")
        elif there:
            rows = ms.query("SELECT id FROM messages")
            raw = {ms.raw(row.id) for row in rows}
            case.found.expect(raw == set(contents), "other bytes than were sent")
    if scene == "stage" and not there:
        _nothing_staged_stays(case)


def _nothing_staged_stays(case: _Case) -> None:
    engine = open_worker_store(str(case.store))
    try:
        while engine.purge(engine.retention(), 200, wall_ms() + 2 * DAY_MS):
            pass
    finally:
        engine.close()
    with Mailstrom(case.store) as ms:
        left = ms.query("SELECT key FROM content WHERE key < 0")
        case.found.expect(not left, f"{len(left)} staged chunks stay for ever")
        case.sound(ms)


def _fill(case: _Case, number: int) -> list[str]:
    with Mailstrom(case.store) as ms:
        case.found.recipients = number * case.size
        return [
            ms.send(content(each), sender="a@sender.test", recipients=case.recipients(each))
            for each in range(number)
        ]


def _change(case: _Case) -> None:
    (id,) = _fill(case, 1)
    said = case.play("hold", id=id)
    with Mailstrom(case.store) as ms:
        case.sound(ms)
        held = {str(one.status) for one in ms.status(id).recipients.values()}
        case.found.expect(len(held) == 1, f"half a change: {sorted(held)}")
        changed = held == {"held"}
        case.found.expect(not said or changed, "a change that was acknowledged is gone")
        if case.do == "kill" and case.found.hit:
            case.found.expect(changed == case.stored, f"recipients are {sorted(held)}")
        ms.hold(id)
        again = {str(one.status) for one in ms.status(id).recipients.values()}
        case.found.expect(again == {"held"}, f"asked again, recipients are {sorted(again)}")


def _pages(case: _Case) -> None:
    ids = _fill(case, 7)
    case.play("cancel_all")
    with Mailstrom(case.store) as ms:
        case.sound(ms)
        ms.change_all("cancel", status="queued")
        left = {str(ms.status(id).status) for id in ids}
        case.found.expect(left == {"cancelled"}, f"the same selection left {sorted(left)}")


def _backup(case: _Case) -> None:
    _fill(case, 3)
    target = case.folder / "copy.db"
    said = case.play("backup", target=str(target))
    there = target.exists()
    case.found.expect(not said or there, "a copy that was acknowledged is gone")
    if case.do == "kill" and case.found.hit:
        case.found.expect(there == case.stored, f"a file with the name: {there}")
    with Mailstrom(case.store) as ms:
        case.sound(ms)
        if not there:
            ms.backup(target)
    with Mailstrom(target) as copy:
        case.sound(copy)
        case.found.expect(_count(copy) == 3, "the copy is not whole")
        case.found.expect(copy.stats().copied, "the copy has no mark")
    if not there:
        left = [path.name for path in case.folder.iterdir() if ".copy-" in path.name]
        case.found.expect(not left, f"left beside the copy: {left}")


_BACK = """
import sys, apsw
connection = apsw.Connection(sys.argv[1])
connection.execute("UPDATE meta SET value = value - 3600000 WHERE key = 'copied_ms'")
connection.execute("UPDATE message SET created_ms = created_ms - 7200000")
connection.execute("UPDATE message SET send_ms = created_ms")
connection.close()
"""


def _adopt(case: _Case) -> None:
    ids = _fill(case, 7)
    copy = case.folder / "copy.db"
    with Mailstrom(case.store) as ms:
        expiry = {id: ms.status(id).expires_at for id in ids}
        before_ms = wall_ms()
        ms.backup(copy)
    for name in ("spool.db", "spool.db-wal", "spool.db-shm"):
        (case.folder / name).unlink(missing_ok=True)
    shutil.rmtree(case.folder / "spool.db-run")
    copy.rename(case.store)
    subprocess.run(  # it lay for an hour: counted twice, that would be seen
        [sys.executable, "-P", "-c", _BACK, str(case.store)], check=True, timeout=DEADLINE_S
    )
    said = case.play("adopt")
    with Mailstrom(case.store) as ms:
        case.sound(ms)
        copied = ms.stats().copied
        case.found.expect(not (said and copied), "an adoption that was acknowledged is gone")
        if case.do == "kill" and case.found.hit and case.hit == 1:
            case.found.expect(copied != case.stored, f"the mark: {copied}")
        ms.adopt()
        case.found.expect(not ms.stats().copied, "adopted again, and still a copy")
        case.found.expect(_count(ms) == 7, "messages are gone")
        most_ms = HOUR_MS + wall_ms() - before_ms
        for id in ids:
            moved = ms.status(id).expires_at - expiry[id]
            moved_ms = moved.total_seconds() * 1000
            case.found.expect(
                HOUR_MS <= moved_ms <= most_ms, f"expiry moved by {moved_ms} ms, not an hour"
            )


def _restore(case: _Case) -> None:
    _fill(case, 3)
    copy = case.folder / "copy.db"
    with Mailstrom(case.store) as ms:
        ms.backup(copy)
        ms.send(content(9), sender="a@sender.test", recipients=["later@b.test"])
    case.play("restore", copy=str(copy))
    facts = _facts(case, case.store)
    if facts is None:
        kept = interrupted(str(case.store))
        case.found.expect(kept is not None, "a note that names no former spool")
        former = None if kept is None else _former(case, kept)
        case.found.expect(former == (4, False), f"the former spool holds {former}")
    else:
        case.found.expect(facts in ((4, False), (3, True)), f"the spool holds {facts}")
    if facts != (3, True):
        restore(str(copy), str(case.store), wall_ms())
        facts = _facts(case, case.store)
        case.found.expect(facts == (3, True), f"said again, the spool holds {facts}")


def _facts(case: _Case, path: Path) -> tuple[int, bool] | None:
    """Number of messages and the mark; None where a note says that a restore was cut."""
    try:
        with Mailstrom(path) as ms:
            case.sound(ms)
            return _count(ms), ms.stats().copied
    except NotASpool:
        return None


def _former(case: _Case, kept: str) -> tuple[int, bool] | None:
    """Of the former spool, looked at in a copy of its files: the restore must find it untouched."""
    aside = case.folder / "aside.db"
    shutil.copy(kept, aside)
    for log in (f"{kept}-wal", f"{case.store}-wal"):
        if Path(log).exists():
            shutil.copy(log, f"{aside}-wal")
            break
    return _facts(case, aside)


def _migrate(case: _Case) -> None:
    old = POINTS[case.name].scene == "migrate"
    if old:
        for file in case.clients.old_spool().iterdir():
            if file.is_file() and not file.name.endswith("-shm"):
                shutil.copy(file, case.folder / file.name)
    case.found.recipients = 3 if old else 0
    case.play("look")
    with Mailstrom(case.store) as ms:
        case.sound(ms)
        there = _count(ms)
        case.found.expect(there == (3 if old else 0), f"{there} messages after the migration")
        if there < case.found.recipients:
            case.found.lost += case.found.recipients - there
        ms.send(
            content(1), sender="a@sender.test", recipients=["new@b.test"]
        )  # only into the schema of today


_PLAYS = {
    "send": _send,
    "send_many": _send,
    "stage": _send,
    "keyed": _send,
    "change": _change,
    "pages": _pages,
    "backup": _backup,
    "adopt": _adopt,
    "restore": _restore,
    "migrate": _migrate,
    "create": _migrate,
}
