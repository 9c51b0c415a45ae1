"""Addresses that two readers read differently, and shapes of messages without measure.

Contract. Of an address that is taken, the mail goes to the domain behind the last @ outside quotes,
comments and angle brackets that somebody else's eyes find, and to no other: no other domain is
asked for in the DNS. What shapes cost is counted in a child whose memory and time are bounded.
"""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import time
from collections.abc import Iterator
from email.message import Message

from mailstrom.errors import InvalidMessage
from tests.hostile.input_config import LIMIT_S
from tests.hostile.stand import Stand
from tests.hostile.table import MIB, Row
from tests.support.children import ROOT, command
from tests.support.engine import DEADLINE_S, environment
from tests.support.sockets import eventually
from tests.support.trial import Plan

WANTED = "refused, or routed by the last @ outside quotes"
GOOD, EVIL = "good.invalid", "evil.invalid"
# text, and the key that it has to have; None: refused
KNOWN: tuple[tuple[str, str | None], ...] = (
    (f"a@b(c)@{EVIL}", None), (f"a@{GOOD}@{EVIL}", None), (f"a@{GOOD}(c)", None),
    (f'"a@{EVIL}"@{GOOD}', f'"a@{EVIL}"@{GOOD}'), (f'"a@{EVIL} "@{GOOD}', f'"a@{EVIL} "@{GOOD}'),
    (f'"x@{EVIL}" <a@{GOOD}>', f"a@{GOOD}"), (f"<@{EVIL}:a@{GOOD}>", None),
    (f"@{EVIL}:a@{GOOD}", None), (f"<@{EVIL},@b.test:a@{GOOD}>", None),
    (f"a%{EVIL}@{GOOD}", f"a%{EVIL}@{GOOD}"), (f"{EVIL}!a@{GOOD}", f"{EVIL}!a@{GOOD}"),
    (f"a@{GOOD}.", None), (f"a@.{GOOD}", None), (f"a@{GOOD}..", None), ("a@", None), ("@b", None),
    (f"a@{GOOD}>, <b@{EVIL}", None), (f"a@{GOOD},b@{EVIL}", None), (f"a@{GOOD} b@{EVIL}", None),
    (f"g: a@{GOOD};", None), (f"<a@{GOOD}>@{EVIL}", None), (f"<a@{EVIL}> <b@{GOOD}>", None),
    (f"a@{EVIL}\0@{GOOD}", None), (f"a@{GOOD}\0.{EVIL}", None), (f"a@{GOOD}\r\n", None),
    (f"a\\@{EVIL}@{GOOD}", None), (f'"a"@{EVIL}"@{GOOD}', None), (f'"a\\"@{EVIL}"@{GOOD}',
     f'"a\\"@{EVIL}"@{GOOD}'), (f"=?utf-8?q?a=40{EVIL}?=@{GOOD}", None),
    (f"a\uff20{EVIL}@{GOOD}", f"a\uff20{EVIL}@{GOOD}"), (f"a@{EVIL}\uff20{GOOD}", None),
    ("a@g\u043eod.invalid", "a@xn--god-sed.invalid"), ("a@good\u3002invalid", "a@good.invalid"),
    ("a@\u200bgood.invalid", None), ("a@good.invalid\u202e", None), ("a@xn--zzzzzz-.invalid", None),
    ("a@[127.0.0.256]", None), ("a@[127.1]", None), ("a@[0x7f.0.0.1]", None),
    ("a@[127.0.0.1", None),
    ("a@[IPv6:::1%lo]", None), ("a@[x:y]", None), ("a@[127.0.0.1]." + EVIL, None),
    (f"a@{'x' * 64}.test", None), (f"{'x' * 65}@{GOOD}", None), (f"a@{'x.' * 130}test", None),
    (f"a@b_c.{GOOD}", None), (f"a@-b.{GOOD}", None), (f"a@{GOOD}/../{EVIL}", None),
    (f"a@{GOOD}#@{EVIL}", None), (f"a@{GOOD}?x={EVIL}", None), (f"a@{GOOD}:25", None),
    (f"a@{GOOD}|sh", None), (f"|sh@{GOOD}", f"|sh@{GOOD}"), (f"-odi@{GOOD}", f"-odi@{GOOD}"),
    ("a@" + "(" * 10_000 + ")" * 10_000 + GOOD, None), (f"{'(' * 10_000}a@{GOOD}", None),
    (f"{'<' * 10_000}a@{GOOD}{'>' * 10_000}", None),
)  # fmt: skip
_BITS = (
    "a", "b", "@", "@", f"@{GOOD}", f"@{EVIL}", '"', "\\", "(", ")", "<", ">", ",", ";", ":", ".",
    " ", "[", "]", "%", "!", "\u3002", "\uff20", "=?utf-8?q?=40?=", "xn--", "-", "\t",
)  # fmt: skip


