"""What a client does until it is killed: one job a line on standard input, each in a forked child.

``python -P torture_jobs.py``; a line is ``{"arm": settings of torture_points, "job": NAME,
"store": PATH, ...}``. The answer is one line: ``status`` (as ``waitpid`` has it: minus the signal)
and ``said``, what the child wrote down, each word of it after the call that it tells of returned.
The parent has one thread and never opens a spool, so that a fork costs nothing and is safe.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from base64 import b64decode
from collections.abc import Callable
from typing import Any

import torture_points

from mailstrom import Mailstrom
from mailstrom.clock import wall_ms
from mailstrom.storage.sqlite import client as _client  # noqa: F401 - loaded once, for all children
from mailstrom.storage.sqlite.restore import restore

Say = Callable[[object], None]
Job = dict[str, Any]


def _send(ms: Mailstrom, job: Job, say: Say) -> None:
    for number, content in enumerate(job["contents"]):
        key = job["keys"][number] if job.get("keys") else None
        say(ms.send(b64decode(content), idempotency_key=key, **job["options"]))


def _send_many(ms: Mailstrom, job: Job, say: Say) -> None:
    say(ms.send_many([b64decode(content) for content in job["contents"]], **job["options"]))


def _hold(ms: Mailstrom, job: Job, say: Say) -> None:
    say(ms.hold(job["id"]))


def _cancel_all(ms: Mailstrom, job: Job, say: Say) -> None:
    say(ms.change_all("cancel", status="queued"))


def _backup(ms: Mailstrom, job: Job, say: Say) -> None:
    ms.backup(job["target"])
    say("copied")


def _adopt(ms: Mailstrom, _job: Job, say: Say) -> None:
    say(ms.adopt())


def _look(ms: Mailstrom, _job: Job, say: Say) -> None:
    say(len(ms.query("SELECT id FROM messages")))


_JOBS: dict[str, Callable[[Mailstrom, Job, Say], None]] = {
    "send": _send,
    "send_many": _send_many,
    "hold": _hold,
    "cancel_all": _cancel_all,
    "backup": _backup,
    "adopt": _adopt,
    "look": _look,
}


def _work(job: Job, out: int) -> int:
    def say(word: object) -> None:
        os.write(out, json.dumps(word).encode() + b"\n")

    torture_points.arm(job["arm"])
    try:
        if job["job"] == "restore":
            say(restore(job["copy"], job["store"], wall_ms()))
        else:
            with Mailstrom(job["store"]) as ms:
                _JOBS[job["job"]](ms, job, say)
    except torture_points.Injected:
        return 3
    except Exception:
        if not os.path.exists(os.path.join(job["arm"]["folder"], "token")):
            traceback.print_exc()  # nobody asked for it
        return 1
    return 0


def main() -> None:
    """Serve jobs until standard input ends."""
    for line in sys.stdin:
        job = json.loads(line)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            status = 99
            try:
                status = _work(job, writing)
            finally:
                sys.stderr.flush()
                os._exit(status)
        os.close(writing)
        with open(reading, "rb") as stream:
            said = [json.loads(word) for word in stream.read().splitlines()]
        _, ended = os.waitpid(pid, 0)
        status = os.waitstatus_to_exitcode(ended)
        print(json.dumps({"status": status, "said": said}), flush=True)


if __name__ == "__main__":
    main()
