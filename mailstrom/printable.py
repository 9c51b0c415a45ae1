"""Foreign text made safe for one line of a log or a terminal.

Remote servers choose their reply texts and users choose subjects, so neither may move a cursor,
forge a log line or hide text. Control characters (C0, DEL, C1), line and paragraph separators,
bidirectional overrides and lone surrogates become visible escapes (``\\x1b``, ``\\u202e``).
Knows nothing of logs, terminals or mail.
"""

from __future__ import annotations

import re

_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def printable(text: str, limit: int = 500) -> str:
    """``text`` on one line, without control characters, at most ``limit`` characters long.

    Args:
        text: anything, also with lone surrogates.
        limit: characters kept; a cut is marked by a final ``…``.
    """
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if _UNSAFE.search(text) is None:
        return text
    escaped = _UNSAFE.sub(_escape, text)
    return escaped if len(escaped) <= limit else escaped[: limit - 1] + "…"
