"""Dates of RFC 5322 section 3.3: text to aware datetimes and back.

Two readers. ``strict_date`` takes what section 3.3 allows; ``lenient_date`` also the obsolete forms
of section 4.3 (named zones, years of two and three digits, comments), which we read and never
write. A zone of -0000 says UTC with an unknown local zone: read as UTC. A leap second is read as
the second before it, for a datetime cannot hold it. Knows nothing of fields or messages.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from functools import cache

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

FIRST_YEAR = 1900  # RFC 5322 section 3.3
FWS = r"(?:[ \t]*\r\n)?[ \t]+"
_NAMES = {name.lower(): number for number, name in enumerate(MONTHS, 1)}
# RFC 5322 section 4.3; military letters and unknown names mean -0000 there.
_ZONES = {
    "ut": 0, "gmt": 0, "utc": 0, "z": 0, "est": -5, "edt": -4, "cst": -6, "cdt": -5,
    "mst": -7, "mdt": -6, "pst": -8, "pdt": -7,
}  # fmt: skip
_COMMENT = re.compile(r"\((?:[^()\\]|\\.)*+\)")


# Compiled at first use: a client that leaves Date to us never pays for them.
@cache
def _strict() -> re.Pattern[str]:
    return re.compile(
        rf"(?:(?:{FWS})?({'|'.join(DAYS)}),)?(?:{FWS})?([0-9]{{1,2}}){FWS}({'|'.join(MONTHS)}){FWS}"
        rf"([0-9]{{4,}}){FWS}([0-9]{{2}}):([0-9]{{2}})(?::([0-9]{{2}}))?{FWS}([+-][0-9]{{4}})",
        re.IGNORECASE,
    )


@cache
def _lenient() -> re.Pattern[str]:
    return re.compile(
        rf"(?:({'|'.join(DAYS)}) ?,? ?)?([0-9]{{1,2}}) ({'|'.join(MONTHS)}) ([0-9]{{2,}}) "
        r"([0-9]{1,2}) ?: ?([0-9]{2})(?: ?: ?([0-9]{2}))?(?: ([+-][0-9]{4}|[A-Za-z]{1,5}))?",
        re.IGNORECASE,
    )


def render_date(moment: datetime) -> str:
    """The date of a field; strftime would follow the locale.

    Args:
        moment: an aware datetime; its own offset is kept, cut to whole minutes.

    Returns:
        For example ``"Fri, 02 Jan 2026 03:04:05 +0000"``.

    Raises:
        ValueError: ``moment`` is naive.
    """
    offset = moment.utcoffset()
    if offset is None:
        raise ValueError("a naive datetime names no moment; give it a tzinfo, for example UTC")
    minutes = int(offset / timedelta(minutes=1))  # towards zero: never a whole day
    if offset != timedelta(minutes=minutes):
        moment = moment.astimezone(timezone(timedelta(minutes=minutes)))
    sign = "-" if minutes < 0 else "+"
    return (
        f"{DAYS[moment.weekday()]}, {moment.day:02} {MONTHS[moment.month - 1]} {moment.year:04} "
        f"{moment.hour:02}:{moment.minute:02}:{moment.second:02} "
        f"{sign}{abs(minutes) // 60:02}{abs(minutes) % 60:02}"
    )


def strict_date(text: str, at: int = 0) -> tuple[datetime, int] | None:
    """Read a date-time of section 3.3 at an offset.

    Args:
        text: the field's value; may be folded.
        at: where the date begins.

    Returns:
        The aware moment and the offset behind it, or None: not a date, or one that never was.
    """
    match = _strict().match(text, at)
    if match is None:
        return None
    moment = _moment(match, match[8])
    return None if moment is None else (moment, match.end())


def lenient_date(text: str) -> datetime | None:
    """Read a whole value, obsolete forms included.

    Args:
        text: the unfolded value.

    Returns:
        The aware moment, or None: no reader could be certain of it.
    """
    if "(" in text:
        for _ in range(32):
            text, found = _COMMENT.subn(" ", text)
            if not found:
                break
    match = _lenient().fullmatch(" ".join(text.split()))
    if match is None:
        return None
    zone = match[8] or "-0000"
    if zone[0] not in "+-":
        hours = _ZONES.get(zone.lower(), 0)
        zone = f"{'-' if hours < 0 else '+'}{abs(hours):02}00"
    return _moment(match, zone)


def _moment(match: re.Match[str], zone: str) -> datetime | None:
    year = int(match[4]) if len(match[4]) < 6 else 0
    if len(match[4]) > 3 and year < FIRST_YEAR:
        return None
    if len(match[4]) == 2:
        year += 2000 if year < 50 else 1900
    elif len(match[4]) == 3:
        year += 1900
    minutes = int(zone[3:])
    if minutes > 59:
        return None
    offset = timedelta(hours=int(zone[1:3]), minutes=minutes)
    seconds = int(match[7] or 0)
    try:
        moment = datetime(
            year, _NAMES[match[3].lower()], int(match[2]), int(match[5]), int(match[6]),
            59 if seconds == 60 else seconds,
            tzinfo=UTC if not offset else timezone(-offset if zone[0] == "-" else offset),
        )  # fmt: skip
    except ValueError:
        return None
    if match[1] is not None and match[1].title() != DAYS[moment.weekday()]:
        return None
    return moment
