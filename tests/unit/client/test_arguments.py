"""Arguments of every public method: a wrong one is named, and nothing happens."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from datetime import datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from mailstrom import InvalidMessage, Mailstrom, MessageNotFound
from mailstrom.client import arguments
from mailstrom.errors import MailstromError

NAN = float("nan")
FAR = 10**400

# method, positional arguments (ID and MESSAGE stand for good ones), keywords, the name in the error
ID, MESSAGE = object(), object()
WRONG: list[tuple[str, tuple[Any, ...], dict[str, Any], str, type[Exception]]] = [
    *[
        (verb, (value,), {}, "id", TypeError)
        for verb in ("status", "wait", "raw", "message", "cancel", "hold", "release", "retry")
        for value in (None, 5, b"x", ["x"], object())
    ],
    *[("why", (value,), {}, "id_or_address", TypeError) for value in (None, 5, b"x", ["x"])],
    ("why", ("@",), {}, "id_or_address", InvalidMessage),
    ("why", (ID,), {"limit": 0}, "limit", ValueError),
    ("why", (ID,), {"limit": "5"}, "limit", TypeError),
    ("wait", (ID,), {"timeout": "x"}, "timeout", TypeError),
    ("wait", (ID,), {"timeout": b"5"}, "timeout", TypeError),
    ("wait", (ID,), {"timeout": True}, "timeout", TypeError),
    ("wait", (ID,), {"timeout": NAN}, "timeout", ValueError),
    *[
        (verb, (ID,), {"recipient": value}, "recipient", InvalidMessage)
        for verb in ("cancel", "hold", "release", "retry")
        for value in (5, b"b@example.org", "", "nobody", ["b@example.org"])
    ],
    ("cancel", ("",), {"recipient": 5}, "recipient", InvalidMessage),
    ("resolve", (5, "retry"), {}, "id", TypeError),
    ("resolve", (ID, 5), {}, "outcome", TypeError),
    ("resolve", (ID, "deliverd"), {}, "outcome", ValueError),
    ("resolve", (ID, "cancel"), {}, "outcome", ValueError),
    ("resolve", (ID, "retry"), {"recipient": "nobody"}, "recipient", InvalidMessage),
    ("statuses", (None,), {}, "ids", TypeError),
    ("statuses", ("one-id",), {}, "ids", TypeError),
    ("statuses", (b"one-id",), {}, "ids", TypeError),
    ("statuses", ([5],), {}, "ids", TypeError),
    *[
        (verb, (), {"limit": value}, "limit", kind)
        for verb in ("recent", "find", "events")
        for value, kind in (
            (0, ValueError),
            (-1, ValueError),
            (1 << 63, ValueError),
            (None, TypeError),
            (True, TypeError),
            (1.5, TypeError),
            ("5", TypeError),
        )
    ],
    *[
        (verb, given, {name: value}, name, kind)
        for verb, given in (("find", ()), ("change_all", ("hold",)))
        for name, value, kind in (
            ("status", "delayed", ValueError),
            ("status", 5, TypeError),
            ("status", ["held", 5], TypeError),
            ("reason", "because", ValueError),
            ("reason", b"dns", TypeError),
            ("recipient", "nobody", InvalidMessage),
            ("recipient", [5], TypeError),
            ("domain", "a..b", InvalidMessage),
            ("domain", "", InvalidMessage),
            ("domain", 5, TypeError),
            ("sender", 5, TypeError),
            ("sender", "x@", InvalidMessage),
            ("tag", 5, TypeError),
            ("tag", "\ud800", ValueError),
            ("stream", 5, TypeError),
            ("since", 5, TypeError),
            ("since", "1h", TypeError),
            ("since", timedelta(-1), ValueError),
            ("until", datetime(2031, 1, 1), ValueError),  # noqa: DTZ001
        )
    ],
    ("find", (), {"after": 5}, "after", TypeError),
    ("find", (), {"after": "nothing-here"}, "nothing-here", MessageNotFound),
    ("find", (), {"after": "\ud800"}, "after", MessageNotFound),
    ("change_all", (5,), {"everything": True}, "change", TypeError),
    ("change_all", ("resolve",), {"everything": True}, "change", ValueError),
    ("change_all", ("hold",), {}, "everything", ValueError),
    ("change_all", ("hold",), {"everything": True, "tag": "x"}, "everything", ValueError),
    ("change_all", ("hold",), {"everything": 1}, "everything", TypeError),
    ("change_all", ("hold",), {"dry_run": "no", "tag": "x"}, "dry_run", TypeError),
    ("change_all", ("hold",), {"ids": 5}, "ids", TypeError),
    *[
        (verb, (), {"types": value}, "types", kind)
        for verb in ("events", "follow")
        for value, kind in ((5, TypeError), ("message.acepted", ValueError), ([5], TypeError))
    ],
    *[
        (verb, (value,), {}, "after", kind)
        for verb in ("events", "follow")
        for value, kind in (("5", TypeError), (-1, ValueError), (True, TypeError))
    ],
    ("backup", (None,), {}, "target", TypeError),
    ("backup", (b"x",), {}, "target", TypeError),
    ("start", ("2",), {}, "workers", TypeError),
    ("start", (0,), {}, "workers", ValueError),
    ("start", (True,), {}, "workers", TypeError),
    ("start", (), {"config": 5}, "config", TypeError),
    ("start", (), {"config": b"x"}, "config", TypeError),
    ("stop", ("5",), {}, "timeout", TypeError),
    ("stop", (NAN,), {}, "timeout", ValueError),
    ("query", (5,), {}, "sql", TypeError),
    ("query", (None,), {}, "sql", TypeError),
    ("query", (b"SELECT 1",), {}, "sql", TypeError),
    ("query", ("SELECT 1\0",), {}, "sql", ValueError),
    ("query", ("SELECT '\ud800'",), {}, "sql", ValueError),
    ("query", ("SELECT ?", 5), {}, "params", TypeError),
    ("query", ("SELECT ?", None), {}, "params", TypeError),
    ("query", ("SELECT ?", "a"), {}, "params", TypeError),
    ("query", ("SELECT ?", b"a"), {}, "params", TypeError),
    ("query", ("SELECT ?", {1}), {}, "params", TypeError),
    ("query", ("SELECT ?", [object()]), {}, "params", TypeError),
    ("query", ("SELECT :a", {"a": [1]}), {}, "params", TypeError),
    ("query", ("SELECT :a", {1: 2}), {}, "params", TypeError),
    ("query", ("SELECT :a", {"b": 2}), {}, "params", ValueError),
    ("query", ("SELECT ?", [1 << 63]), {}, "params", ValueError),
    ("query", ("SELECT ?", ["\ud800"]), {}, "params", ValueError),
    ("query", ("SELECT 1",), {"seconds": "x"}, "seconds", TypeError),
    ("query", ("SELECT 1",), {"seconds": None}, "seconds", TypeError),
    ("query", ("SELECT 1",), {"seconds": 0}, "seconds", ValueError),
    ("query", ("SELECT 1",), {"seconds": -1}, "seconds", ValueError),
    ("query", ("SELECT 1",), {"seconds": NAN}, "seconds", ValueError),
    ("send", (None,), {}, "message", InvalidMessage),
    ("send", ("From: a@example.com",), {}, "message", InvalidMessage),
    ("send", (MESSAGE,), {"sender": 5}, "sender", InvalidMessage),
    ("send", (MESSAGE,), {"recipients": 5}, "recipients", InvalidMessage),
    ("send", (MESSAGE,), {"recipients": "b@example.org"}, "recipients", InvalidMessage),
    ("send", (MESSAGE,), {"recipients": [5]}, "recipients", InvalidMessage),
    ("send", (MESSAGE,), {"recipients": []}, "recipients", InvalidMessage),
    ("send", (MESSAGE,), {"tags": 5}, "tags", InvalidMessage),
    ("send", (MESSAGE,), {"tags": None}, "tags", InvalidMessage),
    ("send", (MESSAGE,), {"metadata": 5}, "metadata", InvalidMessage),
    ("send", (MESSAGE,), {"idempotency_key": 5}, "idempotency_key", InvalidMessage),
    ("send", (MESSAGE,), {"priority": b"high"}, "priority", InvalidMessage),
    ("send", (MESSAGE,), {"require_tls": None}, "require_tls", InvalidMessage),
    ("send_many", (5,), {}, "messages", TypeError),
    ("send_many", (None,), {}, "messages", TypeError),
    ("send_many", (b"From: a@example.com",), {}, "messages", TypeError),
    ("send_many", ("text",), {}, "messages", TypeError),
    ("send_many", (EmailMessage(),), {}, "messages", TypeError),
    ("send_many", ([b"x", (b"x",)][1:],), {}, "messages", TypeError),
    ("send_many", ([(b"x", {}, 1)],), {}, "messages", TypeError),
    ("send_many", ([(b"x", None)],), {}, "messages", TypeError),
    ("send_many", ([(b"x", {1: 2})],), {}, "messages", TypeError),
    ("send_many", ([5],), {}, "message", InvalidMessage),
    ("create", (None,), {}, "path", TypeError),
    ("create", (5,), {}, "path", TypeError),
    ("create", (b"spool.db",), {}, "path", TypeError),
]


def shown(value: object) -> str:
    named = {id(ID): "ID", id(MESSAGE): "MESSAGE"}.get(id(value))
    return named or repr(value).partition(" at 0x")[0][:40]


@pytest.mark.parametrize(
    ("verb", "positional", "keywords", "name", "kind"),
    [pytest.param(*row, id=f"{row[0]}-{','.join(map(shown, row[1]))}-{row[2]}") for row in WRONG],
)
def test_a_wrong_argument_is_named_and_nothing_happens(
    client: Mailstrom,
    message: bytes,
    verb: str,
    positional: tuple[Any, ...],
    keywords: dict[str, Any],
    name: str,
    kind: type[Exception],
) -> None:
    id = client.send(message)
    before = client.query("SELECT * FROM recipients"), client.query("SELECT * FROM events")
    good = {ID: id, MESSAGE: message}
    given = [good.get(one, one) if one in (ID, MESSAGE) else one for one in positional]
    with pytest.raises(kind, match=rf"\b{name}\b"):
        getattr(client, verb)(*given, **keywords)
    assert (
        client.query("SELECT * FROM recipients"),
        client.query("SELECT * FROM events"),
    ) == before


def test_the_table_leaves_no_public_method_out() -> None:
    public = {name for name, _ in inspect.getmembers(Mailstrom, callable) if name[0] != "_"}
    without_arguments = {"adopt", "check", "close", "orphans", "pinned", "stats", "worker_status"}
    assert public == {row[0] for row in WRONG} | without_arguments


OPENING: list[tuple[dict[str, Any], str, type[Exception]]] = [
    ({"store": 5}, "store", TypeError),
    ({"store": b"spool.db"}, "store", TypeError),
    ({"store": ["spool.db"]}, "store", TypeError),
    ({"config": 5}, "config", TypeError),
    ({"config": b"mailstrom.toml"}, "config", TypeError),
    ({"timeout": "x"}, "timeout", TypeError),
    ({"timeout": None}, "timeout", TypeError),
    ({"timeout": True}, "timeout", TypeError),
    ({"timeout": 0}, "timeout", ValueError),
    ({"timeout": -1}, "timeout", ValueError),
    ({"timeout": NAN}, "timeout", ValueError),
    ({"timeout": math.inf}, "timeout", ValueError),
    ({"timeout": 86_401}, "timeout", ValueError),
    ({"timeout": FAR}, "timeout", ValueError),
]


@pytest.mark.parametrize(("keywords", "name", "kind"), OPENING, ids=lambda value: repr(value)[:40])
def test_a_wrong_argument_opens_and_makes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keywords: dict[str, Any],
    name: str,
    kind: type[Exception],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAILSTROM_STORE", str(tmp_path / "spool.db"))
    monkeypatch.delenv("MAILSTROM_CONFIG", raising=False)
    if name == "config":
        monkeypatch.delenv("MAILSTROM_STORE")
    with pytest.raises(kind, match=f"^{name}: "):
        Mailstrom(**keywords)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("timeout", [0.5, 5, 86_400])
def test_a_good_timeout_is_taken(path: str, timeout: float) -> None:
    Mailstrom(path, timeout=timeout).close()


@pytest.mark.parametrize(
    ("sql", "params", "row"),
    [
        ("SELECT ?, ?, ?", (1, None, b"x"), (1, None, b"x")),
        ("SELECT ?", [True], (1,)),
        ("SELECT ?", [-(1 << 63)], (-(1 << 63),)),
        ("SELECT ?", [bytearray(b"x")], (b"x",)),
        ("SELECT :a", {"a": "ü"}, ("ü",)),
        ("SELECT :a", {"a": 1.5, "unused": 1}, (1.5,)),
    ],
)
def test_good_params_are_taken(client: Mailstrom, sql: str, params: Any, row: Any) -> None:
    assert client.query(sql, params) == [row]


def test_wait_takes_any_number(client: Mailstrom, message: bytes) -> None:
    id = client.send(message)
    for timeout in (0, -1, -math.inf, -FAR):
        with pytest.raises(TimeoutError):
            client.wait(id, timeout=timeout)
    client.cancel(id)
    for patience in (0, 0.5, math.inf, FAR, None):
        assert client.wait(id, timeout=patience).completed


@pytest.mark.parametrize("id", ["", "\ud800", "a\0b", "ü"])
def test_text_that_is_no_id_is_not_found(client: Mailstrom, id: str) -> None:
    verbs: list[Callable[[str], object]] = [
        client.status, client.wait, client.raw, client.message, client.cancel, client.hold,
        client.release, client.retry, lambda id: client.resolve(id, "retry"),
    ]  # fmt: skip
    assert client.statuses([id]) == {}
    assert client.change_all("cancel", ids=id) == 0
    for verb in verbs:
        with pytest.raises(MessageNotFound):
            verb(id)


class Looked(int):
    """An integer of a subclass, which a range would look for among all of its members."""

    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        raise AssertionError("compared one by one")


def test_a_subclass_of_int_is_compared_with_the_bounds_alone() -> None:
    assert arguments.bindings([Looked(200)])[0] is not None
    arguments.count("limit", Looked(200))
    with pytest.raises(ValueError, match="64 bits"):
        arguments.bindings([Looked(1 << 63)])
    with pytest.raises(ValueError, match="64 bits, not a number of more"):
        arguments.count("limit", Looked(1 << 63))


def test_a_callers_text_is_quoted_short(tmp_path: Path) -> None:
    long = "x" * 100_000
    with Mailstrom(tmp_path / "spool.db") as ms:
        calls: list[Callable[[], object]] = [
            lambda: ms.status(long),
            lambda: ms.raw(long),
            lambda: ms.wait(long, 0),
            lambda: ms.cancel(long),
            lambda: ms.find(status=long),
            lambda: ms.find(after=long),
            lambda: ms.find(limit=10**5_000),
            lambda: ms.query(long),
            lambda: ms.query(f"select :{long}", {}),
            lambda: ms.query("select 1", {long: object()}),
            lambda: ms.change_all(long),
            lambda: ms.send_many([], **{long: 1}),  # type: ignore[arg-type]
        ]
        for call in calls:
            with pytest.raises((MailstromError, ValueError, TypeError)) as caught:
                call()
            assert len(str(caught.value)) < 700 + len(str(tmp_path))
    assert arguments.shown("x" * 80) == repr("x" * 80)
    assert arguments.shown("x" * 81) == repr("x" * 79 + "…")
