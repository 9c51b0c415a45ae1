"""The turn in front of the write lock: in order, never for long, and never in anybody's way.

Two objects of one process are as good as two processes: the lock is of the open description.
Past 400 lines: the order, each way in which the turn fails, and its users are judged together.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from mailstrom.errors import IdempotencyConflict, SpoolBusy
from mailstrom.storage.sqlite import inserting, turnstile
from mailstrom.storage.sqlite.checkpointer import LITTLE_FRAMES, WAIT_MS, Checkpointer
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.connection import connect
from mailstrom.storage.sqlite.memory import MemoryPlace, opened
from mailstrom.storage.sqlite.place import FilePlace
from mailstrom.storage.sqlite.turnstile import Turnstile, at_once, part, turn_of, turn_path
from tests.storage.files import SQLiteStores
from tests.storage.spool import T0, Spool, submission
from tests.support.sockets import eventually

pytestmark = pytest.mark.skipif(not turnstile._EXCLUSIVE, reason="a system without epoll")

HOLD = """
import sys
from mailstrom.storage.sqlite.turnstile import Turnstile

Turnstile(sys.argv[1])(lambda: (print("mine", flush=True), sys.stdin.read()))
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where a spool could be."""
    found = str(tmp_path / "spool.db")
    os.mkdir(f"{found}-run")
    return found


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a ring wakes a sleeper."""
    for name in ("LONGEST_S", "STILL_S", "STARVED_S", "_FIRST_S", "_LOOK_S"):
        monkeypatch.setattr(turnstile, name, 60.0)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who finds that the turn is taken, and stays so, does not wait; nobody is starved."""
    monkeypatch.setattr(turnstile, "STILL_S", 0.0)
    monkeypatch.setattr(turnstile, "_FIRST_S", 0.0)
    monkeypatch.setattr(turnstile, "_LOOK_S", 0.0)
    monkeypatch.setattr(turnstile, "STARVED_S", 60.0)


@pytest.fixture
def held(path: str) -> Iterator[subprocess.Popen[str]]:
    """A process in the midst of its step."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-P", "-c", HOLD, path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "mine\n"
        yield process
        process.kill()


