"""Lines to a stream: whole, in order, few writes, no waiting, and nothing lost at an end."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom import events
from mailstrom.logstream import PIPE_BUF, LineStream
from tests.support.engine import environment


class Writes(io.RawIOBase):
    """Keeps each write apart; ``room`` octets fit, then the disk is full."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        self.room = 1 << 30

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        octets = bytes(data)  # type: ignore[call-overload]
        if not self.room:
            raise OSError(28, "No space left on device")
        taken = octets[: self.room]
        self.room -= len(taken)
        self.kept.append(taken)
        return len(taken)

    @property
    def text(self) -> str:
        return b"".join(self.kept).decode()


class Later:
    """An event loop's next turn, when the test says so."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], None]] = []

    def __call__(self, step: Callable[[], None]) -> None:
        self.steps.append(step)

    def turn(self) -> None:
        steps, self.steps = self.steps, []
        for step in steps:
            step()


def stream_of(raw: Writes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8")


def gathering(raw: Writes) -> tuple[LineStream, Later, list[int]]:
    later, lost = Later(), []
    stream = LineStream(stream_of(raw), lost.append, later)
    return stream, later, lost


def test_lines_of_a_turn_share_a_write_in_their_order() -> None:
    stream, later, _ = gathering(raw := Writes())
    for line in (b"one", b"two", b"three"):
        stream.msg(line)
    assert raw.kept == []
    assert len(later.steps) == 1
    later.turn()
    stream.msg(b"four")
    assert raw.kept == [b"one\ntwo\nthree\n"]
    later.turn()
    assert raw.kept == [b"one\ntwo\nthree\n", b"four\n"]


def test_without_gathering_each_line_is_written_at_once() -> None:
    stream = LineStream(stream_of(raw := Writes()), lambda lines: None)
    stream.msg(b"one")
    stream.msg(b"two")
    assert raw.kept == [b"one\n", b"two\n"]


def test_an_errors_line_takes_with_it_what_waits() -> None:
    stream, _, _ = gathering(raw := Writes())
    stream.info(b"one")
    stream.critical(b"two")
    assert raw.kept == [b"one\ntwo\n"]
    stream.warning(b"three")
    stream.error(b"four")
    assert raw.text == "one\ntwo\nthree\nfour\n"


def test_what_another_thread_says_waits_for_no_turn_and_keeps_its_place() -> None:
    stream, _, _ = gathering(raw := Writes())
    stream.msg(b"one")
    thread = threading.Thread(target=stream.msg, args=(b"two",))
    thread.start()
    thread.join()
    assert raw.text == "one\ntwo\n"


def test_the_end_of_gathering_writes_what_waits() -> None:
    stream, later, _ = gathering(raw := Writes())
    stream.msg(b"one")
    stream.at_once()
    stream.msg(b"two")
    assert raw.kept == [b"one\n", b"two\n"]
    later.turn()
    assert raw.kept == [b"one\n", b"two\n"]


@given(st.lists(st.integers(0, PIPE_BUF - 1), max_size=40))
def test_writes_are_whole_lines_and_fit_a_pipe(sizes: list[int]) -> None:
    stream, later, _ = gathering(raw := Writes())
    lines = [bytes([97 + at % 26]) * size for at, size in enumerate(sizes)]
    for line in lines:
        stream.msg(line)
    later.turn()
    assert all(len(one) <= PIPE_BUF and one.endswith(b"\n") for one in raw.kept)
    assert raw.text.encode() == b"".join(line + b"\n" for line in lines)


def test_a_line_that_a_full_disk_cut_short_ends_before_the_next() -> None:
    stream = LineStream(stream_of(raw := Writes()), lambda lines: None)
    raw.room = 4
    stream.msg(b"abcdefgh")
    stream.msg(b"lost")
    raw.room = 1 << 30
    stream.msg(b"heard")
    stream.msg(b"again")
    assert raw.text == "abcd\nheard\nagain\n"


def test_what_somebody_printed_comes_first() -> None:
    stream = stream_of(raw := Writes())
    lines = LineStream(stream, lambda lines: None)
    print("printed", file=stream)
    lines.msg(b"line")
    assert raw.text == "printed\nline\n"


def test_a_pipe_that_nobody_reads_never_blocks_lines_that_waited_either() -> None:
    reader, writer = os.pipe()
    later = Later()
    with os.fdopen(writer, "w") as stream:
        try:
            events.configure("info", "json", stream)
            with events.gathered(later):
                for number in range(3_000):  # far more than a pipe holds
                    events.site_resumed(site="x" * 200, host=str(number))
                    if number % 7 == 0:
                        later.turn()
                later.turn()
                while len(os.read(reader, 1 << 20)) == 1 << 20:
                    pass
                events.site_resumed(site="heard again")
                later.turn()
            told = os.read(reader, 1 << 16).decode()
        finally:
            events.silence()
            os.close(reader)
    lines = [json.loads(line) for line in told.splitlines()]
    assert [line["event"] for line in lines] == ["site.resumed", "log.dropped"]
    assert lines[0]["site"] == "heard again"
    assert lines[1]["lines"] > 1_000


def test_a_loop_that_was_closed_keeps_no_line_back() -> None:
    def closed(step: Callable[[], None]) -> None:
        raise RuntimeError("Event loop is closed")

    raw = Writes()
    stream = LineStream(stream_of(raw), lambda lines: None, closed)
    stream.msg(b"one")
    stream.msg(b"two")
    assert raw.kept == [b"one\n", b"two\n"]


def test_what_interrupts_a_write_may_say_something_itself() -> None:
    class Interrupted(Writes):
        def write(self, data: object) -> int:
            taken = super().write(data)
            if len(self.kept) == 1:
                stream.msg(b"a finalizer's")
            return taken

    raw = Interrupted()
    stream = LineStream(stream_of(raw), lambda lines: None)
    thread = threading.Thread(target=stream.msg, args=(b"one",), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    stream.msg(b"two")
    assert raw.text == "one\na finalizer's\ntwo\n"


def test_room_that_another_process_took_first_costs_lines_that_are_counted() -> None:
    class Taken(Writes):
        def write(self, data: object) -> int:
            return None if self.room else super().write(data)  # type: ignore[return-value]

    raw = Taken()
    stream, later, lost = gathering(raw)
    for line in (b"one", b"two"):
        stream.msg(line)
    later.turn()
    assert (raw.kept, lost) == ([], [])
    Taken.write = Writes.write  # type: ignore[method-assign]
    stream.msg(b"three")
    later.turn()
    assert (raw.text, lost) == ("three\n", [2])


def test_a_forked_child_says_nothing_twice_and_waits_for_no_thread_of_its_parent() -> None:
    code = """
