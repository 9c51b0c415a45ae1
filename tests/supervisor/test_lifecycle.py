"""A real supervisor over scripted children: start, death, silence, drain, stop, reload, orphans.

Past 400 lines: one life from its start to its end, with two helpers that every story uses.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.sockets import eventually

if TYPE_CHECKING:
    from tests.supervisor.conftest import Stage, Supervised


# a supervisor whose number of workers is the configuration's
SERVE = """
import sys
from mailstrom.config import load
from mailstrom.supervisor.run import serve
child = sys.argv[2:]
sys.exit(serve(load(sys.argv[1]), commands={"delivery": child, "janitor": child}))
"""
BROKEN_READER = SERVE.replace("serve(", "serve(reload=broken, config=", 1).replace(
    "child =", "def broken():\n    raise ZeroDivisionError('a bug')\nchild ="
)


def ready(supervised: Supervised) -> None:
    supervised.wait("supervisor.ready")


def pid_of(supervised: Supervised, kind: str, count: int = 1) -> int:
    """Process id of the ``count``-th child of this kind that was started."""
    return int(supervised.wait("worker.started", kind=kind, count=count)[count - 1]["pid"])


def _gone(pid: int) -> bool:
    """Whether a process has ended and its parent knows."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_every_child_is_told_who_it_is_and_ready_comes_when_all_are(stage: Stage) -> None:
    supervised = stage.start(workers=3)
    ready(supervised)
    hellos = supervised.wait_traced("hello", count=4)

    assert sorted((h["kind"], h["slot"]) for h in hellos) == [
        ("delivery", 0),
        ("delivery", 1),
        ("delivery", 2),
        ("janitor", 0),
    ]
    for hello in hellos:
        assert hello["supervisor_pid"] == hello["parent"] == supervised.pid
        assert hello["store"] == hello["config"]["store"] == str(stage.store)
        assert hello["config"]["hostname"] == "mx.example.org"
        assert hello["restarts"] == 0
        assert hello["cwd"] == "/"
    assert supervised.lines("supervisor.ready")[0]["workers"] == 3


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_child_has_its_three_streams_its_status_pipe_and_nothing_else_of_ours(
    stage: Stage,
) -> None:
    supervised = stage.start(workers=2)
    for hello in supervised.wait_traced("hello", count=3):
        # The listing itself and the child's selector are the only descriptors beyond those.
        inherited = set(hello["descriptors"]) - {0, 1, 2, hello["status_fd"]}
        assert len(inherited) <= 2


def test_a_terminals_signals_are_blocked_before_a_child_can_ignore_them(stage: Stage) -> None:
    supervised = stage.start()
    for hello in supervised.wait_traced("hello", count=2):
        assert set(hello["blocked"]) == {signal.SIGINT, signal.SIGHUP}


def test_term_drains_deliveries_then_the_janitor_and_exits_0(stage: Stage) -> None:
    supervised = stage.start(workers=2)
    ready(supervised)
    supervised.signal(signal.SIGTERM)

    assert supervised.wait_exit() == 0
    assert [note["kind"] for note in supervised.traced("drain")] == [
        "delivery",
        "delivery",
        "janitor",
    ]
    assert [line["signal"] for line in supervised.lines("supervisor.draining")] == ["SIGTERM"]
    (stopped,) = supervised.lines("supervisor.stopped")
    assert (stopped["exit_code"], stopped["lost"]) == (0, 0)
    assert not supervised.lines("worker.lost")


def test_a_terminals_interrupt_reaches_the_whole_group_and_still_only_drains(
    stage: Stage,
) -> None:
    supervised = stage.start(workers=2)
    ready(supervised)
    os.killpg(supervised.pid, signal.SIGINT)

    assert supervised.wait_exit() == 0
    assert len(supervised.traced("drain")) == 3
    assert not supervised.lines("worker.lost")


def test_a_killed_worker_is_named_lapsed_and_started_again(stage: Stage) -> None:
    supervised = stage.start(workers=2)
    ready(supervised)
    victim = pid_of(supervised, "delivery")
    os.kill(victim, signal.SIGKILL)

    lost = supervised.wait("worker.lost")[0]
    assert (lost["pid"], lost["kind"], lost["cause"]) == (victim, "delivery", "signal 9 (SIGKILL)")
    assert supervised.wait_traced("lapse")[0]["dead"] == victim
    again = supervised.wait("worker.started", slot=lost["slot"], kind="delivery", count=2)[1]
    assert again["restarts"] == 1
    assert supervised.wait_traced("hello", pid=again["pid"])[0]["restarts"] == 1
    assert len(supervised.lines("supervisor.ready")) == 1