def free(path: str) -> bool:
    """Whether nobody has the turn."""
    fd = os.open(turn_path(path), os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def asleep(turn: Turnstile) -> bool:
    poll = turn._poll
    if poll is None:
        return False
    return "tfd:" in Path(f"/proc/self/fdinfo/{poll.fileno()}").read_text()


def in_threads(turns: list[Turnstile], step: Callable[[int], None]) -> list[threading.Thread]:
    """Each one's step, begun when the one before sleeps."""
    threads = []
    for number, turn in enumerate(turns):
        threads.append(threading.Thread(target=turn, args=(step, number)))
        threads[-1].start()
        eventually(lambda turn=turn: asleep(turn))
    return threads


def test_sleepers_go_in_the_order_in_which_they_came(path: str, patient: None) -> None:
    turns, order = [Turnstile(path) for _ in range(5)], list[int]()
    holder = Turnstile(path)
    holder._rings = 1
    threads = holder(in_threads, turns, order.append)
    for thread in threads:
        thread.join(30)
    assert order == [0, 1, 2, 3, 4]
    assert free(path)


def test_one_step_at_a_time(path: str, patient: None) -> None:
    inside, most = list[int](), list[int]()

    def step(number: int) -> None:
        inside.append(number)
        most.append(len(inside))
        inside.remove(number)

    def many(number: int) -> None:
        turn = Turnstile(path)
        turn._rings = 10_000  # each knows of the others
        for _ in range(50):
            turn(step, number)

    threads = [threading.Thread(target=many, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert max(most) == 1
    assert len(most) == 300


def test_what_a_step_returns_and_raises_comes_out(path: str) -> None:
    turn = Turnstile(path)
    assert turn(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        turn(divmod, 7, 0)
    assert free(path)


def test_the_turn_of_a_killed_process_is_free(
    path: str, held: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turnstile, "LONGEST_S", 60.0)
    monkeypatch.setattr(turnstile, "STILL_S", 60.0)
    monkeypatch.setattr(turnstile, "STARVED_S", 60.0)
    turn, seen = Turnstile(path), list[bool]()
    thread = threading.Thread(target=turn, args=(lambda: seen.append(free(path)),))
    thread.start()
    eventually(lambda: asleep(turn))
    held.kill()  # it rings nobody
    thread.join(30)
    assert seen == [False]  # it was ours


def test_a_stopped_holder_is_waited_for_once(
    path: str, held: subprocess.Popen[str], hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.kill(held.pid, signal.SIGSTOP)
    turn, waits = Turnstile(path), list[float]()
    waited = Turnstile._waited

    def counted(self: Turnstile) -> bool:
        waits.append(self._aside_s)
        return waited(self)

    monkeypatch.setattr(Turnstile, "_waited", counted)
    assert turn(free, path) is False  # the step is taken beside it
    assert [turn(int) for _ in range(3)] == [0, 0, 0]
    assert len(waits) == 1
    for _ in range(7):
        turn._aside_until_s = 1e-9  # that time is over
        turn(int)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 32.0, 32.0]
    os.kill(held.pid, signal.SIGCONT)
    held.kill()
    held.wait()
    turn._aside_until_s = 1e-9
    assert turn(free, path) is False  # ours
    assert turn._aside_s == turnstile.ASIDE_S


def test_a_ring_is_seen_by_others(path: str, patient: None) -> None:
    turn, other = Turnstile(path), Turnstile(path)
    turn(int)
    os.utime(turn_path(path), (0, 0))
    assert other(other._rung_ns) == 0
    turn._rings = 1
    turn(int)
    assert other(other._rung_ns) > 0


def test_who_left_early_rings_once(path: str, patient: None) -> None:
    turn = Turnstile(path)
    turn(turn.leave)
    os.utime(turn_path(path), (0, 0))
    turn(int)
    assert turn._rung_ns() == 0, "nobody was met, so nobody is woken"


def test_while_others_move_they_are_waited_for(
    path: str, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, other, moves = Turnstile(path), Turnstile(path), iter([1, 2, 3, 4, 5, 5, 6])
    monkeypatch.setattr(Turnstile, "_rung_ns", lambda self: next(moves))
    assert other(turn, int) == 0
    assert next(moves) == 6  # it looked until one was as the one before
    assert turn._aside_until_s > 0


def test_who_waited_long_in_a_queue_that_moves_queues_again_the_next_time(
    path: str, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turnstile, "LONGEST_S", 0.001)
    turn, moves = Turnstile(path), itertools.count()
    monkeypatch.setattr(Turnstile, "_rung_ns", lambda self: next(moves))
    assert Turnstile(path)(turn, int) == 0
    assert turn(free, path) is False


def test_a_process_that_is_kept_from_running_does_without(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turnstile, "STARVED_S", 0.0)  # no answer comes in so little
    turn = Turnstile(path)
    assert turn(free, path) is True
    assert turn._aside_until_s > 0


def test_a_step_within_a_step_leaves_the_turn_where_it_is(path: str, hasty: None) -> None:
    turn = Turnstile(path)
    assert turn(lambda: (turn(int), free(path))) == (0, False)
    assert free(path)


def test_whatever_a_signal_handler_raises_the_turn_is_free(path: str, hasty: None) -> None:
    """Handlers run where a call has returned, or a function begins; so does what raises here."""
    turn, other = Turnstile(path), Turnstile(path)
    turn(int)
    tried = [_interrupted_everywhere(turn, path)]
    other(lambda: tried.append(_interrupted_everywhere(turn, path, theirs=True)))
    assert tried[0] >= 5
    assert tried[1] >= 15
    turn._aside_until_s = 0.0
    assert turn(free, path) is False


def _interrupted_everywhere(turn: Turnstile, path: str, *, theirs: bool = False) -> int:
    """How many places there are; at each it is interrupted once."""
    number = 0
    while True:
        number += 1
        left = number

        def profile(_: Any, event: str, __: Any) -> None:
            nonlocal left
            if event in ("call", "c_return"):
                left -= 1
                if left == 0:
                    raise TimeoutError  # an OSError

        turn._aside_until_s = 0.0
        turn._rings = 1
        before = signal.signal(signal.SIGUSR2, profile)  # what raises is known as a handler
        try:
            sys.setprofile(profile)
            turn(_nothing)
            sys.setprofile(None)
            assert left > 0, "what was raised did not come out"
            return number
        except TimeoutError:
            pass
        finally:
            sys.setprofile(None)
            signal.signal(signal.SIGUSR2, before)
        assert not turn._used
        assert free(path) is not theirs
        assert turn._poll is None or not asleep(turn)


def test_the_last_who_parts_with_a_turn_closes_it_though_an_error_knows_it(path: str) -> None:
    """As one that an application keeps, with a traceback that leads to the step."""
    first, second = turn_of(path), turn_of(path)
    assert isinstance(first, Turnstile)
    assert first is second
    first(int)
    assert first._fd >= 0
    part(first)
    assert first._fd >= 0
    assert turn_of(path) is first
    part(second)
    part(first)
    assert first._fd < 0
    other = turn_of(path)
    assert other is not first
    part(other)
    part(other)  # nobody has it


def test_a_place_that_is_closed_has_no_turn_open(path: str) -> None:
    place = FilePlace(path)
    prompts = place.again()
    turn = place.turn
    assert isinstance(turn, Turnstile)
    turn(int)
    place.close()
    place.close()
    assert turn._fd >= 0, "the other has it"
    prompts.close()
    assert turn._fd < 0
    assert at_once is place.turn


def _nothing() -> None:
    """A step."""


def test_a_forked_child_has_no_part_in_the_turn(path: str) -> None:
    turn = turn_of(path)

    def fork() -> tuple[int, bool]:
        child = os.fork()
        if child == 0:
            os._exit(0 if isinstance(turn, Turnstile) and turn._fd < 0 else 1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), free(path)

    assert turn(fork) == (0, False)
    assert free(path)


@pytest.mark.parametrize("there", ["nothing", "folder", "file", "no run directory"])
def test_without_a_fifo_the_step_is_taken(path: str, there: str) -> None:
    if there == "folder":
        os.mkdir(turn_path(path))
    elif there == "file":
        Path(turn_path(path)).touch()
    elif there == "no run directory":
        os.rmdir(f"{path}-run")
    turn = Turnstile(path)
    assert [turn(int) for _ in range(3)] == [0, 0, 0]


def test_a_plain_file_in_its_place_keeps_nobody_waiting(path: str, hasty: None) -> None:
    Path(turn_path(path)).touch()
    turn = Turnstile(path)
    assert Turnstile(path)(turn, int) == 0


@pytest.mark.parametrize(("folder", "fifo"), [(0o700, 0o600), (0o2770, 0o660)])
def test_who_may_use_the_spool_may_use_the_turn(path: str, folder: int, fifo: int) -> None:
    os.chmod(f"{path}-run", folder)
    before = os.umask(0o077)
    try:
        Turnstile(path)(int)
    finally:
        os.umask(before)
    assert os.stat(turn_path(path)).st_mode & 0o777 == fifo


def test_descriptors_go_with_the_last_who_needs_them(path: str) -> None:
    first, second = FilePlace(path), FilePlace(path)
    assert first.turn is second.turn
    second.turn(int)
    del second
    first.turn(int)
    assert open_here(turn_path(path)) == 1
    del first
    assert open_here(turn_path(path)) == 0


def test_a_place_that_is_closed_has_no_turn_any_more(path: str) -> None:
    place = FilePlace(path)
    place.turn(int)
    assert open_here(turn_path(path)) == 1
    place.close()
    assert open_here(turn_path(path)) == 0


def open_here(name: str) -> int:
    """How many descriptors of this process are of that file."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            found += os.readlink(f"/proc/self/fd/{number}") == os.path.realpath(name)
    return found


def test_memory_has_one_process_and_no_turn() -> None:
    assert MemoryPlace(opened("memory:")).turn is at_once


def test_a_message_is_stored_in_turn_and_without_it(
    stores: SQLiteStores, spool: Spool, monkeypatch: pytest.MonkeyPatch, hasty: None
) -> None:
    taken = list[bool]()
    step = turnstile.Turnstile.__call__

    def watched(self: Turnstile, *args: Any) -> Any:
        return step(self, lambda: (taken.append(free(stores.path)), args[0](*args[1:]))[1])

    monkeypatch.setattr(Turnstile, "__call__", watched)
    first = spool.send()
    second = Turnstile(stores.path)(spool.send)
    assert taken == [False, False, False]
    assert spool.client.statuses([first, second]).keys() == {first, second}


def test_who_was_refused_or_found_the_lock_taken_takes_no_second_turn(
    stores: SQLiteStores, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a crowd it is half a second, and all that is left to do is to read, or to raise."""
    prompt = SQLiteClientStore(stores.path, busy_ms=20).prompt(os.getpid())
    turns, turn = list[str](), prompt._place.turn

    def counted(step: Any, *args: Any) -> Any:
        turns.append(step.__name__)
        return turn(step, *args)

    monkeypatch.setattr(prompt._place, "turn", counted)
    first, same, other = (
        submission(idempotency=("key", hash)) for hash in (b"x" * 32, b"x" * 32, b"y" * 32)
    )
    assert prompt.store(first, T0) == first.id
    assert prompt.store(same, T0) == first.id
    assert isinstance(prompt.store(other, T0), IdempotencyConflict)
    assert turns == ["_asked"] * 3
    blocker = connect(stores.path)
    blocker.execute("BEGIN IMMEDIATE").fetchall()
    with pytest.raises(SpoolBusy):
        prompt.store(submission(), T0)
    blocker.close()
    assert turns == ["_asked"] * 4
    prompt.end(used=False)


def test_a_client_checkpoints_with_the_turn_left_to_others(
    stores: SQLiteStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores.client()
    turn, seen = turn_of(stores.path), list[bool]()

    class Connection:
        def wal_checkpoint(self, schema: str, mode: int) -> tuple[int, int]:
            seen.append(free(stores.path))
            return 2, 2

    below, above = (Checkpointer(stores.path, frames, own_way) for frames in (3, 2))
    turn(below, Connection(), "main", 2)
    turn(above, Connection(), "main", 2)
    assert seen == [True]


def own_way(connection: apsw.Connection) -> None:
    """A connection's own way of waiting."""
    connection.set_busy_timeout(1_234)


def test_in_a_crowd_a_client_moves_frames_again_when_the_log_has_grown(path: str) -> None:
    seen = list[int]()
    again = list[int]()

    waits = list[int]()

    class Connection:
        def wal_checkpoint(self, schema: str, mode: int) -> tuple[int, int]:
            (seen if mode == apsw.SQLITE_CHECKPOINT_PASSIVE else again).append(at)
            return at, at

        def set_busy_timeout(self, milliseconds: int) -> None:
            waits.append(milliseconds)

    hook = Checkpointer(path, 8, own_way)
    for at in (7, 8, 9, 10, 11, 12, 20, 21, 1, 7, 8):  # at 1 it has begun again
        assert hook(Connection(), "main", at) == apsw.SQLITE_OK  # type: ignore[arg-type]
    assert seen == [8, 10, 12, 20, 8]
    assert again == [10, 12, 20], "with the lock, where it did not begin again by itself"
    assert waits == 3 * [WAIT_MS, 1_234], "the connection's own patience comes back"


def test_a_client_takes_the_lock_for_little_alone(path: str) -> None:
    left = [5_000, 2_000, 900, 700]  # by those who write on meanwhile
    modes = list[int]()

    class Connection:
        def wal_checkpoint(self, schema: str, mode: int) -> tuple[int, int]:
            modes.append(mode)
            return 10_000, 10_000 - left.pop(0)

    hook = Checkpointer(path, 8, own_way)
    hook._from = 9  # it went on growing
    assert hook(Connection(), "main", 10_000) == apsw.SQLITE_OK  # type: ignore[arg-type]
    assert modes == 4 * [apsw.SQLITE_CHECKPOINT_PASSIVE]


def test_a_client_that_a_reader_keeps_from_moving_frames_looks_once_more_and_goes_on(
    stores: SQLiteStores,
) -> None:
    """The rounds are made in the caller's ``send()``."""
    client = stores.client()
    client.enqueue([submission() for _ in range(30)], T0)
    rounds = list[tuple[int, int]]()
    reader, writer = (connect(stores.path, checkpoint_frames=0) for _ in range(2))
    reader.execute("BEGIN").fetchall()
    reader.execute("SELECT count(*) FROM message").fetchall()
    for _ in range(40):
        client.enqueue([submission() for _ in range(50)], T0)

    class Counted:
        def wal_checkpoint(self, schema: str, mode: int) -> tuple[int, int]:
            rounds.append(writer.wal_checkpoint(schema, mode))
            return rounds[-1]

    hook = Checkpointer(stores.path, 8, own_way)
    left = hook._move(Counted(), "main")  # type: ignore[arg-type]
    reader.close()
    writer.close()
    assert left > LITTLE_FRAMES
    assert len(rounds) == 2, "one that moved what the reader had seen, one that moved nothing"


def test_a_lone_message_asks_for_the_lock_until_it_is_free(
    stores: SQLiteStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is stored once, however often it was asked for."""
    prompt = stores.client().prompt(os.getpid())
    asked = _locked_for(stores.path, 3, monkeypatch)
    sent = submission()
    assert prompt.store(sent, T0) == sent.id
    assert asked == ["busy"] * 3 + ["stored"]
    assert list(stores.client().statuses([sent.id])) == [sent.id]
    prompt.end(used=False)


def test_a_lone_message_gives_up_when_its_time_is_over(
    stores: SQLiteStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = SQLiteClientStore(stores.path, busy_ms=1, sync=lambda fd: None)
    prompt, sent = client.prompt(os.getpid()), submission()
    asked = _locked_for(stores.path, 1_000_000, monkeypatch)
    with pytest.raises(SpoolBusy, match="nothing was written"):
        prompt.store(sent, T0)
    assert set(asked) == {"busy"}
    assert stores.client().statuses([sent.id]) == {}
    prompt.end(used=False)
    client.close()


def _locked_for(path: str, asks: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Somebody has the write lock, until it was asked for so often; what came of each."""
    holder, asked, step = apsw.Connection(path), list[str](), inserting.step
    holder.execute("BEGIN IMMEDIATE")

    def counted(*given: Any) -> None:
        if len(asked) == asks:
            holder.execute("ROLLBACK")
            holder.close()
        try:
            step(*given)
        except apsw.BusyError:
            asked.append("busy")
            raise
        asked.append("stored")

    monkeypatch.setattr(inserting, "step", counted)
    return asked
