"""``start()`` and its end, with an engine that only keeps the books."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mailstrom import EngineState, Mailstrom, SpoolError, WorkerStatus
from mailstrom.client import embedding

MESSAGE = b"From: a@example.com\r\nTo: b@example.org\r\n\r\nbody\r\n"


class Books:
    """An engine as the client sees one."""

    made: list[Books] = []  # noqa: RUF012
    refuse: BaseException | None = None

    def __init__(self, store: str, *, workers: int, config: Any, logger: Any = None) -> None:
        self.given = (store, workers, config)
        self.state = EngineState.STARTING
        self.calls: list[Any] = []
        self.ended = threading.Event()
        Books.made.append(self)

    def start(self) -> None:
        """Ready at once, or what ``refuse`` says."""
        self.calls.append("start")
        if Books.refuse is not None:
            self.state = EngineState.STOPPED
            raise Books.refuse
        if self.ended.is_set():
            raise RuntimeError("stopped before it was ready")
        self.state = EngineState.READY

    def stop(self, timeout: float) -> bool:
        """Ended; drained unless there was no time."""
        self.calls.append(("stop", timeout))
        self.state = EngineState.STOPPED
        self.ended.set()
        return timeout > 0

    def status(self) -> WorkerStatus:
        """The state."""
        return WorkerStatus(state=self.state)

    def forked(self) -> None:
        """A child was told."""
        self.calls.append("forked")
        self.state = EngineState.STOPPED


@pytest.fixture(autouse=True)
def books(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Books]]:
    module = types.ModuleType(embedding.ENGINE)
    module.EmbeddedEngine = Books  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, embedding.ENGINE, module)
    monkeypatch.setattr(Books, "made", [])
    monkeypatch.setattr(Books, "refuse", None)
    yield Books
    assert not embedding._running, "every engine was ended"


def test_one_engine_a_client_that_can_be_started_again(client: Mailstrom) -> None:
    assert client.worker_status() == WorkerStatus(state=EngineState.STOPPED)
    assert client.stop() is True, "nothing runs"
    client.start(workers=2, config={"delivery": {}})
    assert client.worker_status().ok
    with pytest.raises(RuntimeError, match=r"delivers already; stop\(\) it first"):
        client.start()
    assert client.stop(timeout=7) is True
    assert client.worker_status().state is EngineState.STOPPED
    client.start()
    assert client.stop(-1) is False, "there was no time"
    first, second = Books.made
    assert first.given == (client.path, 2, {"delivery": {}})
    assert first.calls == ["start", ("stop", 7.0)]
    assert second.given == (client.path, 1, None)


def test_the_file_that_the_client_was_opened_with_is_the_engines(tmp_path: Path) -> None:
    file = tmp_path / "mailstrom.toml"
    file.write_text('store = "spool.db"\n')
    with Mailstrom(config=file) as client:
        client.start()
        client.stop()
        client.start(config=tmp_path / "other.toml")
    assert [one.given[2] for one in Books.made] == [file, str(tmp_path / "other.toml")]


def test_an_engine_that_cannot_start_leaves_nothing(client: Mailstrom) -> None:
    Books.refuse = SpoolError("no")
    with pytest.raises(SpoolError, match="no"):
        client.start()
    assert client.worker_status().state is EngineState.STOPPED
    assert Books.made[0].ended.is_set()
    Books.refuse = None
    client.start()
    assert client.worker_status().ok
    client.stop()


def test_a_failed_engine_says_so_and_may_be_started_again(client: Mailstrom) -> None:
    client.start()
    Books.made[0].state = EngineState.FAILED
    assert client.worker_status().state is EngineState.FAILED
    client.start()
    assert Books.made[0].ended.is_set()
    assert client.worker_status().ok
    client.stop()


def test_closing_stops_first(path: str) -> None:
    client = Mailstrom(path)
    client.start()
    client.close()
    client.close()
    assert Books.made[0].calls == ["start", ("stop", 30.0)]
    with pytest.raises(SpoolError, match="closed"):
        client.start()
    assert client.stop() is True
    assert client.worker_status().state is EngineState.STOPPED


def test_a_client_that_is_dropped_ends_its_engine(path: str) -> None:
    client = Mailstrom(path)
    client.start()
    del client
    gc.collect()
    assert Books.made[0].ended.wait(30)
    for _ in range(3_000):
        if not embedding._running:
            break
        threading.Event().wait(0.01)


def test_a_signal_handler_may_stop_what_is_being_started(
    client: Mailstrom, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Books.start

    def interrupted(self: Books) -> None:
        assert client.worker_status().state is EngineState.STARTING
        assert client.stop(1) is True
        start(self)

    monkeypatch.setattr(Books, "start", interrupted)
    with pytest.raises(RuntimeError, match="stopped before it was ready"):
        client.start()
    assert client.worker_status().state is EngineState.STOPPED


@pytest.mark.parametrize("word", ["stop", "close"])
def test_another_thread_may_end_what_is_being_started(
    path: str, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    client = Mailstrom(path)
    starting = threading.Event()
    start = Books.start

    def slow(self: Books) -> None:
        starting.set()
        assert self.ended.wait(30), "nobody could stop it"
        start(self)

    monkeypatch.setattr(Books, "start", slow)
    with ThreadPoolExecutor(1) as threads:
        started = threads.submit(client.start)
        assert starting.wait(30)
        with pytest.raises(RuntimeError, match="delivers already"):
            client.start()

        getattr(client, word)()

        with pytest.raises(RuntimeError, match="stopped before it was ready"):
            started.result(30)
    assert client.worker_status().state is EngineState.STOPPED
    client.close()


def test_a_client_closed_before_it_could_see_the_engine_ends_it(
    client: Mailstrom, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Books.__init__

    def closed_meanwhile(self: Books, *arguments: Any, **options: Any) -> None:
        client.close()
        made(self, *arguments, **options)

    monkeypatch.setattr(Books, "__init__", closed_meanwhile)
    with pytest.raises(SpoolError, match="closed"):
        client.start()
    assert Books.made[0].ended.is_set()


def test_who_stops_what_is_being_stopped_waits_for_the_same_end(
    client: Mailstrom, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2)
    stop = Books.stop

    def slow(self: Books, timeout: float) -> bool:
        self.state = EngineState.DRAINING
        both.wait(30)  # two are waiting, and hold nothing that the other needs
        return stop(self, timeout)

    client.start()
    monkeypatch.setattr(Books, "stop", slow)
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(client.stop, 20)
        assert client.stop(20) is True
        assert other.result(30) is True
    assert Books.made[0].calls == ["start", ("stop", 20.0), ("stop", 20.0)]


def test_an_engine_that_could_not_be_awaited_is_not_told_stopped(
    client: Mailstrom, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.start()
    with monkeypatch.context() as patch:
        patch.setattr(Books, "stop", lambda self, timeout: False)
        assert client.stop(0) is False
        assert client.worker_status().ok
        with pytest.raises(RuntimeError, match="delivers already"):
            client.start()
    assert client.stop() is True
    assert client.worker_status().state is EngineState.STOPPED


def test_a_forked_child_has_no_engine_and_may_start_its_own(client: Mailstrom) -> None:
    client.start()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert Books.made[0].calls == ["start", "forked"]
            assert client.worker_status().state is EngineState.STOPPED
            assert client.stop() is True
            assert not embedding._running
            client.start()
            assert client.worker_status().ok
            client.close()
            assert Books.made[0].calls == ["start", "forked"]
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert client.worker_status().ok, "the parent's goes on"
    assert Books.made[0].calls == ["start"]
    client.stop()


EXITING = """
import sys, types
from mailstrom import EngineState, Mailstrom, WorkerStatus
from mailstrom.client import embedding