def test_a_killed_janitor_is_started_again(stage: Stage) -> None:
    supervised = stage.start()
    ready(supervised)
    os.kill(pid_of(supervised, "janitor"), signal.SIGKILL)

    pid_of(supervised, "janitor", count=2)
    assert supervised.lines("worker.lost")[0]["kind"] == "janitor"
    assert not supervised.traced("lapse")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_deaths_leave_neither_zombies_nor_descriptors(stage: Stage) -> None:
    supervised = stage.start()
    ready(supervised)
    descriptors = len(os.listdir(f"/proc/{supervised.pid}/fd"))
    for count in range(1, 5):
        os.kill(pid_of(supervised, "delivery", count), signal.SIGKILL)
        fresh = pid_of(supervised, "delivery", count + 1)
        supervised.wait_traced("hello", pid=fresh)

    children = Path(f"/proc/{supervised.pid}/task/{supervised.pid}/children").read_text().split()
    assert sorted(map(int, children)) == sorted(
        [pid_of(supervised, "janitor"), pid_of(supervised, "delivery", 5)]
    )
    # each look at its surroundings opens something for a moment; four deaths would leave four
    eventually(
        lambda: len(os.listdir(f"/proc/{supervised.pid}/fd")) <= descriptors,
        what=f"{descriptors} descriptors again",
    )


def test_a_child_that_dies_at_once_is_started_with_growing_delays(stage: Stage) -> None:
    stage.write_config(backoff='["40ms", "80ms"]')
    supervised = stage.start(delivery="dies")
    delays = [ln["delay_s"] for ln in supervised.wait("worker.restarting", count=5)]

    # The first is at once, if the gap between two starts allows; the last entry repeats.
    assert delays[0] <= 0.02
    assert delays[1:] == sorted(delays[1:])
    assert min(delays[2:]) >= 0.08
    assert {ln["cause"] for ln in supervised.lines("worker.lost")} == {"exit 3"}
    assert not supervised.lines("supervisor.ready")


def test_ready_is_said_once_the_last_child_recovers(stage: Stage) -> None:
    supervised = stage.start(delivery="dies-once", workers=2)
    ready(supervised)

    assert len(supervised.lines("worker.lost")) == 2


def test_a_command_that_cannot_start_is_a_loss_and_tried_again(stage: Stage) -> None:
    supervised = stage.start(delivery="/no-such-program")
    lost = supervised.wait("worker.lost", count=2)

    assert "/no-such-program" in lost[0]["cause"]
    assert not supervised.traced("lapse")
    supervised.signal(signal.SIGTERM)
    assert supervised.wait_exit() == 0


def test_a_silent_child_is_killed_by_the_watchdog_and_replaced(stage: Stage) -> None:
    stage.write_config(watchdog="5s")
    supervised = stage.start(delivery="silent")
    killed = supervised.wait("watchdog.killed", kind="delivery")[0]

    assert killed["pid"] == pid_of(supervised, "delivery")
    assert killed["silent_s"] > 5
    lost = supervised.wait("worker.lost", kind="delivery")[0]
    assert lost["pid"] == killed["pid"]
    assert lost["cause"].startswith("signal 9 (SIGKILL): no heartbeat")
    assert supervised.wait_traced("lapse")[0]["dead"] == killed["pid"]
    pid_of(supervised, "delivery", count=2)
    assert {line["kind"] for line in supervised.lines("watchdog.killed")} == {"delivery"}


def test_a_stopped_child_is_killed_by_the_watchdog(stage: Stage) -> None:
    stage.write_config(watchdog="5s")
    supervised = stage.start()
    ready(supervised)
    victim = pid_of(supervised, "delivery")
    os.kill(victim, signal.SIGSTOP)

    supervised.wait("watchdog.killed", pid=victim)
    supervised.wait("worker.lost", pid=victim)


def test_a_child_that_never_gets_ready_is_killed(stage: Stage) -> None:
    supervised = stage.start(delivery="mute", ready_s=0.3)

    assert "not ready" in supervised.wait("worker.lost", kind="delivery")[0]["cause"]
    assert not supervised.lines("supervisor.ready")


def test_a_child_that_breaks_the_protocol_is_killed_and_the_log_says_why(stage: Stage) -> None:
    supervised = stage.start(delivery="nonsense")

    assert "unknown report" in supervised.wait("worker.lost")[0]["cause"]


