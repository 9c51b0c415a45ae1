"""The command line as a process: quick to start, quiet when its reader leaves."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from mailstrom import Mailstrom
from mailstrom.testing.smtp import SMTPServer

MAIL = b"From: a@x.test\r\nTo: b@y.test\r\n\r\nhello\r\n"


def python(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-P", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        **{"stdin": subprocess.DEVNULL} | options,
    )


def test_python_m_mailstrom_is_the_command_line() -> None:
    done = python("-m", "mailstrom", "version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("mailstrom ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["version"],
        ["--help"],
        ["status", "--help"],
        ["queue", "cancel", "--help"],
        ["show", "--help"],
        ["tail", "--help"],
        ["report", "domains", "--help"],
        ["destinations", "--help"],
        ["completion", "bash"],
    ],
)
def test_small_commands_load_no_library_but_click(arguments: list[str]) -> None:
    program = f"""
import sys
from mailstrom.cli import main
code = main({arguments!r})
heavy = {{"rich", "structlog", "msgspec", "apsw", "dns", "aiosmtplib", "asyncio", "email.message"}}
sys.exit(f"loaded: {{sorted(heavy & set(sys.modules))}}" if heavy & set(sys.modules) else code)
"""
    done = python("-c", program)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_leaves_early_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "mailstrom", "config", "show"],
            stdout=writing,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_person_is_told_that_the_message_is_read_from_the_keyboard(tmp_path: Path) -> None:
    keyboard, terminal = pty.openpty()
    try:
        os.write(keyboard, b"From: a@x.test\nTo: b@y.test\n\nhello\n\x04")
        done = python("-m", "mailstrom", "send", "--store", str(tmp_path / "s.db"), stdin=terminal)
    finally:
        os.close(keyboard)
        os.close(terminal)
    assert done.returncode == 0
    assert "reading the message from standard input; Ctrl-D" in done.stderr


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal_nothing_to_copy_is_ever_broken(width: int, tmp_path: Path) -> None:
    store = str(tmp_path / "s.db")
    mail = b"From: a@x.test\nTo: somebody.with.a.name@a.rather.long.domain.example\n\nhello\n"
    sent = subprocess.run(
        [sys.executable, "-P", "-m", "mailstrom", "send", "--store", store, "--at", "2d"],
        input=mail,
        capture_output=True,
        timeout=60,
        check=True,
    )
    id = sent.stdout.decode().strip()
    for arguments in (
        ["queue", "list"],
        ["queue", "next"],
        ["status", id],
        ["show", id],
        ["sql", "select * from recipients"],
    ):
        lines = on_terminal([*arguments, "--store", store], width)
        assert max(map(len, lines)) <= width
        assert any(id in line for line in lines)
        assert any("somebody.with.a.name@a.rather.long.domain.example" in line for line in lines)


def test_on_a_terminal_what_happened_fits(tmp_path: Path) -> None:
    store = str(tmp_path / "s.db")
    address = "somebody.with.a.rather.long.name@a.rather.long.domain.example"
    with Mailstrom(store) as ms, SMTPServer().in_thread() as relay:
        hosts = {"hosts": [f"127.0.0.1:{relay.port}"], "tls": "none"}
        ms.start(config={"delivery": {"mode": "relay"}, "relay": hosts})
        id = ms.send(MAIL, recipients=[address])
        assert ms.wait(id, timeout=60).succeeded
    arguments = ["tail", "--no-follow", "--type", "delivered", "--store", store]
    first, *more = on_terminal(arguments, 80)
    assert re.fullmatch(rf"[\d:.]+Z  recipient.delivered +{id}", first)
    assert more[0].startswith(f"    {address}")
    assert max(map(len, more)) <= 80
    assert all(line.startswith("    ") for line in more)


def test_on_a_terminal_the_configuration_fits_and_no_path_is_broken(tmp_path: Path) -> None:
    folder = tmp_path / "a-folder-with-a-long-name-somewhere-below-the-home-of-a-user"
    folder.mkdir()
    file = folder / "mailstrom.toml"
    file.write_text('store = "spool.db"\n[stream.receipts]\npriority = "high"\n')
    lines = on_terminal(["config", "show", str(file)], 80)
    assert lines[:2] == [f"file: {file}", lines[1]]
    assert lines[1].split() == ["key", "origin", "value"]
    told = {line.split()[0]: line.split()[1:] for line in lines[1:] if not line.startswith(" ")}
    assert told["store"] == ["file", f'"{folder}/spool.db"']
    assert told["stream.receipts.priority"] == ["file", '"high"']
    assert told["delivery.port"] == ["default", "25"]
    assert [line for line in lines[1:] if len(line) > 80 and str(folder) not in line] == []


def test_on_a_terminal_the_question_of_a_purge_fits(tmp_path: Path) -> None:
    store = str(tmp_path / "s.db")
    with Mailstrom(store) as ms:
        ms.cancel(ms.send(MAIL))
    arguments = ["store", "purge", "--older-than", "0s", "--store", store]
    lines = on_terminal(arguments, 80, typed=b"n\n")
    assert max(map(len, lines)) <= 80
    asked = " ".join(" ".join(lines).split())
    assert re.search(r"Delete 1 message finished before \S+Z, .* events as old\? \[y/N\]:", asked)
    assert lines[-1].endswith("mailstrom: stopped; nothing further was changed")


def on_terminal(arguments: list[str], width: int, typed: bytes = b"") -> list[str]:
    """The lines that a command shows on a terminal so wide."""
    keyboard, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, width))
    environment = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "NO_COLOR"}}
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "mailstrom", *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=subprocess.STDOUT,
        env=environment | {"TERM": "xterm"},
    ):
        os.close(terminal)
        os.write(keyboard, typed)
        shown = b""
        with contextlib.suppress(OSError):  # Linux: EIO once nobody holds the terminal
            while data := os.read(keyboard, 65_536):
                shown += data
    os.close(keyboard)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    return [line.rstrip() for line in text.replace("\r\n", "\n").splitlines()]


def test_the_dns_servers_help_keeps_its_lines() -> None:
    done = python("-m", "mailstrom.testing.dns", "--help")
    assert done.returncode == 0
    assert '\n    "broken.test":      "SERVFAIL",\n' in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_show_raw_is_the_bytes_on_the_wire(tmp_path: Path) -> None:
    store = str(tmp_path / "s.db")
    mail = b"From: a@x.test\r\nTo: b@y.test\r\nSubject: x\r\n\r\n.\x00\xff\xfe\r\nend\r\n".replace(
        b"\x00", b"\x1b"
    )
    with Mailstrom(store) as ms:
        id = ms.send(mail)
        stored = ms.raw(id)
    shown = subprocess.run(
        [sys.executable, "-P", "-m", "mailstrom", "show", id[-8:], "--raw", "--store", store],
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert shown.stdout == stored
    assert shown.stdout.endswith(b"\r\n\r\n.\x1b\xff\xfe\r\nend\r\n")


def test_tail_follows_until_it_is_interrupted(tmp_path: Path) -> None:
    store = str(tmp_path / "s.db")
    with (
        Mailstrom(store) as ms,
        subprocess.Popen(
            [sys.executable, "-P", "-m", "mailstrom", "tail", "--json", "--store", store],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        ) as tail,
    ):
        assert tail.stdout is not None
        for number in range(3):
            id = ms.send(b"From: a@x.test\r\nTo: b@y.test\r\n\r\nhello\r\n")
            event = json.loads(tail.stdout.readline())
            assert (event["type"], event["message_id"]) == ("message.accepted", id), number
        tail.send_signal(signal.SIGINT)
        rest, errors = tail.communicate(timeout=30)
        assert (tail.returncode, rest, errors) == (0, b"", b"")


def test_tail_ends_well_when_its_reader_leaves(tmp_path: Path) -> None:
    store = str(tmp_path / "s.db")
    with Mailstrom(store) as ms:
        first = ms.send(b"From: a@x.test\r\nTo: b@y.test\r\n\r\nhello\r\n")
        with subprocess.Popen(
            [sys.executable, "-P", "-m", "mailstrom", "tail", "--store", store],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        ) as tail:
            assert tail.stdout is not None
            assert first in tail.stdout.readline().decode()
            tail.stdout.close()
            ms.send(b"From: a@x.test\r\nTo: b@y.test\r\n\r\nhello\r\n")
            assert tail.stderr is not None
            assert tail.stderr.read() == b""
            assert tail.wait(30) == 0


def test_a_change_takes_what_it_asked_for_and_nothing_that_came_before_the_answer(
    tmp_path: Path,
) -> None:
    spool = str(tmp_path / "spool.db")
    with Mailstrom(spool) as ms:
        shown = [ms.send(MAIL) for _ in range(3)]
        person, keyboard = pty.openpty()
        asking = subprocess.Popen(
            [sys.executable, "-P", "-m", "mailstrom", "queue", "cancel", "--all", "--store", spool],
            stdin=keyboard,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            assert asking.stderr is not None
            told = b""
            while b"Cancel 3 recipients?" not in told:
                piece = os.read(asking.stderr.fileno(), 4096)
                assert piece, told
                told += piece
            for id in shown:
                assert id.encode() in told
            later = [ms.send(MAIL) for _ in range(40)]
            os.write(person, b"y\n")
            out, err = asking.communicate(timeout=30)
        finally:
            asking.kill()
            asking.wait()
            os.close(person)
            os.close(keyboard)
        assert (asking.returncode, out) == (0, b"cancelled 3 recipients\n")
        assert b"40 recipients more matched since then and were left alone" in err
        assert {ms.status(id).status for id in shown} == {"cancelled"}
        assert {ms.status(id).status for id in later} == {"queued"}
