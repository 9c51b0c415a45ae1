"""Composes one message without measure, and tells what that cost.

``python -P -m tests.hostile.input_child EXPRESSION`` is given one of ``input_addresses.SHAPES``, an
expression in the functions below, and prints a line of JSON. The process is bounded in memory.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from email.message import Message
from typing import Any

from mailstrom.errors import InvalidMessage
from mailstrom.message import compose
from tests.hostile.meter import Meter

Made = tuple[Any, dict[str, Any]]
BOUND = 2 << 30
LONGEST_ERROR = 1_000


def plain() -> Message[Any, Any]:
    """A small message."""
    message: Message[Any, Any] = Message()
    message["From"], message["To"], message["Subject"] = "a@b.test", "c@d.test", "s"
    message.set_payload("x")
    return message


def put(name: str, value: str) -> Made:
    """One field with a value."""
    message = plain()
    del message[name]
    message[name] = value
    return message, {}


def many(count: int) -> Made:
    """So many fields."""
    message = plain()
    for number in range(count):
        message[f"X-{number}"] = "y"
    return message, {}


def raw(lines: bytes) -> Made:
    """A finished message with these lines in its header."""
    to = b"" if b"To: " in lines else b"To: c@d.test\r\n"
    return b"From: a@b.test\r\n" + to + lines + b"\r\n\r\nx\r\n", {}


def rawdeep(depth: int) -> Made:
    """The same with multiparts within each other."""
    kind = b"Content-Type: multipart/mixed; boundary=b%d\r\n"
    body = b"".join(b"--b%d\r\n" % n + kind % (n + 1) + b"\r\n" for n in range(depth))
    head = b"From: a@b.test\r\nTo: c@d.test\r\n" + kind % 0
    return head + b"\r\n" + body + b"\xc3\xbc\r\n", {}


def deep(depth: int, kind: str = "multipart/mixed") -> Made:
    """An object of parts within each other."""
    inner = whole = plain()
    for _ in range(depth):
        del inner["Content-Type"]
        inner["Content-Type"] = kind
        part: Message[Any, Any] = Message()
        inner.set_payload([part])
        inner = part
    inner.set_payload("x")
    return whole, {}


def parts(count: int) -> Made:
    """An object of parts beside each other."""
    whole = plain()
    whole["Content-Type"] = "multipart/mixed"
    leaves = []
    for _ in range(count):
        leaf: Message[Any, Any] = Message()
        leaf.set_payload("x")
        leaves.append(leaf)
    whole.set_payload(leaves)
    return whole, {}


def circle() -> Made:
    """A part that is the whole."""
    whole = plain()
    whole["Content-Type"] = "multipart/mixed"
    whole.set_payload([whole])
    return whole, {}


def given(addresses: Iterable[str]) -> Made:
    """Recipients by argument."""
    return plain(), {"recipients": list(addresses)}


def main() -> None:
    """Compose it, and tell."""
    resource.setrlimit(resource.RLIMIT_AS, (BOUND, BOUND))
    message, options = eval(sys.argv[1])
    meter = Meter()
    try:
        compose(message, now=datetime.now(UTC), id_domain_fallback="x.test", **options)
        seen = "taken"
    except InvalidMessage as error:
        told = len(str(error)) < LONGEST_ERROR and bool(error.rule)
        seen = "refused" if told else "refused in no words"
    print(json.dumps({"seen": seen, "cpu_s": meter.cpu_s, "memory": meter.memory}))


if __name__ == "__main__":
    main()
