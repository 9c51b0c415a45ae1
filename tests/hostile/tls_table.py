"""What must become of a message at each host of this group, by policy: the table.

Contract. ``EXPECTED`` is written from the documented policy (``docs/design/failure-policy.md``,
decision 0013, RFC 3207, RFC 7435, RFC 8314), not from what the engine does. A line is a case, then
a word for each of ``COLUMNS``: ``none`` (TLS not used), ``may`` (opportunistic), ``must``
(required), ``sure`` (required, certificate and name verified), ``implicit``, ``implicit+`` (with
verification). A dash: not tried, since it would try nothing new, or cannot be. Where the wire
decides by a hair between outcomes that are all right, the word is one of ``EITHER``.

A message sent with ``require_tls`` is ``asked`` for under ``may`` where others go in ``clear``.

``WORDS`` says what each word stands for, fact by fact: for a domain whose only host it is the
recipient's status, reason, doubt, attempts charged, and why the site waits; whether the next host
was asked where there is one; whether TLS was reached; how the session ended (None: any way).
"""

from __future__ import annotations

from typing import NamedTuple

COLUMNS = ("none", "may", "must", "sure", "implicit", "implicit+")

EXPECTED = """
refused by a reply                           clear    clear    host     host     -        -
421, close or reset in answer                clear    host     host     host     -        -
answered by what is no answer                -        host     host     host     -        -
answered by silence                          -        host     host     host     -        -
its EHLO reply comes twice                   -        safe     safe     safe     -        -
220, then no TLS                             -        host     host     host     host     host
not offered                                  clear    clear    host     host     -        -
offered in other letters                     -        tls      tls      tls      -        -
replies in clear behind the 220              -        safe     safe     safe     -        -
the 220 and what is behind it, split         -        safe     safe     safe     -        -
replies in clear within the handshake        -        host     host     host     host     host
SIZE, AUTH and more before TLS alone         -        tls      tls      tls      -        -
too small a SIZE under TLS alone             -        large    large    large    large    large
EHLO under TLS refused, HELO taken           -        tls      tls      tls      tls      tls
EHLO under TLS comes to nothing              -        ehlo     ehlo     ehlo     ehlo     ehlo
STARTTLS offered again under TLS             -        tls      tls      tls      tls      tls
a true certificate                           clear    tls      tls      tls      tls      tls
a certificate that proves nothing            clear    tls      tls      host     tls      host
a long chain, 64 kB of names                 -        tls      tls      tls      tls      tls
a certificate of 200 kB                      -        host     host     host     host     host
a name of control characters                 -        tls      tls      tls      tls      tls
a certificate that cannot be read            -        tls      tls      host     tls      host
TLS 1.0 and 1.1 alone, no common cipher      -        host     host     host     host     host
TLS 1.2 alone, TLS 1.3 alone                 -        tls      tls      tls      tls      tls
a fault at each record, TLS 1.3              -        host     host     host     host     host
a fault at each record, TLS 1.2              -        host     host     host     host     host
garbage for a hello                          -        host     host     host     host     host
octet by octet                               -        tls      tls      tls      tls      tls
another group is asked for                   -        tls      tls      tls      tls      tls
our certificate is demanded, TLS 1.2         -        host     host     host     host     host
our certificate is demanded, TLS 1.3         -        late     late     late     early    early
closes behind the handshake                  -        ehlo     ehlo     ehlo     greeting greeting
breaks off within the body                   -        lost     lost     lost     lost     lost
shuts its window within the body             -        mute     mute     mute     mute     mute
a 5xx within the body, then a close          -        bounced  bounced  bounced  bounced  bounced
a 5xx within the body, then a reset          -        stands   stands   stands   stands   stands
breaks off behind the dot                    -        doubt    doubt    doubt    doubt    doubt
breaks off behind the 250                    -        sent     sent     sent     sent     sent
the 250 in one piece with a bad record       -        taken    taken    taken    taken    taken
a 250 in clear behind the dot                -        doubt    doubt    doubt    doubt    doubt
many tickets, key updates, other records     -        sent     sent     sent     sent     sent
a broken ticket, unknown or absurd records   -        mail     mail     mail     mail     mail
renegotiation demanded, and not done         -        mute     mute     mute     mute     mute
records without end instead of a reply       -        mute     mute     mute     mute     mute
breaks off with whoever resumes a session    -        sent     sent     sent     sent     sent
"""

