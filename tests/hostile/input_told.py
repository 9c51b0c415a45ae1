"""What hosts reply and what users type, as it is told: logs of both forms, views, commands.

Contract. As in ``replies_told``, with the words of a browser, of JSON and of a clipboard, with a
reply of 1 MB, in the console's form of the log as well; every line of the JSON form is one object.
Arguments and variables come out of errors as they may go to a terminal, with the exit code that the
command line promises and no traceback.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

from tests.hostile.input_config import ran, wrong
from tests.hostile.rawhost import Manners
from tests.hostile.replies_stage import BOUNCED, Trial, begin, judged, send, wait
from tests.hostile.replies_told import SAFE, look, printed
from tests.hostile.stand import Stand
from tests.hostile.table import Row
from tests.support.engine import Engine
from tests.support.network import Network
from tests.support.trial import Plan

WORDS = (
    b"owned </script><script>alert(1)</script> \x1b]52;c;eA==\x07 \x9d52;c;eA==\x9c \x1bP\x1b\\ "
    b'"}\\"},{"event":"forged"}\\u001b[2J \xc2\x85NEL \xe2\x80\xa8LS \xe2\x80\xa9PS \xe2\x80\xae '
    b"\xe2\x81\xa7 \xef\xbb\xbf \xc2\x9b2J \xff\xfe\x80 \xed\xa0\x80 \x08\x08\x7f\x00\x0b\x0c"
    b" $(id) `id` %n"
)
COMMANDS = (
    ("show", "ID"), ("status", "ID"), ("why", "ID"), ("queue", "list"), ("queue", "list", "--json"),
    ("destinations", "list", "--all"), ("destinations", "list", "--all", "--json"),
    ("report", "domains"), ("report", "summary"), ("show", "ID", "--json"),
    ("tail", "-n", "50", "--no-follow"), ("tail", "-n", "50", "--no-follow", "--json"),
    ("sql", "select reply_text, last_reply from attempts, destinations"),
    ("sql", "--json", "select * from events"), ("sql", "--csv", "select * from attempts"),
)  # fmt: skip
FEW = (*COMMANDS[:2], COMMANDS[6], COMMANDS[8], COMMANDS[11], *COMMANDS[13:])


def refusing(stage: str, lead: bytes) -> Trial:
    """A host that refuses in such words."""
    manners = Manners(says={stage: lead + WORDS + b"\r\n"})
    return Trial(name=stage, manners=manners, wanted=BOUNCED)


def rows(stand: Stand, plan: Plan) -> Iterator[Row]:
    """Replies as they are told."""
    many = b"550-" + b"\r\n550-".join([b"o" * 500, *[WORDS] * 90]) + b"\r\n550 end\r\n"
    hosts = [
        refusing("rcpt", b"550 5.1.1 "),
        refusing("dot", b"554 "),
        Trial(
            name="92 lines", manners=Manners(says={"rcpt": many, "data": b"503 5.5.1 nobody\r\n"}),
            wanted=BOUNCED,
        ),
        Trial(
            name="1 MB", wanted="deferred remote, 1 charged",
            manners=Manners(says={"rcpt": b"450 owned" + b"x" * (1 << 20) + b"\r\n"}),
        ),
    ]  # fmt: skip
    yield judged(
        stand, "replies of markup, JSON, clipboards, controls, 1 MB", "by their codes", hosts
    )
    findings = []
    (longest,) = stand.engine.rows("SELECT max(length(reply_text)) AS n FROM attempts")
    if not 0 < longest.n <= 4096:
        findings.append(f"reply_text of {longest.n} characters")
    findings += log_lines(stand.engine)
    for row in stand.engine.rows("SELECT detail FROM events WHERE detail IS NOT NULL"):
        json.loads(row.detail)
    (last,) = stand.engine.rows("SELECT message_id FROM attempts ORDER BY id LIMIT 1")
    other = _named_nastily(stand)
    some = COMMANDS if plan.long else FEW
    tries = [(words, id, False) for words in some for id in (last.message_id, other)]
    tries += [(("sql", "--csv", "select * from messages"), other, True)]
    for words, id, terminal in tries:
        given = [id if word == "ID" else word for word in words]
        try:
            text = printed(stand, *given, terminal=terminal)
        except AssertionError as error:
            findings.append(str(error))
            continue
        exact = "--csv" in words and not terminal  # for a program, which takes it as it is
        if not exact and (bad := look(text)) is not None:
            findings.append(f"{' '.join(words)}: {bad}")
        if "--json" in words:
            findings += [f"{words}: no JSON" for line in text.splitlines() if not _json(line)][:1]
    yield Row(
        case="... in the log, in views, by commands as text, JSON and CSV", wanted=SAFE, seen=SAFE,
        tried=len(some) + 2, findings=tuple(findings),
    )  # fmt: skip


def _named_nastily(stand: Stand) -> str:
    """A message whose addresses, subject and options turn the direction of text; it has its end."""
    domain = stand.network.new_domain()
    stand.network.zone(domain, {"MX": "NODATA", "A": "NODATA", "AAAA": "NODATA"})
    mail = EmailMessage()
    mail["From"], mail["To"] = "a@s.test", "b@s.test"
    mail["Subject"] = "owned \x1b[2J\u202e\u2066\x9b"
    mail.set_content("x")
    id = stand.engine.ms.send(
        mail, sender="a\u202eb@s.test", recipients=[f"o\u2066w@{domain}"], tags=["t\u202e"],
        metadata={"k\u202e": "\u2066"}, idempotency_key="k\u202e",
    )  # fmt: skip
    stand.engine.final(id)
    return id


def _json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def log_lines(engine: Engine, *, form: str = "json") -> list[str]:
    """What is wrong with a log."""
    octets = engine.log_file.read_bytes()
    found = []
    if b"owned" not in octets:
        found.append("the words are nowhere in the log")
    for line in octets.decode("utf-8", "surrogateescape").split("\n")[:-1]:
        if form == "json" and not _json(line):
            found.append(f"no JSON object: {line[:100]!r}")
        elif form == "console" and not re.match(r"\d{4}-\d\d-\d\dT", line):
            found.append(f"no line of the log: {line[:100]!r}")
        if (bad := look(line)) is not None:
            found.append(bad)
    return found[:5]


def console(folder: Path) -> Row:
    """The same words in the console's form."""
    folder.mkdir()
    with Network() as network:
        engine = Engine(network, folder, workers=1, settings={"log": {"format": "console"}})
        engine.start(wait=False)
        try:
            stand = Stand(network=network, engine=engine)
            host = refusing("rcpt", b"550 5.1.1 ")
            sent = begin(stand, host)
            send(stand, sent)
            outcome = wait(stand, sent)
            engine.stop()
            findings = log_lines(engine, form="console")
        finally:
            engine.close()
    if outcome != BOUNCED:
        findings.append(outcome)
    return Row(
        case="... in the console's form of the log", wanted=SAFE, seen=SAFE, tried=1,
        findings=tuple(findings),
    )  # fmt: skip