embedding.EXIT_S = {exit_s}

class Engine:
    def __init__(self, store, *, workers, config, logger=None):
        self.state = EngineState.STARTING
    def start(self):
        self.state = EngineState.READY
    def stop(self, timeout):
        print("stopped within", "all" if {exit_s} / 2 < timeout <= {exit_s} else timeout)
        self.state = EngineState.STOPPED
        return True
    def status(self):
        return WorkerStatus(state=self.state)

module = types.ModuleType("mailstrom_workers.embedded")
module.EmbeddedEngine = Engine
sys.modules[module.__name__] = module
{begin}
one, two = Mailstrom("memory:"), Mailstrom("memory:")
one.start()
two.start()
{end}
"""


STUCK = """
import threading
stuck = threading.Event()
def start(self):
    stuck.set()
    threading.Event().wait()
"""
THIRD = """
Engine.start = start
three = Mailstrom("memory:")
threading.Thread(target=three.start, daemon=True).start()
stuck.wait()
"""


EXIT_S = 7200.0
"""Shared by all engines at the exit; so long that what passes between two of them is nothing."""


def exiting(begin: str, end: str) -> list[str]:
    """What engines say that are left running when the interpreter exits."""
    program = EXITING.format(begin=begin, end=end, exit_s=EXIT_S)
    ran = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": "/usr/bin:/bin"},
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return sorted(ran.stdout.splitlines())


@pytest.mark.parametrize("end", ["", "raise SystemExit", "one.close(); one.start = None"])
def test_at_exit_every_engine_is_ended_once(end: str) -> None:
    first = "stopped within 30.0" if "close" in end else "stopped within all"
    assert exiting("", end) == sorted([first, "stopped within all"])


def test_at_exit_what_a_thread_is_starting_is_ended_too() -> None:
    assert exiting(STUCK, THIRD) == ["stopped within all"] * 3
