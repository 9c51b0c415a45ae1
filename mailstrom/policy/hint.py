"""How long a server asks us to wait, read out of its own words.

Greylisting servers (RFC 6647) name a delay in free text: ``try again in 300 seconds``,
``retry after 00:04:57``. The text is foreign: it is cut, then scanned word by word in one pass; no
regular expression, so no text can make it slow. Knows no reply code; ``outcome`` asks only for
temporary replies.
"""

from __future__ import annotations

from itertools import pairwise

MARGIN_S = 10.0
CAP_S = 3600.0
MAX_SCAN = 1024

_CUES = ("again", "retry", "greylist", "graylist", "wait", "delay", "defer", "later", "after")
_UNITS = {
    "s": 1, "sec": 1, "secs": 1, "second": 1, "seconds": 1,
    "m": 60, "min": 60, "mins": 60, "minute": 60, "minutes": 60,
    "h": 3600, "hr": 3600, "hrs": 3600, "hour": 3600, "hours": 3600,
}  # fmt: skip
_PUNCTUATION = ".,;!?()[]{}<>\"'="


def retry_hint_s(text: str) -> float | None:
    """Seconds to wait by the server's own words, plus ten, at most an hour.

    Args:
        text: the reply's text.

    Returns:
        None where no delay is named. A number counts only with a unit (or as ``mm:ss``,
        ``hh:mm:ss``) and only after a word such as "again", "retry" or "greylisted", so that
        sizes, ports and dates are not taken for delays.
    """
    words = [word.strip(_PUNCTUATION) for word in text[:MAX_SCAN].lower().split()]
    cued = False
    for word, following in pairwise([*words, ""]):
        if cued:
            seconds = _clock(word)
            if seconds is None:
                seconds = _counted(word, following)
            if seconds is not None:
                return min(seconds + MARGIN_S, CAP_S)
        cued = cued or any(cue in word for cue in _CUES)
    return None


def _clock(word: str) -> float | None:
    parts = word.split(":")
    if not 2 <= len(parts) <= 3 or not all(_digits(part, 2) for part in parts):
        return None
    seconds = 0
    for part in parts:
        seconds = seconds * 60 + int(part)
    return float(seconds)


def _counted(word: str, following: str) -> float | None:
    number = word.rstrip("abcdefghijklmnopqrstuvwxyz")
    if not _digits(number, 6):
        return None
    scale = _UNITS.get(word[len(number) :] or following)
    return None if scale is None else float(int(number) * scale)


def _digits(text: str, most: int) -> bool:
    return 0 < len(text) <= most and text.isascii() and text.isdigit()