def last_at(text: str) -> str:
    """The domain by a reader of its own: quotes, comments and what stands in < > are told apart."""
    if text.endswith(">") and "<" in text:
        text = text[text.rindex("<") + 1 : -1]
    quoted, depth, domain, escaped = False, 0, list[str](), False
    found = False
    for char in text:
        if escaped:
            escaped = False
            continue
        if char == "\\":
            escaped = True
        elif depth == 0 and char == '"':
            quoted = not quoted
        elif not quoted and char in "()":
            depth += 1 if char == "(" else -1
            continue
        elif not quoted and depth == 0 and char == "@":
            found, domain = True, []
            continue
        if found and depth == 0:
            domain.append(char)
    # Spaces round the dots are an old form that the RFC has readers take.
    return "".join(domain).replace(" ", "").replace("\t", "").lower()


def drawn(lot: random.Random) -> str:
    """An address by lot."""
    return "".join(lot.choice(_BITS) for _ in range(lot.randint(2, 9))) + lot.choice(
        (f"@{GOOD}", f"@{EVIL}", "", ">")
    )


def tricks(stand: Stand, plan: Plan) -> Row:
    """All of them as argument and in a header, those taken through the engine."""
    lot = random.Random(plan.seed)
    texts = [*KNOWN, *((drawn(lot), "?") for _ in range(plan.pick(300, 20_000)))]
    findings: list[str] = []
    sent: dict[str, str] = {}
    most, slowest = plan.pick(60, 600), 0.0
    for (text, key), way in itertools.product(texts, ("argument", "header")):
        started = time.process_time()
        try:
            domains = _domains(stand, text, way, sent if len(sent) < most else None)
        except InvalidMessage:
            domains = []
        except Exception as error:
            findings.append(f"{way} {text[:60]!r}: {type(error).__name__}: {error}"[:200])
            continue
        slowest = max(slowest, time.process_time() - started)
        if way == "argument" and key is None and domains:
            findings.append(f"{text[:60]!r} was taken, for {domains}")
        if way == "argument" and key not in (None, "?") and domains != [_end(str(key))]:
            findings.append(f"{text[:60]!r} has {domains}")
        if len(domains) == 1 and domains[0].isascii() and text.isascii() and (
            "," not in text and ";" not in text and domains[0] != last_at(text)
        ):  # fmt: skip
            findings.append(f"{way} {text[:60]!r}: {domains}, not {last_at(text)!r}")
    eventually(
        lambda: not stand.engine.rows(
            "SELECT 1 FROM recipients WHERE status NOT IN ('delivered', 'failed') LIMIT 1"
        ), DEADLINE_S * 2, what="the end of each",
    )  # fmt: skip
    for id, text in sent.items():
        for row in stand.engine.rows(
            "SELECT address, domain FROM recipients WHERE message_id = ?", id
        ):
            if row.domain != _end(row.address):
                findings.append(f"{text[:60]!r} was routed to {row.domain}")
    return Row(
        case="address tricks: two @, comments, routes, quotes, look-alikes, literals, by lot",
        wanted=WANTED, seen=WANTED if not findings else "something else", tried=2 * len(texts),
        cpu_s=slowest, findings=tuple(findings),
    )  # fmt: skip


def _end(address: str) -> str:
    return address.rpartition("@")[2]


def _domains(stand: Stand, text: str, way: str, sent: dict[str, str] | None) -> list[str]:
    """Domains that an address is taken for."""
    from datetime import UTC, datetime

    from mailstrom.message import compose

    message: Message[str, str] = Message()
    message["From"], message["Subject"] = "a@sender.test", "s"
    message["To"] = "c@other.invalid" if way == "argument" else text
    message.set_payload("x\n")
    options = {"recipients": [text]} if way == "argument" else {}
    prepared = compose(message, now=datetime.now(UTC), id_domain_fallback="x.test", **options)  # type: ignore[arg-type]
    domains = [_end(key) for key in prepared.recipients]
    # Nobody outside is asked for, and no literal is called on.
    if sent is not None and all(domain.endswith(".invalid") for domain in domains):
        sent[stand.engine.ms.send(message, **options)] = text  # type: ignore[arg-type]
    return domains


