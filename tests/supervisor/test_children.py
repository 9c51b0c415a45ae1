"""One child and its slot: causes in words, planned starts, pipes that leak nothing."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.control import Drain, Reload
from mailstrom.supervisor.children import (
    Child,
    Slot,
    child_environment,
    exit_cause,
    spawn,
)

WATCHDOG = {"watchdog_s": 10.0, "ready_s": 60.0}


@pytest.mark.parametrize(
    ("returncode", "cause"),
    [
        (0, "exit 0"),
        (1, "exit 1"),
        (78, "exit 78"),
        (-9, "signal 9 (SIGKILL)"),
        (-11, "signal 11 (SIGSEGV)"),
        (-63, "signal 63"),
    ],
)
def test_a_cause_says_exit_or_signal(returncode: int, cause: str) -> None:
    assert exit_cause(returncode) == cause


def slot(started_s: float | None = None) -> Slot:
    return Slot(kind="delivery", number=0, start_s=None, started_s=started_s)


def test_the_first_restart_is_at_once_the_next_follow_the_schedule() -> None:
    place = slot(started_s=0.0)
    delays = [
        place.lost(now_s, (1.0, 5.0), window_s=600.0, gap_s=1.0) for now_s in (50, 60, 70, 80)
    ]

    assert delays == [0.0, 1.0, 5.0, 5.0]
    assert place.start_s == 85.0


def test_a_child_that_dies_at_its_start_waits_for_the_gap() -> None:
    place = slot(started_s=100.0)

    assert place.lost(100.25, (), window_s=600.0, gap_s=1.0) == pytest.approx(0.75)


def test_old_deaths_are_forgotten() -> None:
    place = slot(started_s=0.0)
    for now_s in (10, 20, 30):
        place.lost(now_s, (5.0,), window_s=60.0, gap_s=1.0)

    assert place.lost(200.0, (5.0,), window_s=60.0, gap_s=1.0) == 0.0
    assert list(place.exits_s) == [200.0]


@given(
    st.lists(st.floats(0.0, 5.0), min_size=1, max_size=60),
    st.lists(st.floats(0.0, 10.0), max_size=5),
)
def test_no_slot_ever_starts_twice_within_the_gap(
    lives_s: list[float], schedule: list[float]
) -> None:
    place = slot(started_s=0.0)
    for life_s in lives_s:
        assert place.started_s is not None
        died_s = place.started_s + life_s
        place.lost(died_s, schedule, window_s=600.0, gap_s=1.0)
        assert place.start_s is not None
        assert place.start_s >= max(died_s, place.started_s + 1.0)
        place.started_s = place.start_s


def test_a_relative_import_path_holds_in_the_childs_folder() -> None:
    environ = {"PYTHONPATH": os.pathsep.join([".", "workers", "", "/opt/lib"]), "HOME": "/root"}

    assert child_environment(environ, "/src") == {
        "PYTHONPATH": os.pathsep.join(["/src/.", "/src/workers", "/opt/lib"]),
        "HOME": "/root",
    }
    assert child_environment({"PYTHONPATH": ""}, "/src") == {}
    gone = child_environment({"PYTHONPATH": "lib:/src"}, "")
    assert gone == {"PYTHONPATH": "/src"}, "what was relative to a folder that is gone is nowhere"


def start(code: str, config: dict[str, object] | None = None) -> Child:
    return spawn(
        [sys.executable, "-I", "-c", code],
        slot=slot(),
        store="/spool.db",
        config=config or {},
        environment=dict(os.environ),
        now_s=100.0,
    )


def ended(child: Child) -> str:
    child.process.wait(30)
    cause = child.reap()
    assert cause is not None
    return cause


def test_silence_counts_from_the_last_word_and_before_ready_from_the_start() -> None:
    child = start("import sys; sys.stdin.read()")
    try:
        assert child.overdue(160.0, **WATCHDOG) is None
        assert child.overdue(160.1, **WATCHDOG) == "not ready after 60.1 s"
        child.ready = True
        assert child.overdue(110.0, **WATCHDOG) is None
        assert child.overdue(110.2, **WATCHDOG) == "no heartbeat for 10.2 s"
    finally:
        child.kill("the test is over")
        assert ended(child) == "signal 9 (SIGKILL)"
    assert child.killed == "the test is over"


def test_sending_to_the_dead_is_no_error() -> None:
    child = start("import os; os.close(0)")
    child.process.wait(30)
    child.send(Drain())

    assert child.unsent == b""
    assert ended(child) == "exit 0"


def test_a_child_that_never_reads_is_killed_before_its_backlog_fills_memory() -> None:
    child = start("import signal; signal.pause()")
    for _ in range(10):
        child.send(Reload(config={"key": "x" * 1_000_000}))
        assert len(child.unsent) < 6_000_000

    assert ended(child) == "signal 9 (SIGKILL)"
    assert child.killed == "does not read its control pipe"


def test_a_hello_larger_than_a_pipe_arrives_whole() -> None:
    code = (
        "import sys, json\n"
        "hello = json.loads(sys.stdin.readline())['hello']\n"
        "sys.exit(len(hello['config']['k']) // 10_000)\n"
    )
    child = start(code, {"k": "x" * 500_000})
    assert child.unsent
    while child.process.poll() is None:
        child.flush()

    assert ended(child) == "exit 50"


def open_descriptors() -> int:
    gc.collect()  # what earlier tests left to the collector
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_neither_a_life_nor_a_failed_start_leaves_a_descriptor_open() -> None:
    before = open_descriptors()
    ended(start("pass"))
    with pytest.raises(OSError, match="no-such-program"):
        spawn(
            ["/no-such-program"],
            slot=slot(),
            store="/spool.db",
            config={},
            environment={},
            now_s=0.0,
        )

    assert open_descriptors() <= before
