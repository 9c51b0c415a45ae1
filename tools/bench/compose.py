#!/usr/bin/env python3
"""What composing a message costs, beside EmailMessage.as_bytes: tools/bench/compose.py [seconds].

Run with the checkout's interpreter. Prints minimum and median of repeats in microseconds; the time
per row is bounded (one second by default). For orientation: nothing asserts these figures.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email import policy
from email.message import EmailMessage
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # -P leaves it out

from mailstrom.message import compose, fingerprint, parse

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def built(size: int, *, plain: bool) -> EmailMessage:
    """A message of about ``size`` octets, with or without an HTML part and umlauts."""
    line = "The quick brown fox jumps over the lazy dog, and then some more.\n"
    message = EmailMessage()
    message["From"] = "Ann Bee <ann@example.com>"
    message["To"] = "Bob <bob@example.org>, carl@example.net"
    message["Subject"] = "Hello" if plain else "Grüße aus Köln"
    message["Date"] = NOW
    message["Message-ID"] = "<1@example.com>"
    message.set_content((line * (size // len(line) + 1))[:size])
    if not plain:
        message.add_alternative(f"<p>{line}</p>", subtype="html")
    return message


def measured(function: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Minimum and median time of a call, in microseconds."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        for _ in range(20):
            function()
        times.append((time.perf_counter() - start) / 20 * 1e6)
    return min(times), statistics.median(times)


def main(arguments: list[str]) -> int:
    """Prints the table."""
    seconds = float(arguments[0]) if arguments else 1.0
    print(f"{'message':<28}{'call':<28}{'min us':>8}{'median':>8}")
    for size in (1024, 10_240, 102_400):
        for plain in (True, False):
            message = built(size, plain=plain)
            octets = message.as_bytes(policy=policy.SMTP)
            prepared = compose(octets, now=NOW, id_domain_fallback="x.example")
            calls: dict[str, Callable[[], object]] = {
                "compose(bytes)": lambda o=octets: compose(
                    o, now=NOW, id_domain_fallback="x.example"
                ),
                "compose(EmailMessage)": lambda m=message: compose(
                    m, now=NOW, id_domain_fallback="x.example"
                ),
                "as_bytes(policy=SMTP)": lambda m=message: m.as_bytes(policy=policy.SMTP),
                "parse(bytes)": lambda o=octets: parse(o),
                "fingerprint": lambda p=prepared: fingerprint(p),
            }
            name = f"{size // 1024} KiB {'plain' if plain else 'alternative, umlauts'}"
            for call, function in calls.items():
                low, middle = measured(function, seconds)
                print(f"{name:<28}{call:<28}{low:>8.0f}{middle:>8.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
