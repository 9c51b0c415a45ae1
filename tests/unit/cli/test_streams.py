"""Standard streams that are full, closed or left: what was done is told, and once."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from mailstrom import Mailstrom
from mailstrom.cli import streams
from mailstrom.cli.exits import Exit
from mailstrom.errors import SpoolBusy

MAIL = b"From: a@x.test\r\nTo: b@y.test\r\n\r\nhello\r\n"
ACCEPTED = re.compile(
    r"mailstrom: standard output cannot be written \(.+\); the message is accepted as (\S+)\n"
)


@pytest.fixture
def store(tmp_path: Path) -> str:
    path = str(tmp_path / "s.db")
    Mailstrom(path).close()
    return path


def shell(redirections: str, *arguments: str) -> tuple[int, str, str]:
    """The command line as a shell starts it: code, standard output and error."""
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-P", "-m", "mailstrom",
         *arguments],
        input=MAIL.decode(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("json", [(), ("--json",)], ids=["id", "json"])
@pytest.mark.parametrize("redirections", [">/dev/full", ">&-"], ids=["full", "closed"])
def test_an_accepted_message_is_told_where_its_id_cannot_be_printed(
    redirections: str, json: tuple[str, ...], store: str
) -> None:
    code, out, err = shell(redirections, "send", "--store", store, *json)
    said = ACCEPTED.fullmatch(err)
    assert (code, out) == (74, "")
    assert said is not None, err
    with Mailstrom(store) as ms:
        assert ms.query("select id from messages") == [(said[1],)]


@pytest.mark.parametrize("redirections", [">/dev/full 2>/dev/full", "<&- >&- 2>&-"])
def test_where_nothing_can_be_told_the_code_still_tells(redirections: str, store: str) -> None:
    with Mailstrom(store) as ms:
        ms.send(MAIL)
        assert shell(redirections, "queue", "cancel", "--all", "--yes", "--store", store) == (
            74,
            "",
            "",
        )
        assert ms.query("select distinct status from recipients") == [("cancelled",)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("version",), ""),
        (("--help",), ""),
        (("queue", "count"), ""),
        (("store", "purge", "--yes", "--older-than", "0s"), "; purged 0 messages"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_full_disk_is_told_in_one_sentence(
    arguments: tuple[str, ...], told: str, store: str
) -> None:
    named = ("--store", store) if len(arguments) > 1 else ()
    code, _, err = shell(">/dev/full", *arguments, *named)
    reason = "No space left on device"
    assert (code, err) == (74, f"mailstrom: standard output cannot be written ({reason}){told}\n")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("send",), "the message is empty"),
        (("sql", "-"), "the query is empty"),
        (("queue", "hold", "--all"), "Nobody is at the terminal to answer"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_closed_standard_input_is_an_empty_one(
    arguments: tuple[str, ...], why: str, store: str
) -> None:
    with Mailstrom(store) as ms:
        ms.send(MAIL)
    code, out, err = shell("<&-", *arguments, "--store", store)
    assert (code, out) == (64, "")
    assert why in err
    assert "Traceback" not in err


def test_a_message_that_cannot_be_read_is_a_wrong_command_line(store: str) -> None:
    code, _, err = shell("", "send", "--store", store, "/proc/self/mem")
    assert code == 64
    assert "the message cannot be read (Input/output error): name another file" in err


@pytest.mark.parametrize(("verb", "option"), [("status", "--json"), ("wait", "--wait=5")])
def test_what_is_accepted_and_cannot_be_asked_for_is_told(
    run: Any, fake: Any, monkeypatch: pytest.MonkeyPatch, verb: str, option: str
) -> None:
    def busy(*arguments: object, **options: object) -> None:
        raise SpoolBusy("locked")

    monkeypatch.setattr(fake.FakeClient, verb, busy)
    done = run("send", option, stdin=MAIL)
    assert done.code == Exit.OUTPUT
    assert re.fullmatch(r"mailstrom: locked; the message is accepted as \S+\n", done.err)


def test_an_interrupt_within_a_write_never_writes_it_twice(tmp_path: Path) -> None:
    """Wherever Ctrl-C falls in what is Python of ours between a line and its descriptor."""
    moments = 0
    for moment in range(1, 1_000):
        path = tmp_path / str(moment)
        with path.open("w", encoding="utf-8") as file:
            stream = streams._over(io.FileIO, streams._Output, file, 1, 0)
            interrupted = _interrupted(moment, lambda: print("told", file=stream, flush=True))  # noqa: B023
            print("more", file=stream, flush=True)
        written = path.read_text(encoding="utf-8")
        assert written in (("told\nmore\n", "more\n") if interrupted else ("told\nmore\n",))
        if not interrupted:
            break
        moments += 1
    assert moments > 5, "nothing was interrupted"


def _interrupted(moment: int, act: Callable[[], None]) -> bool:
    """Whether ``act`` was still under way at that opcode of the module, and was interrupted."""
    left = moment

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != streams.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False
