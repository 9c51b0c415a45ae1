"""What hosts say, as it is told: in the log, in the views, by the commands, on a terminal.

Contract. A host says the same nasty words at every place where words are kept. Then every line of
the log, and everything that the commands print, is looked through: no control character but the
line ends and the styles that a terminal's table is drawn with, nothing that turns the direction of
text, and no word of markup that was obeyed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence

from tests.hostile.rawhost import OFFER, Manners
from tests.hostile.replies_stage import BOUNCED, DELIVERED, HOST, LATER, Trial, judged
from tests.hostile.stand import Stand
from tests.hostile.table import Row
from tests.support.engine import DEADLINE_S, environment
from tests.support.trial import Plan

NASTY = (
    b"\x1b]0;owned\x07\x1b[2J\x1b[31mred \x9b32m \xc2\x9b33m a\rb\0c\x08\x7f "
    b"\xe2\x80\xae evil \xe2\x80\xa8 line \xe2\x81\xa6 [/bold] [red]x %s {0} \xff\xfe "
    b'{"event":"forged"} <script>'
)
UNSAFE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
STYLE = re.compile(r"\x1b\[[0-9;]*m|\r(?=\n)")
COMMANDS = (
    ("show", "ID"), ("status", "ID"), ("why", "ID"), ("queue", "next"), ("queue", "list"),
    ("destinations", "list", "--all"), ("destinations", "show", "SITE"),
    ("tail", "-n", "200", "--no-follow"), ("sql", "select * from attempts"),
    ("sql", "select * from sessions"), ("sql", "select * from recipients"),
    ("sql", "select * from destinations"), ("sql", "select * from events"),
    ("doctor", "--no-network"), ("report", "summary"), ("report", "domains"),
)  # fmt: skip
FEW = tuple(
    words for words in COMMANDS
    if words[0] in ("show", "why", "tail", "doctor") or words[1] in ("list", "show")
)  # fmt: skip
TELLS_TROUBLE = ("doctor",)
"""Exit with 1 where they have something to tell, and here they have."""
TELLING = ("show", "why", "destinations", "tail", "doctor")
"""These repeat what hosts said, or nothing is proved by them."""
MOST_TEXT = 2_000
"""Kept of what a host says each time: whoever says more must not fill the disk."""
SAFE = "no control character, nothing obeyed"


def trials() -> list[Trial]:
    """The same words everywhere."""

    def host(name: str, stage: str, code: bytes, wanted: str) -> Trial:
        says = {stage: code + b" " + NASTY + b"\r\n"}
        return Trial(name=name, manners=Manners(says=says), wanted=wanted)

    lines = b"".join(b"250-" + NASTY + b"\r\n" for _ in range(3)) + b"250 " + NASTY + b"\r\n"
    return [
        host("greeting", "greeting", b"554", HOST),
        host("greeting that is none", "greeting", b"", HOST),
        Trial(name="EHLO", manners=Manners(says={"ehlo": lines}), wanted=DELIVERED),
        Trial(
            name="EHLO, in 28 kB",
            wanted=DELIVERED,
            manners=Manners(
                says={
                    "ehlo": b"250-"
                    + b"w" * 995
                    + b"\r\n"
                    + b"".join(b"250-" + NASTY + b"w" * 700 + b"\r\n" for _ in range(28))
                    + b"250 PIPELINING\r\n"
                }
            ),
        ),
        host("EHLO that is none", "ehlo", b"xyz", HOST),
        host("EHLO refused", "ehlo", b"421", HOST),
        Trial(
            name="STARTTLS",
            manners=Manners(
                offer=(*OFFER, "STARTTLS"), says={"starttls": b"220 " + NASTY + b"\r\n" + NASTY}
            ),
            wanted="deferred tls, 0 charged",
        ),
        host("MAIL", "mail", b"451", LATER),
        host("RCPT", "rcpt", b"550", BOUNCED),
        host("RCPT later", "rcpt", b"450", LATER),
        host("DATA", "data", b"554", BOUNCED),
        host("the dot", "dot", b"554", BOUNCED),
        host("the dot, taken", "dot", b"250", DELIVERED),
        host("the dot, in 20 lines", "dot", b"250-" + b"x\r\n250-" * 20 + b"y\r\n250", DELIVERED),
    ]


def look(text: str) -> str | None:
    """What is wrong with a text."""
    found = UNSAFE.search(text)
    if found is not None:
        return f"{found[0]!r} in {text[max(found.start() - 40, 0) : found.end() + 20]!r}"
    return None


def printed(stand: Stand, *words: str, terminal: bool) -> str:
    """What a command prints, styles left out."""
    argv = [sys.executable, "-P", "-m", "mailstrom", *words, "--store", str(stand.engine.store)]
    fine = (1,) if words[0] in TELLS_TROUBLE else (0,)
    env = environment() | {"TERM": "xterm-256color", "COLUMNS": "160", "LINES": "50"}
    if not terminal:
        ran = subprocess.run(argv, env=env, capture_output=True, timeout=DEADLINE_S, check=False)
        if ran.returncode not in fine:
            raise AssertionError(f"{words}: {ran.returncode}, {ran.stderr[-300:]!r}")
        return (ran.stdout + ran.stderr).decode("utf-8", "surrogateescape")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
    with subprocess.Popen(argv, env=env, stdin=theirs, stdout=theirs, stderr=theirs) as child:
        os.close(theirs)
        octets = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while block := os.read(ours, 65536):
                octets += block
        code = child.wait(DEADLINE_S)
    os.close(ours)
    if code not in fine:
        raise AssertionError(f"{words}: {code}, {octets[-300:]!r}")
    return STYLE.sub("", octets.decode("utf-8", "surrogateescape"))


def rows(stand: Stand, plan: Plan) -> Iterator[Row]:
    """Each place as a row."""
    yield judged(stand, "nasty words at every stage", "by their codes", trials())
    yield log(stand)
    yield views(stand)
    for terminal in (False, True):
        yield commands(stand, COMMANDS if plan.long else FEW, plan.pick(1, 13), terminal=terminal)


def log(stand: Stand) -> Row:
    """The log's lines."""
    lines = stand.engine.log_file.read_bytes().decode("utf-8", "surrogateescape").split("\n")
    wrong = [text for line in lines if (text := look(line)) is not None]
    forged = [line for line in lines if line.startswith('{"event":"forged"')]
    told = sum("owned" in line for line in lines)
    if not told:
        wrong.append("the words are nowhere in the log")
    return Row(
        case="... in the log's lines", wanted=SAFE, seen=SAFE, tried=len(lines),
        findings=(*wrong, *forged),
    )  # fmt: skip