AUTH = """
credentials taken                            -        -        tls      tls      tls      tls
stripped, and AUTH offered in clear          -        -        host     host     -        -
STARTTLS refused, and AUTH offered in clear  -        -        host     host     -        -
AUTH offered before TLS alone                -        -        auth     auth     -        -
AUTH refused under TLS                       -        -        auth     auth     auth     auth
AUTH breaks off                              -        -        gone     gone     gone     gone
the certificate proves nothing               -        -        tls      host     tls      host
"""


class Facts(NamedTuple):
    """What is seen of a case; see the head of this module."""

    status: str
    reason: str
    doubt: str
    charged: int
    waits: str
    next_host: str
    tls: str
    end: str | None


_HOST = Facts("deferred", "tls", "", 0, "tls", "next", "no TLS", "starttls")
_SENT = Facts("delivered", "", "", 1, "", "first", "TLS", None)
_LOST = Facts("deferred", "remote", "", 1, "", "next", "TLS", "closed")
_EHLO = Facts("deferred", "remote", "", 0, "remote", "next", "TLS", "ehlo")
WORDS = {
    "clear": _SENT._replace(tls="no TLS", end="quit"),
    "tls": _SENT._replace(end="quit"),
    "taken": _SENT,
    "host": _HOST,
    "asked": _HOST._replace(charged=1, waits="", end=None),
    "late": _HOST._replace(tls="TLS", end="ehlo"),
    "early": _HOST._replace(tls="TLS", end="greeting"),
    "ehlo": _EHLO,
    "greeting": _EHLO._replace(end="greeting"),
    "auth": _EHLO._replace(reason="local", waits="local", end="auth"),
    "gone": _EHLO._replace(end="auth"),
    "mail": _LOST._replace(charged=0, waits="remote"),
    "mute": _LOST._replace(end="timeout"),
    "lost": _LOST,
    "bounced": Facts("failed", "bounced", "", 1, "", "first", "TLS", None),
    "large": Facts("failed", "too_large", "", 1, "", "first", "TLS", None),
    "unsure": Facts("deferred", "in_doubt", "in doubt", 1, "", "first", "TLS", "timeout"),
    "doubt": Facts("deferred", "in_doubt", "in doubt", 1, "", "first", "TLS", "closed"),
}
EITHER = {
    # Thrown away with the 220, or taken for a handshake, which then fails.
    "safe": ("tls", "host"),
    # The session may be over before our QUIT.
    "sent": ("tls", "taken"),
    # A reset may destroy under TLS what came before it: see docs/known-issues.md.
    "stands": ("bounced", "lost"),
}
SAID = {
    "clear": "delivered in clear",
    "tls": "delivered under TLS",
    "taken": "delivered under TLS",
    "host": "never in clear: next host, else waits (tls)",
    "asked": "not in clear: next host, else deferred (tls)",
    "late": "next host, else waits (tls)",
    "early": "next host, else waits (tls)",
    "ehlo": "next host, else waits (remote)",
    "greeting": "next host, else waits (remote)",
    "auth": "waits (local)",
    "gone": "waits (remote)",
    "mail": "next host, else waits (remote)",
    "mute": "next host, else deferred (remote)",
    "lost": "next host, else deferred (remote)",
    "bounced": "failed (bounced)",
    "large": "failed (too_large)",
    "unsure": "in doubt, no other host",
    "doubt": "in doubt, no other host",
}


def expected(table: str = EXPECTED) -> dict[str, dict[str, tuple[str, ...]]]:
    """By case, by column: the words that are right."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for line in table.strip().splitlines():
        *case, none, may, must, sure, implicit, verified = line.split()
        cells = (none, may, must, sure, implicit, verified)
        found[" ".join(case)] = {
            column: EITHER.get(cell, (cell,))
            for column, cell in zip(COLUMNS, cells, strict=True)
            if cell != "-"
        }
    return found
