"""X-Mailstrom- headers: read by the rules of ``send()``, refused by name, never sent on."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.client.sending import SendOptions
from mailstrom.errors import InvalidMessage
from mailstrom.message.option_headers import HEADERS, Options
from mailstrom.message.submission import Trace, relayed, submitted
from mailstrom.types import OnDoubt

NOW = 1_800_000_000_000
TRACE = Trace("mx.example.org", "id7", NOW)
REST = b"From: a@b.example\r\n\r\nbody\r\n"


def options(head: str | bytes, **arguments: int) -> Options:
    octets = head.encode() if isinstance(head, str) else head
    found = submitted(octets + b"\r\n" + REST, "a@b.example", ("c@d.example",), TRACE, **arguments)  # type: ignore[arg-type]
    assert b"mailstrom" not in found.content.lower()
    return found.options


def one(name: str, value: str) -> Options:
    return options(f"X-Mailstrom-{name}: {value}")


def test_all_options_of_send_but_the_envelope_have_a_header() -> None:
    named = {name.removeprefix("X-Mailstrom-").lower().replace("-", "_") for name in HEADERS}
    assert named == SendOptions.__annotations__.keys() - {
        *("sender", "recipients"),
        "notify",  # said by NOTIFY, per recipient
    }


def test_each_is_read() -> None:
    assert one("Idempotency-Key", "order-7").idempotency_key == "order-7"
    assert one("Tags", "a, b ,,a").tags == ("a", "b")
    assert one("Stream", "bulk").stream == "bulk"
    assert one("Priority", "High").priority == 0
    assert one("On-Doubt", "hold").on_doubt is OnDoubt.HOLD
    assert one("Require-TLS", "yes").require_tls is True
    assert one("Require-TLS", "false").require_tls is False
    assert one("Metadata", '{"a": 1, "b": "x", "c": true}').metadata == {
        "a": 1,
        "b": "x",
        "c": True,
    }
    assert one("Send-At", "2030-01-31T08:00:00+01:00").send_ms == 1_896_073_200_000
    assert one("Send-At", "2030-01-31t08:00:00.5z").send_ms == 1_896_076_800_500
    assert one("Send-At", "3600").send_ms == NOW + 3_600_000
    assert one("Send-At", "2001-01-01T00:00:00Z").send_ms == NOW
    assert one("Expires-At", "60").expires_ms == NOW + 60_000
    assert options("Subject: x") == Options()


def test_as_clients_write_them() -> None:
    assert options("x-mailstrom-tags : a,\r\n b").tags == ("a", "b")
    assert one("Tags", "=?utf-8?q?gr=C3=BCn?=").tags == ("grün",)
    assert one("Tags", "grün").tags == ("grün",)
    long = json.dumps({f"key{number}": "v" * 20 for number in range(20)})
    assert one("Metadata", long.replace(", ", ",\r\n ")).metadata == json.loads(long)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("Idempotency-Key", "", "1 to 256"),
        ("Idempotency-Key", "x" * 257, "1 to 256"),
        ("Stream", "x" * 65, "1 to 64"),
        ("Stream", "a\tb", "control"),
        ("Priority", "urgent", "high"),
        ("On-Doubt", "maybe", "retry"),
        ("Require-TLS", "", "true or false"),
        ("Require-TLS", "please", "true or false"),
        ("Tags", "=?utf-8?q?a=0Ab?=", "control"),
        ("Tags", ",".join(map(str, range(51))), "50"),
        ("Metadata", "{", "JSON"),
        ("Metadata", "[" * 900, "JSON"),
        ("Metadata", "[1]", "object"),
        ("Metadata", '{"a": {}}', "'a'"),
        ("Metadata", '{"a": NaN}', "finite"),
        ("Metadata", '{"a": 1, "a": 2}', "twice"),
        ("Metadata", '{"a": "\\ud800"}', "control"),
        ("Send-At", "", "RFC 3339"),
        ("Send-At", "tomorrow", "RFC 3339"),
        ("Send-At", "2030-13-01T00:00:00Z", "RFC 3339"),
        ("Send-At", "2030-01-01T00:00:00", "RFC 3339"),
        ("Send-At", "9" * 10, "RFC 3339"),
        ("Send-At", "-5", "RFC 3339"),
        ("Send-At", "1960-01-01T00:00:00Z", "1970"),
        ("Expires-At", "0", "before"),
    ],
)
def test_what_breaks_a_rule_is_refused_by_its_header(name: str, value: str, said: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        one(name, value)
    assert str(caught.value).startswith(f"header X-Mailstrom-{name}: ")
    assert said in str(caught.value)
    assert caught.value.header == f"X-Mailstrom-{name}"
    assert caught.value.rule in ("option", "option-control")


def test_octets_that_are_no_text_are_refused() -> None:
    with pytest.raises(InvalidMessage, match="UTF-8"):
        options(b"X-Mailstrom-Tags: \xff")


def test_a_slip_in_the_name_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="did you mean X-Mailstrom-Require-TLS"):
        one("Requires-TLS", "yes")
    with pytest.raises(InvalidMessage, match="X-Mailstrom-Stream"):
        one("Qqqqqqqqqqqqqqq", "yes")


def test_the_same_twice_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="twice") as caught:
        options("X-Mailstrom-Tags: a\r\nX-MAILSTROM-Tags: a")
    assert caught.value.rule == "duplicate-header"


def test_expiry_lies_behind_the_sending() -> None:
    with pytest.raises(InvalidMessage, match="X-Mailstrom-Expires-At: lies before"):
        options("X-Mailstrom-Send-At: 60\r\nX-Mailstrom-Expires-At: 60")
    with pytest.raises(InvalidMessage, match="lies before"):
        options("X-Mailstrom-Expires-At: 60", send_ms=NOW + 60_000)


def test_a_time_by_a_parameter_of_mail() -> None:
    assert options("Subject: x", send_ms=NOW + 5).send_ms == NOW + 5
    assert options("Subject: x", send_ms=NOW - 5).send_ms == NOW
    with pytest.raises(InvalidMessage, match="say it once"):
        options("X-Mailstrom-Send-At: 60", send_ms=NOW + 5)


def test_what_stands_below_a_received_was_written_by_another() -> None:
    assert (
        options("Received: by x.example; now\r\nX-Mailstrom-Tags: a\r\nX-Mailstrom-Odd: b")
        == Options()
    )


def test_a_relay_neither_reads_nor_removes_them() -> None:
    content = b"X-Mailstrom-Tags: a\r\nX-Mailstrom-Odd: b\r\n" + REST
    found = relayed(content, "a@b.example", ("c@d.example",), TRACE)
    assert found.content.endswith(content)
    assert found.options == Options()


@given(st.sampled_from(HEADERS), st.text())
def test_any_value_is_taken_or_refused_by_name(name: str, value: str) -> None:
    head = f"{name}: {value}".replace("\r", "").replace("\n", "").replace("\0", "")
    try:
        octets = head.encode()
    except UnicodeEncodeError:
        return
    try:
        options(octets)
    except InvalidMessage as error:
        about = error.header
    else:
        return
    assert about == name


@given(st.integers(0, 7_900 * 31_536_000_000))
def test_times_are_read_to_the_millisecond(beyond: int) -> None:
    moment = datetime(2027, 2, 1, tzinfo=UTC) + timedelta(milliseconds=beyond)
    found = one("Send-At", moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"))
    assert found.send_ms == (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
