"""Options of ``send()``: what is taken, and what is refused by name before anything is written."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom import InvalidMessage, Mailstrom, OnDoubt, Priority
from mailstrom.client import options
from mailstrom.client.api import SendOptions

NOW = 1_700_000_000_000
FAR = datetime(2031, 1, 1, tzinfo=UTC)


def shown(value: object) -> str:
    try:
        return repr(value)[:40]
    except ValueError:
        return "digits"


REFUSED: list[tuple[str, Any]] = [
    ("priority", "urgent"),
    ("priority", 0),
    ("priority", b"high"),
    ("stream", ""),
    ("stream", "x" * 65),
    ("stream", "a\r\nBcc: x@example.com"),
    ("stream", 5),
    ("tags", "one text"),
    ("tags", b"bytes"),
    ("tags", ["ok", "a\x00b"]),
    ("tags", [""]),
    ("tags", [7]),
    ("tags", ["x" * 129]),
    ("tags", [f"t{n}" for n in range(51)]),
    ("metadata", {"a": "x\ny"}),
    ("metadata", {"a\n": 1}),
    ("metadata", {1: "x"}),
    ("metadata", {"a": [1]}),
    ("metadata", {"a": None}),
    ("metadata", {"a": float("nan")}),
    ("metadata", {"a": float("inf")}),
    ("metadata", {"a": 10**400}),
    ("metadata", {"a": 10**5000}),  # more digits than Python writes
    ("metadata", {"a": [10**5000]}),
    ("priority", 10**5000),
    ("tags", [10**5000]),
    ("metadata", {"a": "\ud800"}),
    ("metadata", ["a"]),
    ("idempotency_key", ""),
    ("idempotency_key", "k" * 257),
    ("idempotency_key", "k\u2028"),
    ("require_tls", "no"),
    ("require_tls", 1),
    ("require_tls", None),
    ("on_doubt", "maybe"),
    ("notify", "failure"),
    ("notify", "NEVER"),
    ("notify", ()),
    ("notify", ["never"]),
    ("notify", ["failure", "never"]),
    ("notify", ["failure", 7]),
    ("notify", [["failure"]]),
    ("notify", b"never"),
    ("notify", True),
    ("send_at", "tomorrow"),
    ("send_at", 1_700_000_000),
    ("send_at", datetime(2031, 1, 1)),  # noqa: DTZ001
    ("send_at", timedelta.max),
    ("send_at", datetime(1969, 1, 1, tzinfo=UTC)),
    ("expires_at", datetime(2031, 1, 1)),  # noqa: DTZ001
    ("expires_at", timedelta(0)),
    ("expires_at", timedelta(seconds=-5)),
    ("expires_at", datetime(2001, 1, 1, tzinfo=UTC)),
]


@pytest.mark.parametrize(("option", "value"), REFUSED, ids=shown)
def test_a_bad_option_is_named_and_nothing_is_written(
    client: Mailstrom, message: bytes, option: str, value: object
) -> None:
    with pytest.raises(InvalidMessage, match=f"^{option}: ") as caught:
        client.send(message, **{option: value})  # type: ignore[arg-type]
    assert caught.value.header == option
    assert caught.value.rule in {"option", "option-control"}
    assert client.query("SELECT count(*) FROM messages") == [(0,)]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("priority", "high"),
        ("priority", Priority.LOW),
        ("priority", None),
        ("stream", "x" * 64),
        ("tags", ("a", "a", "b")),
        ("tags", {"a": 1}.keys()),
        ("metadata", {"a": "ü", "b": 1, "c": 1.5, "d": True}),
        ("metadata", {}),
        ("idempotency_key", "k" * 256),
        ("require_tls", True),
        ("on_doubt", "hold"),
        ("on_doubt", OnDoubt.RETRY),
        ("notify", None),
        ("notify", {"delay": 1}.keys()),
        ("send_at", FAR),
        ("send_at", timedelta(minutes=5)),
        ("send_at", datetime(2001, 1, 1, tzinfo=UTC)),
        ("expires_at", timedelta(seconds=5)),
    ],
    ids=repr,
)
def test_a_good_option_is_taken(
    client: Mailstrom, message: bytes, option: str, value: object
) -> None:
    assert client.send(message, **{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("notify", "kept", "wants"),
    [
        (None, None, None),
        ("never", "never", None),
        (["failure"], "failure", 1),
        (("delay", "success", "delay"), "success,delay", 6),
        (iter(["failure", "delay", "success"]), "success,failure,delay", 7),
    ],
    ids=["nothing", "never", "failure", "two", "all"],
)
def test_what_the_sender_is_told_of_is_kept_with_each_recipient(
    client: Mailstrom, message: bytes, notify: Any, kept: str | None, wants: int | None
) -> None:
    id = client.send(message, recipients=["a@example.org", "b@example.net"], notify=notify)
    rows = client.query("SELECT notify FROM recipients WHERE message_id = ?", [id])
    assert rows == [(kept,)] * 2
    assert client.query("SELECT wants FROM recipient") == [(wants,)] * 2
    (row,) = client.query("SELECT origin, client, ret, envid FROM messages")
    assert row == ("library", None, None, None)


def test_a_default_for_many_is_one_for_each(client: Mailstrom, message: bytes) -> None:
    client.send_many([message, (message, {"notify": "never"})], notify=iter(["failure"]))
    client.send_many([message])
    rows = client.query("SELECT notify FROM recipient ORDER BY seq")
    assert rows == [("failure",), ("never",), (None,)]


def test_a_message_must_expire_after_it_may_be_sent(client: Mailstrom, message: bytes) -> None:
    with pytest.raises(InvalidMessage, match="expires_at"):
        client.send(message, send_at=FAR, expires_at=FAR)
    assert client.send(message, send_at=FAR, expires_at=FAR + timedelta(milliseconds=1))


@given(st.integers(0, 253_402_300_799_000), st.integers(-14 * 60, 14 * 60))
def test_moments_keep_their_milliseconds_in_any_zone(ms: int, minutes: int) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)
    try:
        local = moment.astimezone(timezone(timedelta(minutes=minutes)))
    except OverflowError:
        return
    assert options.coming_ms("send_at", local, NOW) == ms


@given(st.integers(-1_000_000_000, 10**12))
def test_spans_count_from_now(ms: int) -> None:
    assert options.coming_ms("send_at", timedelta(milliseconds=ms), NOW) == NOW + ms


def test_without_a_priority_it_is_the_streams_or_normal(client: Mailstrom, message: bytes) -> None:
    ids = [client.send(message), client.send(message, priority=None, stream="bulk")]
    client.send(message, priority="low")
    rows = client.query("SELECT priority FROM messages WHERE id IN (?, ?)", ids)
    assert rows == [("normal",), ("normal",)]


def test_an_unknown_option_is_a_programming_error(client: Mailstrom, message: bytes) -> None:
    with pytest.raises(TypeError, match="prio"):
        client.send(message, prio="high")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"send_many\(\): unknown option 'prio'; did .* 'priority'"):
        client.send_many([message], prio="high")
    with pytest.raises(TypeError, match=r"messages\[1\]: unknown option 'xyz'; there are sender, "):
        client.send_many([message, (message, {"xyz": 1})])  # type: ignore[typeddict-unknown-key]
    assert client.query("SELECT count(*) FROM messages") == [(0,)]


def test_a_key_for_all_messages_of_many_is_refused(client: Mailstrom, message: bytes) -> None:
    with pytest.raises(TypeError, match=r"idempotency_key is one message's"):
        client.send_many([message, message], idempotency_key="k")
    ids = client.send_many([(message, {"idempotency_key": "k"})] * 2)
    assert ids[0] == ids[1]


def test_the_names_of_options_are_those_of_send() -> None:
    parameters = list(inspect.signature(Mailstrom.send).parameters)
    assert parameters[2:] == list(options.NAMES) == list(SendOptions.__annotations__)
