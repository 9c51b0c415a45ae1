"""Every client through every case; and the judge, which must object to what is not as sent."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from tests.clients import judge, python, station
from tests.clients.cases import BY_NAME, CASES, REFUSED, TAKEN, Case
from tests.clients.judge import Said, differs
from tests.clients.plan import CLIENTS
from tests.clients.station import Station
from tests.clients.table import CANNOT, Row, markdown, programs, reasons
from tests.support.trial import Plan


@contextmanager
def folder() -> Iterator[Path]:
    """Not pytest's: mail servers give up root and must still get there."""
    with tempfile.TemporaryDirectory(prefix="mailstrom-clients-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.debian
@pytest.mark.timeout(280)
@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_gets_its_mail_in_as_it_sent_it(name: str) -> None:
    with folder() as home:
        rows = list(import_module(f"tests.clients.{name}").run(Plan(folder=home)))
    assert [row for row in rows if not row.clean] == []
    assert {row.server for row in rows} == {one.name for one in station.STATIONS}
    assert any(row.wanted == TAKEN for row in rows)


def test_every_case_is_done_by_some_client() -> None:
    for case in CASES:
        kinds = [getattr(import_module(f"tests.clients.{name}"), "KIND", None) for name in CLIENTS]
        assert any(kind is not None and kind.lacks(case) is None for kind in kinds), case.name


def test_what_a_client_cannot_is_a_case_or_an_extension() -> None:
    known = {case.name for case in CASES} | {word for case in CASES for word in case.asks}
    for name in CLIENTS:
        kind = getattr(import_module(f"tests.clients.{name}"), "KIND", None)
        assert kind is None or set(kind.cannot) <= known, name


# The judge


@pytest.fixture
def standing() -> Iterator[Station]:
    with folder() as home, station.test_server(home) as opened:
        yield opened


def tried(standing: Station, case: Case, *, other: Case | None = None) -> Row:
    """The row of a case, while the client does as for ``other``."""
    client = python.Smtplib(standing)

    class Astray:
        program = client.program

        def send(self, _case: Case, contents: list[bytes]) -> Said:
            return client.send(other or case, contents)

    return judge.tried(python.KIND, Astray(), standing, case)


PLAIN = BY_NAME["in clear"]


def test_what_went_as_it_should_is_clean(standing: Station) -> None:
    assert tried(standing, PLAIN).clean


@pytest.mark.parametrize(
    "change",
    [{"sender": "eve@sender.test"}, {"recipients": ("carl",)}, {"tls": "starttls"},
     {"tls": "starttls", "auth": "PLAIN"}],
)  # fmt: skip
def test_a_client_that_does_something_else_is_seen(
    standing: Station, change: dict[str, object]
) -> None:
    row = tried(standing, PLAIN, other=replace(PLAIN, **change))  # type: ignore[arg-type]
    assert (row.seen, row.clean) == (TAKEN, False)


def test_an_extension_that_is_not_on_the_wire_is_seen(standing: Station) -> None:
    row = tried(standing, BY_NAME["8BITMIME"], other=PLAIN)
    assert any("not on the wire" in text for text in row.findings)


def test_a_refusal_where_mail_should_be_taken_is_seen(standing: Station) -> None:
    row = tried(standing, PLAIN, other=BY_NAME["a refused recipient"])
    assert row.seen.startswith("nothing is taken")
    assert not row.clean


def test_mail_that_is_taken_where_it_should_be_refused_is_seen(standing: Station) -> None:
    row = tried(standing, BY_NAME["a refused recipient"], other=PLAIN)
    assert (row.wanted, row.clean) == (REFUSED, False)


@pytest.mark.parametrize(
    ("kept", "added", "clean"),
    [
        (b"A: b\r\n\r\nc\r\n", 0, True),
        (b"A: b\r\n\r\nc\r\n", 1, False),
        (b"Received: x\r\n\tby y; z\r\nA: b\r\n\r\nc\r\n", 1, True),
        (b"Received: x\r\nReceived: w\r\nA: b\r\n\r\nc\r\n", 1, False),
        (b"Received: x\r\nReceived: w\r\nA: b\r\n\r\nc\r\n", 2, True),
        (b"A: b\r\n\r\nc\r\n\r\n", 0, False),
        (b"A: b\r\n\r\nc", 0, False),
        (b"A: b\r\n\r\nC\r\n", 0, False),
    ],
)
def test_what_was_added_on_top_is_known_and_all_else_is_as_sent(
    kept: bytes, added: int, clean: bool
) -> None:
    assert (list(differs(b"A: b\r\n\r\nc\r\n", kept, added)) == []) is clean


def test_the_tables_have_no_holes() -> None:
    rows = [
        Row(client="a", program="A 1", server="s", case="x", wanted=TAKEN, seen=TAKEN),
        Row(client="a", program="A 1", server="s", case="y", wanted=REFUSED, seen="odd"),
        Row(client="b", program="B 2", server="s", case="x", wanted=CANNOT, seen=CANNOT,
            why="too old", tried=0),
        Row(client="b", program="B 2", server="s", case="y", wanted=REFUSED, seen=REFUSED,
            findings=("late",)),
    ]  # fmt: skip
    assert f"| x | {TAKEN} | yes | - |" in markdown(rows)
    assert f"| y | {REFUSED} | **odd** | **no** |" in markdown(rows)
    assert "| b | x | too old |" in reasons(rows)
    assert "| a | A 1 | 2 |" in programs(rows)