import os, threading, time
from mailstrom import events
events.configure("info", "json")
holds = threading.Event()
def hold():
    with events._lines._lock:
        holds.set()
        time.sleep(60)
with events.gathered(lambda write: None):
    events.site_resumed(site="the parent's")
    threading.Thread(target=hold, daemon=True).start()
    holds.wait()
    child = os.fork()
    if not child:
        events.site_resumed(site="the child's")
        os._exit(0)
    until = time.monotonic() + 20
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > until:
            os.kill(child, 9)
        time.sleep(0.01)
    os._exit(0)
"""
    done = process(code, subprocess.PIPE)
    assert [json.loads(line)["site"] for line in done.stdout.splitlines()] == ["the child's"]


def test_a_new_configuration_loses_nothing_and_goes_on_gathering() -> None:
    first, second, later = Writes(), Writes(), Later()
    try:
        with events.gathered(later):
            events.configure("info", "json", stream_of(first))
            events.site_resumed(site="one")
            events.configure("info", "json", stream_of(second))
            assert '"one"' in first.text
            events.site_resumed(site="two")
            assert second.kept == []
            later.turn()
            assert '"two"' in second.text
            events.site_resumed(site="three")
        assert '"three"' in second.text
    finally:
        events.silence()


def process(code: str, out: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", code],
        stdout=out,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        timeout=60,
        check=False,
    )


SETTING = """
from mailstrom import events
from mailstrom_workers.boot import end_process
events.configure("info", "json")
with events.gathered(lambda write: None):
    events.site_resumed(site="before")
"""


@pytest.mark.parametrize(
    ("end", "status", "last"),
    [
        ("    end_process('lane', RuntimeError('no'))", 70, "engine.failed"),
        ("    raise SystemExit(3)", 3, "site.resumed"),
        ("    pass", 0, "site.resumed"),
    ],
)
def test_what_waits_is_written_however_a_process_ends_itself(
    end: str, status: int, last: str
) -> None:
    done = process(SETTING + end, subprocess.PIPE)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, lines[0]["site"], lines[-1]["event"]) == (status, "before", last)


def test_a_log_that_nobody_reads_any_more_changes_no_exit_status() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = process(SETTING + "    pass", writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
