"""``mailstrom-mailq``: what is not finished, in Postfix's words, however much it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from mailstrom.shims.mailq import PAGE
from mailstrom.shims.sysexits import DATA
from tests.unit.shims.calling import TIMEOUT, Spool

LETTER = b"From: ann@a.example\r\nTo: bob@b.example\r\nSubject: x\r\n\r\nhi\r\n"


def listed(spool: Spool, *words: str) -> str:
    done = spool.call(*words, module="mailq")
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


def test_an_empty_queue(spool: Spool) -> None:
    assert listed(spool) == "Mail queue is empty\n"
    assert listed(spool, "-j") == ""
    assert spool.call("-bp").stdout == b"Mail queue is empty\n"


def test_a_table(spool: Spool) -> None:
    first = spool.ms.send(LETTER, sender="")
    second = spool.ms.send(LETTER, recipients=["c@c.example", "d@d.example"])
    spool.ms.hold(second)
    third = spool.ms.send(LETTER)
    spool.ms.cancel(third)
    said = listed(spool)
    lines = said.splitlines()
    assert lines[0].split() == [
        "-Queue", "ID----------------------------", "--Size--", "----Arrival", "Time----",
        "-Sender/Recipient-------",
    ]  # fmt: skip
    assert lines[1].startswith(f"{second}! ")
    assert lines[1].endswith(" ann@a.example")
    assert lines[2].strip() == "(held: user)"
    assert [line.strip() for line in lines[3:6]] == ["c@c.example", "d@d.example", ""]
    assert lines[6].startswith(f"{first}  ")
    assert lines[6].endswith(" MAILER-DAEMON")
    assert lines[-1] == "-- 1 Kbytes in 2 Requests."
    assert third not in said


def test_a_letter_that_the_locale_lacks_hides_no_mail(spool: Spool) -> None:
    ascii_only = spool.environ(PYTHONIOENCODING="ascii")
    first = spool.ms.send(LETTER)
    spool.ms.send(LETTER, recipients=["\u6f22@b.example"])
    done = spool.call(module="mailq", environ=ascii_only)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\u6f22@b.example\n" in done.stdout
    assert first.encode() in done.stdout


def test_json_has_the_keys_of_postqueue(spool: Spool) -> None:
    id = spool.ms.send(LETTER)
    (line,) = listed(spool, "-j").splitlines()
    told = json.loads(line)
    assert list(told) == [
        "queue_name", "queue_id", "arrival_time", "message_size", "forced_expire", "sender",
        "recipients",
    ]  # fmt: skip
    assert (told["queue_name"], told["queue_id"]) == ("incoming", id)
    assert told["recipients"] == [{"address": "bob@b.example"}]
    assert told["arrival_time"] == int(spool.ms.status(id).created_at.timestamp())
    spool.ms.hold(id)
    (line,) = listed(spool, "-j").splitlines()
    assert json.loads(line)["queue_name"] == "hold"
    assert json.loads(line)["recipients"][0]["delay_reason"] == "held: user"


def test_all_pages_and_a_reader_that_leaves(spool: Spool) -> None:
    ids = spool.ms.send_many([LETTER] * (2 * PAGE + 7))
    told = [json.loads(line)["queue_id"] for line in listed(spool, "-j").splitlines()]
    assert told == list(reversed(ids))
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "mailstrom.shims.mailq"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=spool.environ(),
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        child.wait(TIMEOUT)
        assert child.stderr.read() == b""


def test_called_mailq_sendmail_lists(spool: Spool, tmp_path: Path) -> None:
    program = tmp_path / "mailq"
    program.write_text("import sys\nfrom mailstrom.shims.sendmail import main\nsys.exit(main())\n")
    done = subprocess.run(
        [sys.executable, "-P", program], env=spool.environ(), capture_output=True, timeout=TIMEOUT
    )
    assert (done.returncode, done.stdout) == (0, b"Mail queue is empty\n")


def test_what_is_deferred_is_made_due(spool: Spool) -> None:
    id = spool.ms.send(LETTER)
    assert spool.call("-q").returncode == 0
    assert spool.call(f"-qI{id}").returncode == 0
    assert spool.call("-qRb.example").returncode == 0
    done = spool.call("-qI00000000-0000-7000-8000-000000000000")
    assert done.returncode == DATA
    assert b"no message" in done.stderr


def test_full_output_is_told(spool: Spool) -> None:
    spool.ms.send(LETTER)
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "mailstrom.shims.mailq"],
            stdout=full,
            stderr=subprocess.PIPE,
            env=spool.environ(),
            timeout=TIMEOUT,
        )
    assert done.returncode == 74
    assert os.strerror(28).encode() in done.stderr
