"""An application by itself: the client's verbs with an engine that it runs in its own process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mailstrom import AsyncMailstrom, EngineState, Mailstrom, Status
from mailstrom.testing.smtp import SMTPServer

MESSAGE = b"From: a@example.com\r\nSubject: hello\r\n\r\nbody\r\n"


def tables(server: SMTPServer) -> dict[str, Any]:
    """A configuration that relays everything to this server, soon again where it must."""
    return {
        "delivery": {"mode": "relay"},
        "relay": {"hosts": [f"127.0.0.1:{server.port}"], "tls": "none"},
        "retry": {"schedule": ["100ms"]},
        "sites": {"suspend": ["100ms"]},
    }


@pytest.fixture
def server() -> Iterator[SMTPServer]:
    with SMTPServer(keep_content=True).in_thread() as server:
        yield server


@pytest.fixture(params=["file", "memory:"])
def ms(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mailstrom]:
    name = str(tmp_path / "spool.db") if request.param == "file" else request.param
    with Mailstrom(name) as opened:
        yield opened
        opened.stop()
        assert opened.check() == []


def test_sent_started_delivered_stopped(ms: Mailstrom, server: SMTPServer) -> None:
    ids = ms.send_many([MESSAGE] * 50, recipients=["b@example.org"])
    refused = ms.send(MESSAGE, recipients=["b@example.org", "refuse@example.org"])
    ms.start(config=tables(server))
    assert ms.worker_status().ok
    for id in ids:
        assert ms.wait(id, timeout=60).status is Status.DELIVERED
    status = ms.wait(refused, timeout=60)
    assert status.status is Status.PARTIAL
    assert status.recipients["refuse@example.org"].reply_code == 550
    assert ms.stop() is True
    assert ms.worker_status().state is EngineState.STOPPED
    assert len(server.dots) == 51
    waits = ms.send(MESSAGE, recipients=["c@example.org"])
    ms.start(config=tables(server))
    assert ms.wait(waits, timeout=60).succeeded
    assert {one.id for one in ms.recent()} == {*ids, refused, waits}
    assert ms.recent() == []
    assert ms.stats().finished["delivered"] == 52
    assert len(ms.find(status="delivered", limit=1_000)) == 52


def test_held_mail_stays_and_goes_out_when_it_is_released(
    ms: Mailstrom, server: SMTPServer
) -> None:
    held = ms.send(MESSAGE, recipients=["b@example.org", "c@example.org"])
    assert ms.hold(held) == 2
    ms.start(config=tables(server))
    other = ms.send(MESSAGE, recipients=["d@example.org"])
    assert ms.wait(other, timeout=60).succeeded
    assert ms.status(held).status is Status.HELD
    assert ms.release(held, recipient="b@example.org") == 1
    stream = ms.follow(0, types="recipient.delivered")
    delivered = [next(stream).recipient, next(stream).recipient]
    assert delivered == ["d@example.org", "b@example.org"]
    assert ms.change_all("release", domain="example.org") == 1
    assert ms.wait(held, timeout=60).succeeded


def test_mail_for_later_waits_for_its_time_and_retry_does_not_hasten_it(
    ms: Mailstrom, server: SMTPServer
) -> None:
    later = ms.send(MESSAGE, recipients=["b@example.org"], send_at=timedelta(hours=1))
    soon = ms.send(MESSAGE, recipients=["b@example.org"], send_at=timedelta(milliseconds=300))
    ms.start(config=tables(server))
    assert ms.retry(later) == 0, "it is due when it was asked for, and not sooner"
    assert ms.wait(soon, timeout=60).succeeded
    found = ms.status(later)
    assert (found.status, found.completed) == (Status.QUEUED, False)
    short = ms.send(
        MESSAGE, recipients=["defer@example.org"], expires_at=timedelta(milliseconds=600)
    )
    expired = ms.wait(short, timeout=60).recipients["defer@example.org"]
    assert (expired.status, expired.reason) == (Status.FAILED, "expired")
    assert ms.cancel(later) == 1


def test_what_may_have_arrived_is_held_for_a_decision(ms: Mailstrom, server: SMTPServer) -> None:
    ids = [
        ms.send(MESSAGE, recipients=[f"drop-after-dot+{n}@example.org"], on_doubt="hold")
        for n in range(3)
    ]
    ms.start(config=tables(server))
    held = [
        event.message_id
        for _, event in zip(ids, ms.follow(0, types="recipient.held"), strict=False)
    ]
    assert sorted(filter(None, held)) == sorted(ids)
    for id in ids:
        [one] = ms.status(id).recipients.values()
        assert (one.status, one.reason, one.in_doubt) == (Status.HELD, "in_doubt", True)
        assert ms.release(id) == 0, "that takes a decision"
    assert ms.resolve(ids[0], "delivered") == 1
    assert ms.resolve(ids[1], "failed") == 1
    assert ms.resolve(ids[2], "retry") == 1
    assert ms.wait(ids[2], timeout=60).succeeded, "the server drops the first time only"
    assert ms.status(ids[0]).status is Status.DELIVERED
    assert ms.status(ids[1]).status is Status.FAILED
    assert [len(ms.find(reason="in_doubt", status=word)) for word in ("held", "failed")] == [0, 1]


def test_a_loop_sends_follows_and_waits_beside_its_own_engine(server: SMTPServer) -> None:
    async def main() -> None:
        async with AsyncMailstrom("memory:") as ms:
            await ms.start(config=tables(server))
            ids = await asyncio.gather(
                *(ms.send(MESSAGE, recipients=[f"b{n}@example.org"]) for n in range(100))
            )
            statuses = await asyncio.gather(*(ms.wait(id, timeout=60) for id in ids))
            assert all(status.succeeded for status in statuses)
            seen = set()
            async for event in ms.follow(0, types=["recipient.delivered"]):
                seen.add(event.message_id)
                if len(seen) == 100:
                    break
            assert seen == set(ids)
            assert (await ms.worker_status()).ok
            assert await ms.stop() is True

    asyncio.run(main())


APPLICATION = """
import os, sys, threading, time
from mailstrom import Mailstrom