NASTY = "a\x1b]0;owned\x07\n\u202emailstrom: all is well\x9b2J"
MAIL = b"From: a@s.test\nTo: b@c.test\nSubject: s\n\nx\n"


def typed(folder: Path, plan: Plan) -> Row:
    """Arguments, variables and files of the command line."""
    folder.mkdir()
    (folder / "mail").write_bytes(MAIL)
    (folder / "broken").write_bytes(b"From: a@s.test\nTo: b\x1b]0;x\x07@c.test\n\nx\n")
    (folder / "nul").write_bytes(MAIL + b"\0")
    send = ("mailstrom", "send", "--store", str(folder / "spool.db"))
    cases: list[tuple[tuple[str, ...], tuple[int, ...], dict[str, str]]] = [
        ((*send, "broken"), (65,), {}), ((*send, "nul"), (65,), {}),
        ((*send, "--to", NASTY, "mail"), (65,), {}), ((*send, "-f", NASTY, "mail"), (65,), {}),
        ((*send, "-f", "a@b.test\r\nRCPT TO:<x@y.test>", "mail"), (65,), {}),
        ((*send, "--tag", NASTY, "mail"), (65,), {}), ((*send, "--key", NASTY, "mail"), (65,), {}),
        ((*send, "--meta", f"k={NASTY}", "mail"), (65,), {}),
        ((*send, "--meta", NASTY, "mail"), (64,), {}),
        ((*send, "--stream", NASTY, "mail"), (64,), {}),
        ((*send, "--at", NASTY, "mail"), (64,), {}),
        ((*send, "--priority", NASTY, "mail"), (64,), {}), ((*send, NASTY), (64,), {}),
        ((*send, "--header", f"X: {NASTY}", "mail"), (64,), {}),
        ((*send, f"--{NASTY}", "mail"), (64,), {}),
        (("mailstrom", NASTY), (64,), {}), (("mailstrom", "show", NASTY), (1, 64), {}),
        (("mailstrom", "--store", NASTY), (64,), {}), (("mailstrom", "sql", NASTY), (1, 64), {}),
        (("mailstrom", "config", "check", NASTY), (78,), {}),
        (("mailstrom", "store", NASTY), (64,), {}), (("mailstrom", "report", NASTY), (64,), {}),
        (("mailstrom.supervisor", f"--{NASTY}"), (64,), {}),
        (("mailstrom.supervisor", "--workers", NASTY), (64,), {}),
        (("mailstrom.supervisor", "--config", NASTY), (78,), {}),
        (("mailstrom", "queue", "list"), (1, 78), {"MAILSTROM_STORE": NASTY}),
        (("mailstrom", "queue", "list"), (1, 78), {"MAILSTROM_STORE": f"{NASTY}:x"}),
        (("mailstrom", "queue", "list"), (78,), {"MAILSTROM_STORE": "x" * 10_000}),
        (("mailstrom", "queue", "list"), (1, 78), {"MAILSTROM_STORE": "a\udcff/b"}),
        (("mailstrom", "queue", "list"), (78,), {"MAILSTROM_CONFIG": NASTY}),
        (("mailstrom", "config", "check"), (78,), {"MAILSTROM_LOG_LEVEL": NASTY}),
        (("mailstrom", "config", "check"), (78,), {"MAILSTROM_LOG_FORMAT": NASTY}),
        (("mailstrom", "config", "show"), (0,), {"MAILSTROM_STORE": NASTY}),
        (("mailstrom", "queue", "list"), (1, 78), {"HOME": NASTY, "XDG_CONFIG_HOME": "/dev/null/"}),
        (("mailstrom.supervisor",), (78,), {"MAILSTROM_LOG_LEVEL": "\udcff"}),
    ]  # fmt: skip
    findings = []
    some = cases if plan.long else cases[::2]
    for argv, codes, env in some:
        text = wrong(ran(argv, folder, env), codes)
        if text is not None:
            findings.append(f"{' '.join(argv[:3])!r} {list(env)}: {text}")
    wanted = "the exit code promised, no traceback, nothing raw"
    return Row(
        case="arguments and variables with escapes, line ends, octets that are no text",
        wanted=wanted,
        seen=wanted if not findings else "something else", tried=len(some),
        findings=tuple(findings),
    )  # fmt: skip
