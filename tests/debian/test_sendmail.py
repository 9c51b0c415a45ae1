"""``mailstrom-sendmail`` beside Postfix's sendmail(1): same words, same input, same envelope."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from email import message_from_bytes
from pathlib import Path

import pytest

from tests.support import debian
from tests.support.postfix import PostfixServer, Received
from tests.support.sockets import eventually
from tests.unit.shims.calling import Spool

pytestmark = pytest.mark.debian

# In one test: a Postfix is slow to start. Words, input.
CASES: Sequence[tuple[Sequence[str], bytes]] = (
    (("bob@postfix.test",), b"Subject: 0\n\nhi\n.\nmore\n"),
    (("-i", "bob@postfix.test"), b"Subject: 1\n\nhi\n.\nmore\n"),
    (("-oi", "bob@postfix.test"), b"Subject: 2\n\nhi\n.\n"),
    (
        ("-ti", "c@postfix.test", "a@postfix.test"),
        b"Subject: 3\nTo: a@postfix.test, d@postfix.test\nBcc: b@postfix.test\n\nhi\n",
    ),
    (
        ("-t",),
        b"Subject: 4\nFrom: x@y.test\nTo: a@postfix.test\nResent-To: r@postfix.test\n"
        b"Resent-Bcc: s@postfix.test\n\nhi\n",
    ),
    (("-f", "x@y.test", "bob@postfix.test"), b"Subject: 5\nTo: root\n\nhi\n"),
    (("-fx@y.test", "a@postfix.test, b@postfix.test"), b"From ann Thu\nSubject: 6\n\nhi\n"),
    (("-f", "<>", "bob@postfix.test"), b"Subject: 7\r\n\r\nhi\r\nthere\r\n"),
    (("-FFull Name", "-fx@y.test", "bob@postfix.test"), b"Subject: 8\n\nhi\n"),
    (("-FCronDaemon", "-odi", "-oem", "-oi", "-t"), b"Subject: 9\nTo: bob@postfix.test\n\nhi"),
    (("-om", "-Am", "-B8BITMIME", "-Lx", "-o7", "bob"), b"Subject: 10\n\nhi\n"),
    (("-G", "-t"), b"Subject: 11\nTo: bob@postfix.test\nCc: root\n\nhi\n"),
    (("bob@postfix.test",), b"Subject: 12\nnot a header\n\nhi\n"),
    (("--", "bob@postfix.test"), b"Subject: 13\n\n"),
)


@contextmanager
def postfix(origin: str) -> Iterator[tuple[PostfixServer, list[str | Path], dict[str, str]]]:
    """A Postfix that delivers what its sendmail takes, and how that is called."""
    tree = debian.postfix()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        for name in ("postdrop", "postlog"):  # set-group-id ones take no LD_LIBRARY_PATH
            shutil.copyfile(tree.program(f"usr/sbin/{name}"), Path(folder) / name)
            (Path(folder) / name).chmod(0o755)
        with PostfixServer(
            domains=("postfix.test", origin),
            settings={
                "myorigin": origin,
                "command_directory": folder,
                "export_environment": "TZ MAIL_CONFIG LANG LD_LIBRARY_PATH",
            },
            services="pickup unix n - n 60 1 pickup\n",
        ) as server:
            conf = server.directory / "conf"
            program = [tree.program("usr/sbin/sendmail"), "-C", conf]
            yield server, program, tree.environ(MAIL_CONFIG=str(conf))


def told(content: bytes) -> dict[str, object]:
    """What of a message does not depend on who took it."""
    found = message_from_bytes(content)
    author = found["From"] or ""
    return {
        "subject": found["Subject"],
        "to": found.get_all("To"),
        "cc": found.get_all("Cc"),
        "bcc": found.get_all("Bcc"),
        "from": author.partition("@")[0],
        "dated": found["Date"] is not None or found["Resent-Date"] is not None,
        "named": found["Message-ID"] is not None or found["Resent-Message-ID"] is not None,
        "body": content.partition(b"\r\n\r\n")[2].rstrip(b"\r\n"),
    }


def test_postfix_and_we_understand_the_same(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    ours: dict[str, tuple[str, set[str], dict[str, object]]] = {}
    origins = set()
    for words, text in CASES:
        sender, recipients, content = spool.taken(*words, text=text)
        number = str(message_from_bytes(content)["Subject"])
        ours[number] = sender, set(recipients), told(content)
        origins |= {sender.rpartition("@")[2]} - {"y.test", ""}
    (origin,) = origins
    spool.ms.close()
    whole = sum(len(recipients) for _, recipients, _ in ours.values())
    theirs: dict[str, list[Received]] = {}
    with postfix(origin) as (server, program, environ):
        for words, text in CASES:
            done = subprocess.run(
                [*program, *words], input=text, env=environ, capture_output=True, timeout=60
            )
            assert done.returncode == 0, done.stderr
        eventually(lambda: len(server.received()) == whole, what="all mail in Postfix's mailboxes")
        for one in server.received():
            number = str(message_from_bytes(one.content)["Subject"])
            theirs.setdefault(number, []).append(one)
    assert theirs.keys() == ours.keys()
    for number, (sender, recipients, what) in ours.items():
        got = theirs[number]
        assert {one.sender for one in got} == {sender}, number
        assert {address for one in got for address in one.recipients} == recipients, number
        if number == "7":  # the author of a bounce: a bare word with Postfix
            assert what.pop("from") == told(got[0].content)["from"] == "MAILER-DAEMON"
            continue
        for one in got:
            assert told(one.content) == what, number


def test_postfix_and_we_refuse_the_same(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with postfix("origin.test") as (_, program, environ):
        for words in ((), ("-t",), ("-Z", "bob@postfix.test"), ("-t", "-f")):
            done = subprocess.run(
                [*program, *words], input=b"x\n", env=environ, capture_output=True, timeout=60
            )
            assert done.returncode != 0
            assert spool.call(*words, text=b"x\n").returncode != 0
    assert spool.ms.query("SELECT count(*) FROM messages")[0][0] == 0
    spool.ms.close()