def test_a_machine_that_stood_still_costs_no_child_its_life(stage: Stage) -> None:
    supervised = stage.start(workers=2)
    ready(supervised)
    pids = [pid_of(supervised, "delivery", count) for count in (1, 2)]
    for pid in (*pids, supervised.pid):
        os.kill(pid, signal.SIGSTOP)
    stage.pass_time()
    # The parent wakes first and finds its children silent for longer than it allows; the second
    # HUP is obeyed a turn of its loop later.
    os.kill(supervised.pid, signal.SIGCONT)
    for count in (1, 2):
        supervised.signal(signal.SIGHUP)
        supervised.wait("config.reloaded", count=count)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    supervised.wait_traced("reload", count=6)
    supervised.signal(signal.SIGTERM)

    assert supervised.wait_exit() == 0
    assert not supervised.lines("watchdog.killed")
    assert not supervised.lines("worker.lost")


def test_a_child_that_ignores_the_drain_is_killed_after_the_timeout(stage: Stage) -> None:
    supervised = stage.start(delivery="stubborn")
    ready(supervised)
    supervised.signal(signal.SIGTERM)
    supervised.wait("supervisor.draining")
    stage.pass_time()

    assert supervised.wait_exit() == 1, "it did not drain whole"
    (stopped,) = supervised.lines("supervisor.stopped")
    assert (stopped["exit_code"], stopped["lost"]) == (1, 1)
    lost = supervised.lines("worker.lost")
    assert [line["kind"] for line in lost] == ["delivery"]
    assert "draining timeout" in lost[0]["cause"]
    # The janitor still heard of the death before its own end.
    notes = [note["saw"] for note in map(json.loads, stage.trace.read_text().splitlines())
             if note.get("kind") == "janitor"]  # fmt: skip
    assert notes == ["hello", "lapse", "drain"]


def test_a_janitor_that_ignores_the_drain_is_killed_too(stage: Stage) -> None:
    supervised = stage.start(janitor="stubborn")
    ready(supervised)
    supervised.signal(signal.SIGTERM)
    supervised.wait_traced("drain", kind="janitor")
    stage.pass_time()

    assert supervised.wait_exit() == 1, "it did not drain whole"
    (stopped,) = supervised.lines("supervisor.stopped")
    assert (stopped["exit_code"], stopped["lost"]) == (1, 1)
    assert [line["kind"] for line in supervised.lines("worker.lost")] == ["janitor"]


def test_a_second_term_stops_at_once_with_exit_1(stage: Stage) -> None:
    supervised = stage.start(delivery="stubborn", workers=2)
    ready(supervised)
    janitor = pid_of(supervised, "janitor")
    supervised.signal(signal.SIGTERM)
    supervised.wait("supervisor.draining")
    supervised.signal(signal.SIGINT)
    supervised.wait_traced("stop", kind="janitor")
    eventually(lambda: _gone(janitor), what="the janitor's end")
    stage.pass_time()

    assert supervised.wait_exit() == 1
    assert supervised.lines("supervisor.stopped")[0]["exit_code"] == 1
    # an end that was asked for is no loss, also where it took force
    assert not supervised.lines("worker.lost")
    stopped = supervised.lines("worker.stopped")
    assert [line["kind"] for line in stopped] == ["delivery", "delivery"]
    assert all("stopping timeout" in line["cause"] for line in stopped)


def test_one_end_said_twice_at_once_is_one_end(stage: Stage) -> None:
    # timeout(1) signals its child and then the whole group
    supervised = stage.start(workers=2, same_s=3600)
    ready(supervised)
    supervised.signal(signal.SIGTERM)
    os.killpg(supervised.pid, signal.SIGINT)
    supervised.wait("supervisor.draining")
    os.killpg(supervised.pid, signal.SIGINT)

    assert supervised.wait_exit() == 0
    assert len(supervised.traced("drain")) == 3
    assert not supervised.traced("stop")


def test_a_second_term_ends_a_stubborn_janitor_too(stage: Stage) -> None:
    supervised = stage.start(janitor="stubborn")
    ready(supervised)
    supervised.signal(signal.SIGTERM)
    supervised.wait_traced("drain", kind="delivery")
    supervised.signal(signal.SIGTERM)
    supervised.wait_traced("stop", kind="janitor")
    stage.pass_time()

    assert supervised.wait_exit() == 1


def test_a_third_term_does_not_wait_for_anything(stage: Stage) -> None:
    supervised = stage.start(delivery="stubborn")
    ready(supervised)
    supervised.signal(signal.SIGTERM)
    supervised.wait("supervisor.draining")
    supervised.signal(signal.SIGTERM)
    supervised.wait_traced("stop", kind="janitor")
    supervised.signal(signal.SIGTERM)

    assert supervised.wait_exit() == 1


