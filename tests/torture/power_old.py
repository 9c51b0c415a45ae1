"""A spool that the first release made and an engine of it was working on, as it lies on the disk.

The released wheel itself makes it, in a process of its own: messages that wait, one that is claimed
and one that is on the wire and was taken by the far end.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mailstrom.storage.client import Submission
from tests.storage.spool import T0, submission

WHEEL = Path(__file__).parents[1] / "data" / "mailstrom-0.1.0-py3-none-any.whl"
PROGRAM = """
import base64, json, sys
sys.path.insert(0, sys.argv[1])
path, now = sys.argv[2], int(sys.argv[3])
from mailstrom import Mailstrom
from mailstrom.storage.base import ClaimRequest, Open, RouteAnswer, Work
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.worker import SQLiteWorkerStore
from mailstrom.types import Host, Route, RouteResult
ms = Mailstrom(path)
body = b"From: then@example.com\\r\\nSubject: then\\r\\n\\r\\n"
to = {}
for n in range(8):
    addresses = [f"old{n}.{m}@one.example" for m in range(1 + n % 3)]
    text = body + b"body " * 9 + b"\\r\\n" + b"line\\r\\n" * (n * 400)
    to[ms.send(text, sender="then@example.com", recipients=addresses)] = addresses
ms.close()
engine = SQLiteWorkerStore(path)
worker = engine.register(kind="delivery", pid=1, host="h", boot="boot-old", lock="l", restarts=0,
                         now_ms=now).seq
later = max(now, 4_000_000_000_000)
for due in engine.due_domains(worker, 9, later):
    route = Route(domain=due.name, result=RouteResult.MX,
                  hosts=(Host(preference=1, name="mx.one.example"),))
    engine.put_route(worker, RouteAnswer(route=route, site_key="mx.one.example", provider=None,
                                         expires_ms=later + 10_000_000), later)
# what the release stamps with the clock of today is due today
import time
now = int(time.time() * 1000)
(lane,) = engine.lease(worker, want=1, limit=9, workers=1, now_ms=now)
claims = [ClaimRequest(lane=lane.token, limit=2, max_bytes=1 << 20)]
rows = engine.exchange(Work(claims=claims), now).claimed
first = rows[0]
opens = [Open(lane=lane.token, recipients=(first.recipient,), session="s")]
engine.exchange(Work(opens=opens), now)
engine.sync()
engine.close()
client = SQLiteClientStore(path)
print(json.dumps({
    "sent": [[id, a, base64.b64encode(client.content(id)).decode()] for id, a in to.items()],
    "far": [first.message_id, first.address], "token": lane.token, "now": now,
}))
client.close()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Old:
    """Files by the end of their names, and what was promised and done with them."""

    files: dict[str, bytes]
    sent: tuple[Submission, ...]
    far: tuple[str, str]
    token: int
    now: int

    def copy(self, path: str) -> None:
        """Put the files in a place."""
        for end, data in self.files.items():
            Path(path + end).write_bytes(data)


def of_old(folder: str) -> Old:
    """Have the released wheel make one in a folder, which is made and left empty."""
    os.mkdir(folder)
    path = os.path.join(folder, "spool.db")
    ran = subprocess.run(
        [sys.executable, "-P", "-I", "-c", PROGRAM, str(WHEEL), path, str(T0)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    files = {end: Path(path + end).read_bytes() for end in ("", "-wal")}
    for each in ("", "-wal", "-shm"):
        Path(path + each).unlink(missing_ok=True)
    sent = tuple(
        submission(*to, id=id, content=base64.b64decode(content))
        for id, to, content in told["sent"]
    )
    id, address = told["far"]
    return Old(files=files, sent=sent, far=(id, address), token=told["token"], now=told["now"])
