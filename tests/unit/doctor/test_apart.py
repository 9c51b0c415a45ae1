"""What may hang is asked in a process of its own, which nobody has to wait for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest

from mailstrom import Mailstrom
from mailstrom.doctor import examination
from mailstrom.doctor.apart import apart
from tests.support.dead_disk import dead_disk, possible
from tests.support.engine import environment

DEADLINE_S = 60


def for_ever() -> NoReturn:
    while True:
        signal.pause()


def test_an_answer_comes_back_and_its_asker_is_gone() -> None:
    pid = int(apart(lambda: b"%d" % os.getpid(), DEADLINE_S) or b"0")
    assert pid not in (0, os.getpid())
    assert apart(lambda: b"x" * 1_000_000, DEADLINE_S) == b"x" * 1_000_000
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # not of any child: tests before this one may have left some


def test_one_that_dies_says_nothing_and_one_that_hangs_is_left(tmp_path: Path) -> None:
    def die() -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        return b"never"

    assert apart(die, DEADLINE_S) == b""
    note = tmp_path / "note"

    def hang() -> NoReturn:
        streams = [os.readlink(f"/proc/self/fd/{number}") for number in (0, 1, 2)]
        note.write_text(" ".join([str(os.getpid()), *streams]))
        for_ever()

    assert apart(hang, 3.0) is None
    pid, *streams = note.read_text().split()
    assert streams == ["/dev/null"] * 3, "who reads our output would wait for it"
    assert not Path(f"/proc/{pid}").exists()


def told(store: Path) -> str:
    found = examination.examined(str(store), None, with_network=False).findings
    assert (found[0].check, found[0].level) == ("spool.busy", "problem")
    return found[0].found


def test_a_look_that_fails_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise ZeroDivisionError("of a store of others")

    monkeypatch.setattr(examination, "examine", fail)
    assert "ZeroDivisionError: of a store of others" in told(tmp_path / "s.db")
    monkeypatch.setattr(examination, "examine", lambda *_, **__: os.kill(os.getpid(), 9))
    assert "died" in told(tmp_path / "s.db")


def test_a_disk_that_does_not_answer_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "SPOOL_S", 0.5)
    monkeypatch.setattr(examination, "examine", lambda *_, **__: for_ever())
    assert "does not answer" in told(tmp_path / "s.db")


_DEAD_DISK = """
import os, signal, sys
from mailstrom.doctor import examination
from mailstrom.cli import main
real = os.stat
def stat(path, *rest, **options):
    if str(path) == sys.argv[-1]:
        while True:
            signal.pause()
    return real(path, *rest, **options)
os.stat = stat
examination.SPOOL_S = 1.0
sys.exit(main())
"""


def test_the_command_ends_though_the_spools_disk_is_dead(tmp_path: Path) -> None:
    store = tmp_path / "spool.db"
    Mailstrom(store).close()
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-P", "-c", _DEAD_DISK, "doctor", "--no-network", "--store", str(store)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 75, done.stderr
    assert "PROBLEM  spool.busy" in done.stdout
    assert time.monotonic() - began < DEADLINE_S


_IMPATIENT = """
import sys
from mailstrom.doctor import examination
from mailstrom.cli import main
examination.SPOOL_S = 2.0
sys.exit(main())
"""


@pytest.mark.skipif(not possible(), reason="mounts a file system by FUSE")
def test_the_command_ends_beside_a_file_system_that_is_really_dead(tmp_path: Path) -> None:
    with dead_disk(tmp_path):
        asked = ["doctor", "--no-network", "--store", f"{tmp_path}/spool.db"]
        done = subprocess.run(
            [sys.executable, "-P", "-c", _IMPATIENT, *asked],
            env=environment(),
            cwd="/",
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
    assert done.returncode == 75, done.stderr
    assert "did not end within 2 s" in " ".join(done.stdout.split())