def test_a_child_that_dies_while_draining_is_not_started_again(stage: Stage) -> None:
    supervised = stage.start(delivery="stubborn")
    ready(supervised)
    supervised.signal(signal.SIGTERM)
    supervised.wait("supervisor.draining")
    os.kill(pid_of(supervised, "delivery"), signal.SIGKILL)

    assert supervised.wait_exit() == 1, "it did not drain whole"
    (stopped,) = supervised.lines("supervisor.stopped")
    assert (stopped["exit_code"], stopped["lost"]) == (1, 1)
    assert len(supervised.lines("worker.lost")) == 1
    assert not supervised.lines("worker.restarting")


def test_a_planned_restart_is_forgotten_by_the_drain(stage: Stage) -> None:
    stage.write_config(backoff='["10m"]')
    supervised = stage.start(delivery="dies", janitor="stubborn")
    supervised.wait_traced("hello", kind="janitor")
    supervised.wait("worker.restarting", count=2)
    supervised.signal(signal.SIGTERM)
    supervised.wait_traced("drain", kind="janitor")
    started = len(supervised.lines("worker.started"))

    # The janitor holds the drain open until the moment of the planned start, which comes first.
    stage.pass_time()
    assert supervised.wait_exit() == 1, "the janitor had to be killed"
    assert len(supervised.lines("worker.started")) == started


def test_term_before_anyone_is_ready_ends_too(stage: Stage) -> None:
    supervised = stage.start(delivery="mute")
    supervised.wait_traced("hello", kind="delivery")
    supervised.signal(signal.SIGTERM)

    assert supervised.wait_exit() == 0


def test_a_killed_supervisors_children_see_the_end_and_end(stage: Stage) -> None:
    supervised = stage.start(workers=2)
    ready(supervised)
    supervised.signal(signal.SIGKILL)

    assert supervised.wait_exit() == -signal.SIGKILL  # waits for the orphans as well
    assert len(supervised.traced("eof")) == 3
    assert not supervised.traced("drain")


def test_after_a_killed_supervisor_the_next_one_starts(stage: Stage) -> None:
    first = stage.start()
    ready(first)
    first.signal(signal.SIGKILL)
    first.wait_exit()

    ready(stage.start())


def test_a_second_supervisor_is_refused_and_told_of_the_first(stage: Stage) -> None:
    first = stage.start()
    ready(first)
    second = stage.start()

    assert second.wait_exit() == 75
    assert f"pid {first.pid} on host {socket.gethostname()}" in second.stderr
    assert not second.lines("worker.started")
    assert first.process.poll() is None


def test_hup_sends_a_good_configuration_to_every_child(stage: Stage) -> None:
    supervised = stage.start(workers=2)
    ready(supervised)
    stage.write_config(drain_timeout="7s")
    supervised.signal(signal.SIGHUP)
    reloads = supervised.wait_traced("reload", count=3)

    supervised.wait("config.reloaded")
    assert {note["config"]["delivery"]["drain_timeout"] for note in reloads} == {7.0}
    os.kill(pid_of(supervised, "delivery"), signal.SIGKILL)
    fresh = pid_of(supervised, "delivery", count=3)
    hello = supervised.wait_traced("hello", pid=fresh)[0]
    assert hello["config"]["delivery"]["drain_timeout"] == 7.0


def test_hup_with_a_bad_configuration_changes_nothing(stage: Stage) -> None:
    supervised = stage.start()
    ready(supervised)
    stage.config.write_text("[delivery]\nworkerz = 3\n")
    supervised.signal(signal.SIGHUP)

    assert "workerz" in supervised.wait("config.rejected")[0]["error"]
    stage.config.unlink()
    supervised.signal(signal.SIGHUP)
    supervised.wait("config.rejected", count=2)
    assert not supervised.traced("reload")
    os.kill(pid_of(supervised, "delivery"), signal.SIGKILL)
    fresh = pid_of(supervised, "delivery", count=2)
    hello = supervised.wait_traced("hello", pid=fresh)[0]
    assert hello["config"]["hostname"] == "mx.example.org"


def test_several_errors_of_a_file_stand_in_one_readable_line(stage: Stage) -> None:
    supervised = stage.start()
    ready(supervised)
    text = stage.config.read_text()
    stage.config.write_text(f'{text}[listener]\nbind = ["x:1", "y:2"]\n')
    supervised.signal(signal.SIGHUP)
    error = supervised.wait("config.rejected")[0]["error"]
    assert "x0a" not in error
    first, second = error.split("; [listener] bind: ")
    assert first.startswith(f"{stage.config}: [listener] bind: ")
    assert "x:1" in first
    assert "y:2" in second


