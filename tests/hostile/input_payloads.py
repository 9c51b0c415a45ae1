"""Texts that mean no good: line ends of every kind, and what one would like to have behind them."""

from __future__ import annotations

import random

EVIL = "x@evil.invalid"
BREAKS = (
    "\r\n", "\n", "\r", "\r\n\r\n", "\n\n", "\r\n ", "\r\n \r\n", "\n\t\n", "\r\r\n", "\n\r", "\0",
    "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\r\n.\r\n", "\n.\n", "\r.\r",
    "\ud80d\udc0a", "\udc0d\udc0a", "\ud800", "\udcff", "\u202e", "\u2066", "\u200f", "\ufeff",
    "\x1b]52;c;eA==\x07", "\x9b2J", "\b", "\x7f", "\N{FULLWIDTH COLON}",
    "\u560d\u560a", "\uff0d\uff0a", "%0d%0a", "\\r\\n", "&#13;&#10;",
)  # fmt: skip
QUIET = tuple(one for one in BREAKS if not any(char in one for char in "\r\n\0"))
TAILS = (
    f"Bcc: {EVIL}", f"RCPT TO:<{EVIL}>", "X-Evil: 1", "\r\nevil body", "MAIL FROM:<>\r\n",
    "DATA\r\n",
    "QUIT\r\n", "", "Content-Type: text/html",
    f"\r\n.\r\nMAIL FROM:<a@b>\r\nRCPT TO:<{EVIL}>\r\nDATA\r\n",
    "--b1\r\nX-Evil: 1\r\n\r\nx", f"> SMTPUTF8\r\nRCPT TO:<{EVIL}", f"<{EVIL}>", f'" <{EVIL}>, "',
)  # fmt: skip
WORDS = (
    "=?utf-8?q?a=0D=0ABcc=3A_x=40evil=2Einvalid?=", "=?utf-8?b?DQpCY2M6IHhAZXZpbC5pbnZhbGlk?=",
    "=?utf-8?q?=00?=", "=?utf-7?q?+AA0ACg-Bcc:?=", "=?utf-16?b?//4NAAoA?=", "=?x?q?\r\nBcc:?=",
    "=?utf-8?q?=E2=80=A8Bcc=3A?=", "=?utf-8?q?\n?=", "=?utf-8?q?" + "=0A" * 300 + "?=",
    "=?utf-8?q?a?=\r\n =?utf-8?q?=0ABcc?=", "=?utf-8?q?x=40evil=2Einvalid=2C?=",
)  # fmt: skip
LONG = (".", "x", "x ", "\u00fc", "=?", ".\r\n", "(", '"', "\t", ", ", "\U0001f600", "a\u0300")
MIB = 1 << 20


def huge(lot: random.Random) -> str:
    """One of 1 MB."""
    unit = lot.choice(LONG)
    return unit * (MIB // len(unit))


def drawn(lot: random.Random, number: int) -> str:
    """One by lot; of the line ends each has its turn by the number."""
    match lot.randrange(8):
        case 0:
            return lot.choice(WORDS) + lot.choice(("", " ", "\r\n ")) + lot.choice(TAILS)
        case 1:
            unit = lot.choice(LONG)
            return unit * (10_000 // len(unit)) + lot.choice(("", *BREAKS)) + lot.choice(TAILS)
        case 2:
            return lot.choice((".", "..", ".\r\n", "\r\n.", "-- ", "--b1", "From ")) + lot.choice(
                ("", *BREAKS)
            )
        case _:
            # One that many refuse at sight, or one that may be taken: the second says more.
            some = BREAKS if lot.random() < 0.4 else QUIET
            tails = TAILS if some is BREAKS else [one for one in TAILS if "\r" not in one]
            again = lot.choice(("", "", "", lot.choice(some)))
            first = some[number % len(some)]
            return lot.choice(("", "x", "x ")) + first + lot.choice(tails) + again