# Shapes

SHAPES: dict[str, str] = {
    "comments 10,000 deep in To": "raw(b'To: ' + b'(' * 10000 + b')' * 10000 + b' c@d.test')",
    "comments of 1 MB in To": "put('To', '(' * (1 << 19) + ')' * (1 << 19) + ' c@d.test')",
    "1 MB of ( in Content-Type": "put('Content-Type', 'text/plain; ' + '(' * (1 << 20))",
    "1 MB of < in From": "put('From', '<' * (1 << 20))",
    "1 MB of quotes in To": "put('To', '\"' * (1 << 20))",
    "1 MB of commas in To": "put('To', ',' * (1 << 20) + 'c@d.test')",
    "1 MB of encoded-words": "put('X-Note', '=?utf-8?q?a?= ' * (1 << 16))",
    "1 MB of backslashes": "put('To', '\"' + chr(92) * (1 << 20) + '\" <c@d.test>')",
    "1 MB of spaces": "put('Subject', 'x' + ' ' * (1 << 20) + 'y')",
    "1 MB of Message-ID": "put('Message-ID', '<' * (1 << 20) + 'a@b>')",
    "1 MB of parameters": "put('Content-Type', 'text/plain' + '; a*0=x' * (1 << 17))",
    "groups 100,000 deep": "put('To', 'g:' * 100000 + 'c@d.test' + ';' * 100000)",
    "100,000 header lines": "raw(b'\\r\\n'.join(b'X-%d: y' % n for n in range(100000)))",
    "100,000 folds": "raw(b'Subject: x' + b'\\r\\n y' * 100000)",
    "100,000 fields of an object": "many(100000)",
    "multiparts 10,000 deep": "deep(10000)",
    "messages 10,000 deep": "deep(10000, 'message/rfc822')",
    "100,000 parts": "parts(100000)",
    "a multipart that holds itself": "circle()",
    "octets of multiparts 10,000 deep": "rawdeep(10000)",
    "1,000,000 recipients in To": "put('To', ', '.join(f'c{n}@d.test' for n in range(1000000)))",
    "1,000,000 recipients=": "given(f'c{n}@d.test' for n in range(1000000))",
}
MOST_MEMORY, MOST_CPU_S = 600 * MIB, 15.0


def shapes(plan: Plan) -> Iterator[Row]:
    """Each shape in a child; the short form tries some."""
    wanted = "taken or refused in words, in bounded time and memory"
    names = list(SHAPES) if plan.long else [*list(SHAPES)[::3], "multiparts 10,000 deep"]
    findings: list[str] = []
    cpu_s, memory = 0.0, 0
    for name in names:
        said = shape(SHAPES[name])
        cpu_s, memory = max(cpu_s, float(said["cpu_s"])), max(memory, int(said["memory"]))
        plan.say(f"{name}: {said}")
        if said["seen"] not in ("taken", "refused"):
            findings.append(f"{name}: {said['seen']}")
        if said["memory"] > MOST_MEMORY or said["cpu_s"] > MOST_CPU_S:
            findings.append(f"{name}: {said['cpu_s']:.1f} s, {said['memory'] // MIB} MiB")
    yield Row(
        case="shapes without measure: nesting, parts, fields, folds, recipients, headers of 1 MB",
        wanted=wanted, seen=wanted if not findings else "something else", tried=len(names),
        cpu_s=cpu_s, memory=memory, findings=tuple(findings),
    )  # fmt: skip


def shape(made: str) -> dict[str, float | int | str]:
    """What a child says of one shape."""
    try:
        done = subprocess.run(
            command("tests.hostile.input_child", made), cwd=ROOT,
            env=environment(), capture_output=True, timeout=LIMIT_S, check=False,
            start_new_session=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"seen": "no end", "cpu_s": LIMIT_S, "memory": 0}
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        return {"seen": f"exit {done.returncode}: {''.join(last)[:150]}", "cpu_s": 0, "memory": 0}
    found: dict[str, float | int | str] = json.loads(done.stdout)
    return found