def test_a_reload_never_moves_to_another_spool(stage: Stage) -> None:
    supervised = stage.start()
    ready(supervised)
    text = stage.config.read_text()
    other = stage.folder / "other.db"
    for number, wanted in enumerate((str(other), "memory:", "sqlite:///"), 1):
        stage.config.write_text(text.replace(str(stage.store), wanted))
        supervised.signal(signal.SIGHUP)
        error = supervised.wait("config.rejected", count=number)[-1]["error"]
        assert str(stage.config) in error
        if wanted == str(other):
            assert f"store is {other}, and this engine serves {stage.store}: restart it" in error
    assert not supervised.traced("reload")

    linked = stage.folder / "linked.db"  # another name of the same spool
    linked.symlink_to(stage.store)
    stage.config.write_text(text.replace(str(stage.store), str(linked)))
    supervised.signal(signal.SIGHUP)
    assert supervised.wait_traced("reload")[0]["config"]["store"] == str(stage.store)


def test_what_needs_a_restart_may_be_written_and_taken_out_again(stage: Stage) -> None:
    supervised = stage.start()
    ready(supervised)
    whole = stage.config.read_text()
    stage.config.write_text(whole + "[listener]\nimplicit_tls = true\n")
    supervised.signal(signal.SIGHUP)
    assert supervised.wait("config.reloaded")[0]["restart_needed"] == ["listener.implicit_tls"]
    stage.config.write_text(whole)
    supervised.signal(signal.SIGHUP)
    assert "restart_needed" not in supervised.wait("config.reloaded", count=2)[1]


CUT_OFF = {
    "empty": ("", "is empty"),
    "a comment": ("# Mailstrom\n", "is empty"),
    "no store": ("[sites]\nconnections = 3\n", "no longer says hostname, store"),
    "nested": ("x = " + "[" * 5_000 + "]" * 5_000, "nested too deeply"),
    "digits": ("x = " + "9" * 5_000, "digits"),
    "nul": ("\0" * 100, "not TOML"),
}


def test_hup_survives_whatever_the_file_holds_and_says_why_it_stays(stage: Stage) -> None:
    supervised = stage.start()
    ready(supervised)
    whole = stage.config.read_text()
    for number, (text, words) in enumerate(CUT_OFF.values(), 1):
        stage.config.write_text(text)
        supervised.signal(signal.SIGHUP)
        assert words in supervised.wait("config.rejected", count=number)[-1]["error"]
    stage.config.write_text(whole)
    supervised.signal(signal.SIGHUP)
    supervised.wait("config.reloaded")
    assert len(supervised.wait_traced("reload", count=2)) == 2


def test_hup_survives_what_nobody_thought_of(stage: Stage) -> None:
    supervised = stage.run(
        [sys.executable, "-P", "-c", BROKEN_READER, str(stage.config), *stage.fakechild("well")],
        cwd=stage.folder,
    )
    ready(supervised)
    supervised.signal(signal.SIGHUP)
    assert supervised.wait("config.rejected")[0]["error"] == "ZeroDivisionError: a bug"
    supervised.signal(signal.SIGHUP)
    supervised.wait("config.rejected", count=2)
    assert not supervised.traced("reload")


def test_hup_names_what_only_a_restart_can_change(stage: Stage) -> None:
    supervised = stage.run(
        [sys.executable, "-P", "-c", SERVE, str(stage.config), *stage.fakechild("well")],
        cwd=stage.folder,
    )
    ready(supervised)
    text = stage.config.read_text()
    stage.config.write_text(text.replace("[delivery]", "[delivery]\nworkers = 3"))
    supervised.signal(signal.SIGHUP)
    assert supervised.wait("config.reloaded")[0]["restart_needed"] == ["delivery.workers"]
    # and still so when nothing changed since
    supervised.signal(signal.SIGHUP)
    assert supervised.wait("config.reloaded", count=2)[1]["restart_needed"] == ["delivery.workers"]
    stage.config.write_text(text)
    supervised.signal(signal.SIGHUP)
    assert "restart_needed" not in supervised.wait("config.reloaded", count=3)[2]


def test_a_number_of_workers_on_the_command_line_needs_no_restart(stage: Stage) -> None:
    supervised = stage.start(workers=2)
    ready(supervised)
    text = stage.config.read_text()
    stage.config.write_text(text.replace("[delivery]", "[delivery]\nworkers = 3"))
    supervised.signal(signal.SIGHUP)
    assert "restart_needed" not in supervised.wait("config.reloaded")[0]
    assert supervised.wait_traced("reload")[0]["config"]["delivery"]["workers"] == 2
