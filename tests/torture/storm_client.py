"""A client of a storm: composes, sends one by one as it is allowed, writes down what it knows.

Usage: ``python -P storm_client.py STORE RECORD SEED COUNT DOMAIN...``. Each line of its standard
input is a number: how many messages it may have sent by then. Before ``send()`` it appends
``["begun", number, ...]`` to RECORD, and ``["accepted", number, id]`` after it returned, each with
one write, so that a killed client leaves whole lines. Started again on the same RECORD it goes on:
what was begun and got no answer is sent again if it has an idempotency key, else left as it is.
It ends with 0 after COUNT messages. Imports nothing of ``tests``: it runs by path.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from mailstrom import Mailstrom

SPREAD = 10
"""One message in so many goes to three recipients; one in two has an idempotency key."""

RARE = 200
"""One message in so many is large: stored in several chunks."""
LARGE_LINES = 4_000
"""Of 72 octets each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """A message to be sent, the same for the same seed and number."""

    raw: bytes
    message_id: str
    recipients: tuple[str, ...]
    key: str | None


def compose(seed: str, number: int, domains: Sequence[str]) -> Composed:
    """Message ``number``: bytes as they must arrive, of random length, with lines of dots."""
    dice = random.Random(f"{seed} {number}")
    domain = dice.choice(domains)
    names = ("a", "b", "c") if number % SPREAD == SPREAD - 1 else ("a",)
    recipients = tuple(f"{name}{number}@{domain}" for name in names)
    message_id = f"<{seed}.{number}@storm.test>"
    lines = [
        "From: storm@sender.test",
        f"To: {', '.join(recipients)}",
        f"Subject: {seed} {number}",
        f"Message-ID: {message_id}",
        "Date: Fri, 20 Nov 2026 12:00:00 +0000",
        "",
        *(f".{line}" for line in range(dice.randrange(1, 200))),
        *(
            f"{dice.getrandbits(280):070x}"
            for _ in range(LARGE_LINES * (number % RARE == RARE // 2))
        ),
        "",
    ]
    raw = "\r\n".join(lines).encode()
    key = f"{seed}.{number}" if dice.random() < 0.5 else None
    return Composed(raw=raw, message_id=message_id, recipients=recipients, key=key)


def _known(record: str) -> tuple[int, bool]:
    """How many messages were begun before, and whether the last of them was answered."""
    begun, answered = 0, True
    if os.path.exists(record):
        with open(record, encoding="utf-8") as lines:
            for line in lines:
                what, number = json.loads(line)[:2]
                begun, answered = number + 1, what == "accepted"
    return begun, answered


def main(store: str, record: str, seed: str, count: str, *domains: str) -> int:
    """Send what is missing of ``count`` messages; 3 if the harness is gone."""
    begun, answered = _known(record)
    descriptor = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def note(*facts: object) -> None:
        os.write(descriptor, (json.dumps(facts) + "\n").encode())

    allowed = 0
    with Mailstrom(store, timeout=60.0) as ms:
        if not answered:
            last = compose(seed, begun - 1, domains)
            if last.key is not None:
                note("accepted", begun - 1, ms.send(last.raw, idempotency_key=last.key))
        for number in range(begun, int(count)):
            while number >= allowed:
                line = sys.stdin.readline()
                if not line:
                    return 3
                allowed = int(line)
            one = compose(seed, number, domains)
            digest = hashlib.sha256(one.raw).hexdigest()
            note("begun", number, one.message_id, one.recipients, digest)
            note("accepted", number, ms.send(one.raw, idempotency_key=one.key))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
