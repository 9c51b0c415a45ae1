"""What a server offers in its EHLO reply, parsed for a client and rendered for a server.

Contract: keywords are case-insensitive, unknown ones are ignored (RFC 5321 section 4.1.1.1), an
unreadable parameter counts as absent. Extensions known: SIZE (RFC 1870), PIPELINING (2920),
8BITMIME (6152), SMTPUTF8 (6531), CHUNKING (3030), STARTTLS (3207), AUTH (4954, and the old
``AUTH=`` form), ENHANCEDSTATUSCODES (2034), DSN (3461), FUTURERELEASE (4865), MT-PRIORITY (6710),
REQUIRETLS (8689), LIMITS (9422; of a limit given twice the smaller holds).

Must not know: whether an extension is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mailstrom.smtp.reply import visible

# keyword on the wire -> field; in the order in which they are rendered
_FLAGS = {
    "PIPELINING": "pipelining",
    "8BITMIME": "eightbitmime",
    "SMTPUTF8": "smtputf8",
    "CHUNKING": "chunking",
    "STARTTLS": "starttls",
    "ENHANCEDSTATUSCODES": "enhancedstatuscodes",
    "DSN": "dsn",
    "REQUIRETLS": "requiretls",
}

MOST_RAW = 2000
"""It is stored with each session, and a server may say 32 kB each time."""

# RFC 4865 section 3: so many seconds, and until when; both stand there
_SECONDS = re.compile(r"[0-9]{1,9}")

# RFC 9422 section 4: one to six digits, the first no zero; what is none of that is ignored
_LIMIT = re.compile(r"[1-9][0-9]{0,5}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """The extensions of one server, at one moment of one session.

    Args:
        name: the server's own name, first word of the reply.
        size: None = no SIZE extension; 0 = no fixed limit; else the largest content in octets.
        dsn: NOTIFY, ORCPT, RET and ENVID may be said.
        requiretls: REQUIRETLS may be said; a server offers it under TLS alone.
        future_release: seconds for which a message may be held; None: FUTURERELEASE is not offered.
        future_release_until: until when, RFC 3339; what a server renders is told when it is asked.
        mt_priority: the profile of MT-PRIORITY, "" for one that has no name; None: not offered.
        auth: SASL mechanisms, upper case.
        limits: RFC 9422 limits by upper-case name, each at least 1 (sections 3 and 4).
        raw: the reply's lines as sent (unprintables escaped), joined by LF, for ``sessions.ehlo``;
            of a longer one the first ``MOST_RAW`` characters.
    """

    name: str = ""
    size: int | None = None
    pipelining: bool = False
    eightbitmime: bool = False
    smtputf8: bool = False
    chunking: bool = False
    starttls: bool = False
    enhancedstatuscodes: bool = False
    dsn: bool = False
    requiretls: bool = False
    future_release: int | None = None
    future_release_until: str = ""
    mt_priority: str | None = None
    auth: frozenset[str] = frozenset()
    limits: Mapping[str, int] = field(default_factory=dict, hash=False)
    raw: str = ""

    @classmethod
    def parse(cls, reply_lines: Sequence[str]) -> Capabilities:
        """From the lines of a 250 reply to EHLO (``Reply.lines``); a HELO reply gives none."""
        flags: dict[str, bool] = {}
        size: int | None = None
        auth: set[str] = set()
        limits: dict[str, int] = {}
        hold: int | None = None
        until = ""
        priority: str | None = None
        for line in reply_lines[1:]:
            words = line.upper().split()
            if not words:
                continue
            keyword, params = words[0], words[1:]
            if keyword in _FLAGS:
                flags[_FLAGS[keyword]] = True
            elif keyword == "SIZE":
                size = int(params[0]) if params and _is_number(params[0]) else 0
            elif keyword == "AUTH":
                auth.update(params)
            elif keyword.startswith("AUTH="):
                auth.update(word for word in (keyword[5:], *params) if word)
            elif keyword == "FUTURERELEASE":
                if len(params) >= 2 and _SECONDS.fullmatch(params[0]):
                    hold, until = int(params[0]), visible(params[1])
            elif keyword == "MT-PRIORITY":
                priority = visible(params[0]) if params else ""
            elif keyword == "LIMITS":
                for word in params:
                    limit, _, value = word.partition("=")
                    if _LIMIT.fullmatch(value):
                        limits[limit] = min(int(value), limits.get(limit, int(value)))
        words = reply_lines[0].split() if reply_lines else []
        return cls(
            name=visible(words[0]) if words else "",
            size=size,
            auth=frozenset(auth),
            future_release=hold,
            future_release_until=until,
            mt_priority=priority,
            limits=limits,
            raw="\n".join(visible(line) for line in reply_lines)[:MOST_RAW],
            **flags,
        )

    @property
    def most_recipients(self) -> int:
        """RCPT commands of one transaction (RCPTMAX, RFC 9422 section 4.2); 0: not said."""
        return self.limits.get("RCPTMAX", 0)

    @property
    def most_transactions(self) -> int:
        """MAIL commands of one session (MAILMAX, RFC 9422 section 4.1); 0: not said."""
        return self.limits.get("MAILMAX", 0)

    @property
    def most_domains(self) -> int:
        """Domains of one session's recipients (RCPTDOMAINMAX, RFC 9422 section 4.3); or 0."""
        return self.limits.get("RCPTDOMAINMAX", 0)

    def render(self) -> tuple[str, ...]:
        """The lines of the 250 reply to EHLO, for ``render_reply(250, None, *lines)``."""
        lines = [self.name]
        lines += [keyword for keyword, name in _FLAGS.items() if getattr(self, name)]
        if self.size is not None:
            lines.append(f"SIZE {self.size}" if self.size else "SIZE")
        if self.future_release is not None and self.future_release_until:
            lines.append(f"FUTURERELEASE {self.future_release} {self.future_release_until}")
        if self.mt_priority is not None:
            lines.append(f"MT-PRIORITY {self.mt_priority}".rstrip())
        if self.auth:
            lines.append("AUTH " + " ".join(sorted(self.auth)))
        if self.limits:
            lines.append("LIMITS " + " ".join(f"{k}={v}" for k, v in self.limits.items()))
        return tuple(lines)


def _is_number(text: str) -> bool:
    # RFC 1870: up to 20 digits; longer ones are nonsense that would only cost time
    return text.isascii() and text.isdigit() and len(text) <= 20
