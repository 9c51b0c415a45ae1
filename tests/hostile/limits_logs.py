"""Logs that nobody takes: the reader gone or standing still, the disk full, no standard output.

Contract. As ``limits``: mail goes on whatever becomes of the log, and the engine ends by TERM.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from mailstrom.testing.script import Script
from tests.hostile.limits_engine import Told, told
from tests.hostile.stand import Stand
from tests.hostile.table import Row
from tests.support.engine import Tables, mail
from tests.support.network import Network, dots
from tests.support.sockets import eventually
from tests.support.trial import Plan

SETTINGS: Tables = {"delivery": {"drain_timeout": "2s"}, "log": {"level": "debug"}}
WAIT_S = 120.0
MESSAGES = 200
WANTED = "all delivered once, exit 0"
ROOM = 1 << 16


def logs(plan: Plan) -> Iterator[Row]:
    """One row for each way in which a log is not taken."""
    yield _row(plan, "the reader of the log is gone", WANTED, _gone)
    yield _row(
        plan, "the reader of the log stands still, then reads on",
        f"{WANTED}, what was dropped is told", _standing,
    )  # fmt: skip
    yield _row(plan, "the disk of the log is full", WANTED, _full)
    yield _row(plan, "standard output and error are closed before the start", WANTED, _closed)


Through = Callable[[], str]
Story = Callable[[Told, Through], str]


def _row(plan: Plan, case: str, wanted: str, story: Story) -> Row:
    with Network() as network:
        domain, hosts = network.site(Script())
        engine = told(network, plan.folder / case.replace(" ", "-"), SETTINGS)

        def through() -> str:
            ids = list(engine.ms.send_many(mail(f"u{n}@{domain}") for n in range(MESSAGES)))

            def left() -> int:
                return sum(not one.succeeded for one in engine.ms.statuses(ids).values())

            eventually(lambda: left() == 0, WAIT_S, what="all mail", interval=0.05)
            came = [dot.message_id for dot in dots(hosts)]
            twice = len(came) - len(set(came))
            return "all delivered once" if not twice else f"{twice} came twice"

        try:
            return story_row(Stand(network=network, engine=engine), case, wanted, story, through)
        finally:
            engine.close()


def story_row(stand: Stand, case: str, wanted: str, story: Story, through: Through) -> Row:
    """The row; the worker is none before the story began, so its cost is not told."""
    engine = stand.engine
    assert isinstance(engine, Told)
    try:
        seen = story(engine, through)
        findings: tuple[str, ...] = ()
    except (AssertionError, TimeoutError) as error:
        seen, findings = "no outcome", (str(error).splitlines()[0],)
    return Row(case=case, wanted=wanted, seen=seen, findings=findings)


def _gone(engine: Told, through: Through) -> str:
    ours, theirs = os.pipe()
    try:
        engine.begin(theirs)
    finally:
        os.close(theirs)
        os.close(ours)
    return f"{through()}, exit {engine.stop()}"


def _standing(engine: Told, through: Through) -> str:
    ours, theirs = os.pipe()
    try:
        engine.begin(theirs)
        os.close(theirs)
        said = through()
        os.set_blocking(ours, False)
        read = _read(ours)  # until nothing more is in it
        again = through()
        read += _read(ours)
        code = engine.stop()
        read += _read(ours)
    finally:
        os.close(ours)
    dropped = sum(
        line.get("lines", 0) for line in _lines(read) if line.get("event") == "log.dropped"
    )
    words = ", what was dropped is told" if dropped else ", nothing was told of what was dropped"
    return f"{said if said == again else again}, exit {code}{words}"


def _full(engine: Told, through: Through) -> str:
    with Path("/dev/full").open("wb") as full:
        engine.begin(full.fileno())
    return f"{through()}, exit {engine.stop()}"


def _closed(engine: Told, through: Through) -> str:
    engine.begin(None)
    return f"{through()}, exit {engine.stop()}"


def _read(fd: int) -> bytes:
    read = b""
    while True:
        try:
            block = os.read(fd, ROOM)
        except BlockingIOError:
            return read
        if not block:
            return read
        read += block


def _lines(read: bytes) -> Iterator[dict[str, int | str]]:
    for line in read.splitlines():
        try:
            found = json.loads(line)
        except ValueError:  # a traceback, say
            continue
        yield found
