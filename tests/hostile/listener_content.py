"""Contents and greetings that are made to hurt: sizes, headers, loops, names with tricks in them.

Contract. What can be carried is taken, and its header is what was sent below one Received field;
what cannot is refused with the reply that the listener's page gives. Memory is that of the one
process that reads it.
"""

from __future__ import annotations

import email
import email.policy
from collections.abc import Callable, Iterator

from tests.hostile.gate import SIZE, Gate
from tests.hostile.table import Row
from tests.support.talk import Talk, queued
from tests.support.trial import Plan

HEAD = b"From: a@x.test\r\nTo: b@y.test\r\nDate: Sat, 21 Nov 2026 12:00:00 +0000\r\n"
ID = b"Message-ID: <1@x.test>\r\n"
TAKEN = "250 2.0.0"
NAMES = (
    "(((", ")))", ")(", "a;b", "a\\", '"', "'", "a" * 255, "[127.0.0.1]", "[IPv6:::1]",
    "=?utf-8?q?x?=", "a,b", "<a@b>", "Received:", "%0d%0aBcc:", "\\r\\nBcc:", "x@y", "-", "...",
    "(a(b(c", "a)\\(b",
)  # fmt: skip


def _content(gate: Gate, content: bytes, *, params: str = "") -> str:
    """Code and enhanced code of the reply to a content, the first three of its words."""
    with gate.talk() as talk:
        talk.ehlo()
        begun = talk.say(f"MAIL FROM:<a@x.test>{params}")
        if begun.code != 250:
            return f"{begun.code} {begun.text.split()[0]} at MAIL"
        talk.say("RCPT TO:<b@y.test>")
        talk.say("DATA")
        for at in range(0, len(content), 1 << 16):
            talk.send(content[at : at + (1 << 16)])
        talk.send(b".\r\n")
        reply = talk.reply()
        alive = talk.say("NOOP").code
    gate.heard(f"{reply.code} {reply.text}\r\n".encode())
    found = f"{reply.code} {reply.text.split()[0]}"
    return found if alive == 250 else f"{found}, then {alive}"


