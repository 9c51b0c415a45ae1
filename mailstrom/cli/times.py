"""Times and spans on the command line: ISO 8601 in UTC, durations as in the configuration.

What a person writes: a moment (``2030-01-31T08:00:00Z``, local without an offset), or a span that
counts from now, forward or back as the option says (``30m``, ``4h``, ``2d``). Knows no command.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import click

from mailstrom.clock import wall_ms
from mailstrom.types import from_ms

_SPAN = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
LONGEST = timedelta(days=36_500)
"""A span of more is a slip of the finger, and beyond what dates can be counted with."""


def now() -> datetime:
    """The present moment, UTC, in whole milliseconds."""
    moment = from_ms(wall_ms())
    assert moment is not None
    return moment


def parse_span(text: str) -> timedelta | None:
    """The span that a text such as ``90s`` or ``4h`` says; None where it says none.

    Raises:
        BadParameter: more than a hundred years.
    """
    match = _SPAN.fullmatch(text)
    if match is None:
        return None
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds > LONGEST.total_seconds():
        raise click.BadParameter(f"{text!r} is too long: at most {LONGEST.days}d")
    return timedelta(seconds=seconds)


def _moment(text: str, sign: int) -> datetime:
    span = parse_span(text.removeprefix("+") if sign > 0 else text)
    try:
        return now() + sign * span if span is not None else _iso(text)
    except (ValueError, OverflowError) as error:
        way = "from now" if sign > 0 else "back from now"
        raise click.BadParameter(
            f"{text!r} is no time: write 2030-01-31T08:00:00Z, 2030-01-31T08:00 (local),"
            f" or a span {way} as 30m, 4h, 2d"
        ) from error


def _iso(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def future(ctx: click.Context, param: click.Parameter, text: str | None) -> datetime | None:
    """Aware UTC datetime of ISO 8601 text (local unless it has an offset), or of a delay."""
    return None if text is None else _moment(text, +1)


def past(ctx: click.Context, param: click.Parameter, text: str | None) -> datetime | None:
    """Aware UTC datetime of ISO 8601 text (local unless it has an offset), or of an age."""
    return None if text is None else _moment(text, -1)


def age(ctx: click.Context, param: click.Parameter, text: str | None) -> timedelta | None:
    """A span, and nothing else."""
    if text is None:
        return None
    span = parse_span(text)
    if span is None:
        raise click.BadParameter(f"{text!r} is no duration: write 90s, 30m, 4h or 30d")
    return span


def ms_of(moment: datetime) -> int:
    """Milliseconds since the epoch of an aware datetime."""
    return round(moment.timestamp() * 1000)