ms = Mailstrom(sys.argv[1])
ms.start(config={{
    "delivery": {{"mode": "relay"}}, "relay": {{"hosts": ["127.0.0.1:{port}"], "tls": "none"}}
}})
id = ms.send(b"From: a@example.com\\r\\n\\r\\nbody\\r\\n", recipients=["b@example.org"])
assert ms.wait(id, timeout=60).succeeded
print("delivered", flush=True)
{end}
"""


DROPS = """
engines = [thread for thread in threading.enumerate() if thread.name == "mailstrom"]
assert len(engines) == 1
del ms
engines[0].join(25)
assert not engines[0].is_alive()
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        pytest.param("", 0, id="falls off its end"),
        pytest.param("raise SystemExit(3)", 3, id="exits"),
        pytest.param(DROPS, 0, id="drops the client"),
        pytest.param("time.sleep(60)", -signal.SIGINT, id="is interrupted"),
        pytest.param(
            "if os.fork() == 0: raise SystemExit(0)\nos.wait(); ms.close()", 0, id="forks"
        ),
    ],
)
def test_an_application_ends_as_it_likes_and_its_worker_retires(
    tmp_path: Path, server: SMTPServer, end: str, code: int
) -> None:
    path = str(tmp_path / "spool.db")
    with subprocess.Popen(
        [sys.executable, "-P", "-c", APPLICATION.format(port=server.port, end=end), path],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": os.environ["PATH"]},
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "delivered\n"
        if code < 0:
            process.send_signal(-code)
        _, trouble = process.communicate(timeout=30)
    assert process.returncode == code, trouble
    assert "Traceback" not in trouble or code < 0
    with Mailstrom(path) as ms:
        assert ms.stats().workers == 0
        assert {row.state for row in ms.query("SELECT state FROM workers")} == {"stopped"}
        assert ms.check() == []