_RECEIVED = b"Received: from x by y; Sat, 21 Nov 2026 12:00:00 +0000\r\n"
CONTENTS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "larger than SIZE, announced": ("552 5.3.4 at MAIL", bytes, f" SIZE={SIZE + 1}"),
    "larger than SIZE, not announced": (
        "552 5.3.4", lambda: HEAD + b"\r\n" + (b"x" * 78 + b"\r\n") * (SIZE // 70), "",
    ),
    "larger than SIZE, said to be small": (
        "552 5.3.4", lambda: HEAD + b"\r\n" + (b"x" * 78 + b"\r\n") * (SIZE // 70), " SIZE=10",
    ),
    "a line of 900 KB": (TAKEN, lambda: HEAD + b"\r\n" + b"x" * 900_000 + b"\r\n", ""),
    "a header of 900 KB": (
        TAKEN, lambda: HEAD + ID + b"X-Much: a\r\n" * 80_000 + b"\r\nx\r\n", "",
    ),
    "a header field of 900 KB": (
        TAKEN, lambda: HEAD + ID + b"X-Much: a\r\n" + b" folded\r\n" * 100_000 + b"\r\nx\r\n", "",
    ),
    "a million empty lines": ("552 5.3.4", lambda: b"\r\n" * 1_000_000, ""),
    "nothing at all": (TAKEN, bytes, ""),
    "a loop: 101 Received fields": ("554 5.4.6", lambda: _RECEIVED * 101 + HEAD + b"\r\nx\r\n", ""),
    "NUL in the text": (TAKEN, lambda: HEAD + ID + b"\r\na\0b\r\n", ""),
    "NUL in the header": ("554 5.6.0", lambda: HEAD + ID + b"Subject: a\0b\r\n\r\nx\r\n", ""),
    "octets that are no UTF-8 in the header": (
        TAKEN, lambda: HEAD + ID + b"Subject: \xff\xfe\r\n\r\nx\r\n", "",
    ),
    "an option of ours that is none": (
        "554 5.6.0", lambda: HEAD + ID + b"X-Mailstrom-Send-At: never\r\n\r\nx\r\n", "",
    ),
    "an option of ours twice": (
        "554 5.6.0",
        lambda: HEAD + ID + b"X-Mailstrom-Tags: a\r\nX-Mailstrom-Tags: b\r\n\r\nx\r\n", "",
    ),
}  # fmt: skip


RELAY = {
    "a line of 900 KB": "554 5.6.0",
    "NUL in the text": "554 5.6.0",
    "an option of ours that is none": TAKEN,
    "an option of ours twice": TAKEN,
}
"""Where nothing is changed: what cannot be handed on is refused, options are anybody's fields."""


def relayed(gate: Gate, plan: Plan) -> Iterator[Row]:
    """Contents where the role is relay."""
    for name, (wanted, make, params) in CONTENTS.items():
        yield gate.measured(
            f"content, as a relay: {name}", RELAY.get(name, wanted),
            lambda make=make, params=params: _content(gate, make(), params=params),  # type: ignore[misc]
        )  # fmt: skip


def run(gate: Gate, plan: Plan) -> Iterator[Row]:
    """Contents, then names."""
    for name, (wanted, make, params) in CONTENTS.items():
        yield gate.measured(
            f"content: {name}", wanted,
            lambda make=make, params=params: _content(gate, make(), params=params),  # type: ignore[misc]
        )  # fmt: skip
    yield gate.measured(
        "EHLO with tricks in the name", NAMED, lambda: _named(gate), times=len(NAMES)
    )
    yield gate.measured(
        "EHLO with a name that is none", "500 or 501", lambda: _unnamed(gate), times=len(_NONE)
    )
    yield gate.measured(
        "recipients with tricks in the name", NAMED, lambda: _addressed(gate), times=len(LOCALS)
    )


NAMED = "taken, one Received field on top, below it what was sent"
_NONE = (
    "", "a b", "a\tb", "é", "\x7f", "a" * 300, "x Received: y", "x\0y", "x\x1b[2J",
)  # fmt: skip
LOCALS = (
    '"a>b"', '"a<b"', '"a b"', '"a\\\\b"', '"a\\"b"', "a+b", "!#$%&'*/=?^_`{|}~-", '"(x)"', '"; x"',
    '"=?utf-8?q?x?="', "a.b.c", '"a..b"', '"Bcc: c@d"',
)  # fmt: skip


def _kept(gate: Gate, id: str, sent: bytes) -> str:
    """What is wrong with a stored message; "" for nothing."""
    kept = gate.engine.ms.raw(id)
    if not kept.endswith(sent):
        return f"the end is {kept[-len(sent) :][:80]!r}"
    added = kept[: -len(sent)]
    parsed = email.message_from_bytes(added + b"\r\n", policy=email.policy.compat32)
    if parsed.keys() != ["Received"] or parsed.get_payload() != "" or parsed.defects:
        return f"added was {added!r}"
    if (
        b"\tby " not in added
        or not added.endswith(b"\r\n")
        or max(map(len, added.split(b"\r\n"))) > 998
    ):
        return f"added was {added!r}"
    return ""


SENT = HEAD + ID + b"\r\nx\r\n"


def _named(gate: Gate) -> str:
    for name in NAMES:
        with gate.talk() as talk:
            assert talk.say(f"EHLO {name}").code == 250, name
            wrong = _kept(gate, _queued(gate, talk, "b@y.test"), SENT)
        if wrong:
            return f"{name}: {wrong}"
    return NAMED


def _addressed(gate: Gate) -> str:
    for local in LOCALS:
        with gate.talk() as talk:
            talk.ehlo()
            wrong = _kept(gate, _queued(gate, talk, f"{local}@y.test"), SENT)
        if wrong:
            return f"{local}: {wrong}"
    return NAMED


def _queued(gate: Gate, talk: Talk, recipient: str) -> str:
    reply = talk.mail(recipient, content=SENT)
    gate.heard(f"{reply.code} {reply.text}\r\n".encode())
    return queued(reply)


def _unnamed(gate: Gate) -> str:
    found = set()
    for name in _NONE:
        with gate.talk() as talk:
            found.add(str(talk.say(f"EHLO {name}").code))
    return " or ".join(sorted(found))
