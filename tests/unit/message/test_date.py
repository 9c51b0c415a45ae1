"""Dates: from datetime objects, from text in all its forms; what a naive clock becomes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from email.message import EmailMessage, Message
from email.utils import format_datetime, formatdate, parsedate_to_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.errors import InvalidMessage
from mailstrom.message import compose, parse
from mailstrom.message.date import lenient_date, render_date, strict_date

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def sent(message: Message[Any, Any] | bytes) -> bytes:
    content = compose(message, now=NOW, id_domain_fallback="x.example").content
    (line,) = [x for x in content.split(b"\r\n") if x.startswith(b"Date:")]
    return line.removeprefix(b"Date: ")


def dated(value: object, kind: type[Message[Any, Any]] = EmailMessage) -> Message[Any, Any]:
    message = kind()
    message["From"], message["To"] = "a@b.example", "c@d.example"
    message["Date"] = value
    message.set_payload("x")
    return message


AWARE = datetime(2026, 7, 1, 12, 0, 0, 999_999, tzinfo=timezone(timedelta(hours=-5, minutes=-30)))


@pytest.mark.parametrize("kind", [EmailMessage, Message])
def test_an_aware_datetime_is_sent_with_its_offset(kind: type[Message[Any, Any]]) -> None:
    assert sent(dated(AWARE, kind)) == b"Wed, 01 Jul 2026 12:00:00 -0530"
    assert sent(dated(AWARE.astimezone(UTC), kind)) == b"Wed, 01 Jul 2026 17:30:00 +0000"


@pytest.mark.parametrize("microsecond", [0, 1, 999_999])
def test_a_naive_clock_means_one_thing_at_every_microsecond(microsecond: int) -> None:
    naive = AWARE.replace(tzinfo=None, microsecond=microsecond)
    # EmailMessage makes of it what formatdate() makes of a time: UTC, the zone not told.
    assert sent(dated(naive)) == b"Wed, 01 Jul 2026 12:00:00 -0000"
    with pytest.raises(InvalidMessage) as caught:
        sent(dated(naive, Message))
    assert (caught.value.rule, caught.value.header) == ("date-naive", "Date")


@pytest.mark.parametrize("kind", [EmailMessage, Message])
def test_no_date_before_1900_is_sent(kind: type[Message[Any, Any]]) -> None:
    assert sent(dated(AWARE.replace(year=1900), kind)) == b"Sun, 01 Jul 1900 12:00:00 -0530"
    with pytest.raises(InvalidMessage) as caught:
        sent(dated(AWARE.replace(year=1899), kind))
    assert (caught.value.rule, caught.value.header) == ("date-syntax", "Date")


def test_the_librarys_own_date_texts_pass() -> None:
    # formatdate() writes -0000: UTC, and nothing about where the sender sits.
    assert sent(dated("Fri, 02 Jan 2026 03:04:05 -0000")) == b"Fri, 02 Jan 2026 03:04:05 -0000"
    assert sent(dated(formatdate(0))) == b"Thu, 01 Jan 1970 00:00:00 -0000"
    assert sent(dated(formatdate(0, usegmt=True))) == b"Thu, 01 Jan 1970 00:00:00 +0000"
    assert sent(dated(formatdate(0, usegmt=True), Message)) == b"Thu, 01 Jan 1970 00:00:00 +0000"


@pytest.mark.parametrize(
    "text",
    [
        "02 Jan 26 03:04:05 GMT",
        "Fri, 2 Jan 126 03:04:05 (a (nested) comment) UT",
        "Fri,2 Jan 2026 03:04:05 Z",
        "Thu, 1 Jan 2026 22:04:05 EST",
        "Fri, 02 Jan 2026 03:04:05",
        "Fri, 02 Jan 2026 3:04:05 +0000 (UTC)",
    ],
)
def test_obsolete_forms_are_read_and_not_written(text: str) -> None:
    assert lenient_date(text) == NOW
    wire = sent(dated(text, Message)).decode("ascii")
    assert strict_date(wire) == (NOW, len(wire))


@pytest.mark.parametrize(
    "text",
    [
        "", "yesterday", "2026-01-02T03:04:05Z", "Mon, 02 Jan 2026 03:04:05 +0000", "31 Feb 2026",
        "30 Feb 2026 00:00:00 +0000", "02 Jan 2026 24:00:00 +0000", "02 Jan 2026 03:04:61 +0000",
        "02 Jan 2026 03:04:05 +0099", "02 Jan 2026 03:04:05 +2400", "02 Jan 123456 00:00 +0000",
        "02 Jan 2026 03:04:05 +0000 x", "02 Jän 2026 03:04:05 +0000", "0000 Jan 2026 00:00 +0000",
        "31 Dec 1899 23:59:59 +0000", "1 Jan 0026 00:00:00 +0000",
    ],
)  # fmt: skip
def test_what_is_no_date_is_refused_by_name(text: str) -> None:
    assert lenient_date(text) is None
    with pytest.raises(InvalidMessage) as caught:
        sent(dated(text, Message))
    assert (caught.value.rule, caught.value.header) == ("date-syntax", "Date")
    octets = f"From: a@b.example\r\nTo: c@d.example\r\nDate: {text}\r\n\r\nx\r\n".encode()
    with pytest.raises(InvalidMessage) as caught:
        sent(octets)
    assert (caught.value.rule, caught.value.header) == ("date-syntax", "Date")


def test_bytes_keep_the_date_they_came_with() -> None:
    octets = b"From: a@b.example\r\nTo: c@d.example\r\nDate: 2 Jan 26 03:04 GMT (x)\r\n\r\nx\r\n"
    assert sent(octets) == b"2 Jan 26 03:04 GMT (x)"


def test_a_resent_block_without_a_date_gets_one() -> None:
    message = dated(NOW)
    message["Resent-From"], message["Resent-To"] = "e@f.example", "g@h.example"
    content = compose(message, now=NOW, id_domain_fallback="x.example").content
    (block,) = parse(content).resent
    assert block.date == NOW
    again = compose(content, now=NOW, id_domain_fallback="x.example")
    assert (again.content, again.recipients) == (content, ("g@h.example",))


def test_a_naive_datetime_is_never_rendered() -> None:
    with pytest.raises(ValueError, match="naive"):
        render_date(NOW.replace(tzinfo=None))


OFFSETS = st.integers(-86_399, 86_399).map(lambda s: timezone(timedelta(seconds=s)))


@given(st.integers(0, 250_000_000_000), OFFSETS)
def test_every_moment_comes_back(seconds: int, zone: timezone) -> None:
    moment = datetime.fromtimestamp(seconds, zone)
    text = render_date(moment)
    assert strict_date(text) == (moment, len(text))
    assert lenient_date(text) == moment
    assert parsedate_to_datetime(text) == moment
    if zone.utcoffset(None).seconds % 60 == 0:
        # The library agrees, but for the sign of a zero offset that is not UTC's own.
        assert text.rpartition(" ")[0] == format_datetime(moment).rpartition(" ")[0]


@given(st.text(max_size=40))
def test_any_text_is_a_date_or_none(text: str) -> None:
    found = lenient_date(text)
    assert found is None or found.tzinfo is not None