def views(stand: Stand) -> Row:
    """Every text of every view."""
    wrong, tried = [], 0
    names = [row.view for row in stand.engine.rows("SELECT DISTINCT view FROM schema_info")]
    for name in names:
        for row in stand.engine.rows(f"SELECT * FROM {name}"):
            for column, value in row._asdict().items():
                if isinstance(value, str):
                    tried += 1
                    text = look(value)
                    if text is not None:
                        wrong.append(f"{name}.{column}: {text}")
                    if len(value) > MOST_TEXT:
                        wrong.append(f"{name}.{column} keeps {len(value)} characters")
    return Row(case="... in the views", wanted=SAFE, seen=SAFE, tried=tried, findings=tuple(wrong))


def commands(stand: Stand, some: Sequence[Sequence[str]], most: int, *, terminal: bool) -> Row:
    """What commands print, of so many messages."""
    engine = stand.engine
    sql = "SELECT id FROM messages ORDER BY status <> 'deferred', created_ms DESC LIMIT ?"
    ids = [row.id for row in engine.rows(sql, most)]
    site = engine.rows("SELECT site FROM destinations WHERE last_reply LIKE '%owned%'")[0].site
    wrong, tried, told = [], 0, set()
    for words in some:
        for id in ids if "ID" in words else ids[:1]:
            given = [{"ID": id, "SITE": site}.get(word, word) for word in words]
            try:
                text = printed(stand, *given, terminal=terminal)
            except AssertionError as error:
                wrong.append(str(error))
                continue
            tried += 1
            if "owned" in text:
                told.add(words[0])
            found = look(text)
            if found is not None:
                wrong.append(f"{' '.join(words)}: {found}")
    wrong += [f"the words are nowhere in what {one} prints" for one in TELLING if one not in told]
    where = "on a terminal" if terminal else "in a pipe"
    return Row(
        case=f"... by the commands, {where}", wanted=SAFE, seen=SAFE, tried=tried,
        findings=tuple(wrong),
    )  # fmt: skip
