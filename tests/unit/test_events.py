"""The log vocabulary: every word has a function, lines are safe, and logging never hurts."""

from __future__ import annotations

import contextvars
import inspect
import io
import json
import logging
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom import events
from mailstrom.logstream import PIPE_BUF
from mailstrom.types import Reason

# interfaces.md, section Words: these may not change
PROMISED = {
    "message.accepted",
    "message.cancelled",
    "message.held",
    "message.released",
    "recipient.routed",
    "recipient.deferred",
    "recipient.delivered",
    "recipient.failed",
    "recipient.held",
    "claim.lapsed",
    "session.opened",
    "session.closed",
    "mx.resolved",
    "site.suspended",
    "site.resumed",
    "worker.started",
    "worker.ready",
    "worker.stopped",
    "worker.lost",
    "supervisor.ready",
    "supervisor.draining",
    "supervisor.stopped",
    "config.reloaded",
    "config.rejected",
    "store.checkpointed",
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    events.silence()
    yield
    events.silence()


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def function_of(word: str) -> Any:
    return getattr(events, word.replace(".", "_"))


def call(word: str, **given_fields: object) -> None:
    """Calls a word's function with something for each field that has no default."""
    samples = {"str": "x", "int": 1, "float": 1.5, "bool": True}
    parameters = inspect.signature(function_of(word)).parameters.values()
    fields = {
        p.name: samples.get(str(p.annotation).split(" ")[0], "x")
        for p in parameters
        if p.default is inspect.Parameter.empty
    }
    function_of(word)(**(fields | given_fields))


def test_every_promised_word_is_in_the_table() -> None:
    assert events.EVENTS.keys() >= PROMISED


def test_every_word_has_a_function_that_logs_that_word_at_its_level() -> None:
    for word, event in events.EVENTS.items():
        out = io.StringIO()
        with events.captured(out):
            call(word)
        (line,) = lines(out)
        assert (line["event"], line["level"]) == (word, event.level)


def test_every_public_function_with_keyword_fields_is_a_word_of_the_table() -> None:
    words = {
        name
        for name, value in vars(events).items()
        if inspect.isfunction(value)
        and not name.startswith("_")
        and value.__module__ == events.__name__
    } - {"configure", "bind", "log_into", "silence", "captured", "flush", "gathered"}
    assert words == {word.replace(".", "_") for word in events.EVENTS}


def test_fields_are_keyword_only() -> None:
    for word in events.EVENTS:
        kinds = {p.kind for p in inspect.signature(function_of(word)).parameters.values()}
        assert kinds == {inspect.Parameter.KEYWORD_ONLY}, word


def test_words_are_noun_dot_past() -> None:
    for word in events.EVENTS:
        assert re.fullmatch(r"[a-z]+\.[a-z]+", word)


def test_ts_level_event_come_first_and_time_is_utc_with_milliseconds() -> None:
    out = io.StringIO()
    with events.captured(out):
        events.bind(pid=7)
        events.site_resumed(site="mx.test")
    (line,) = lines(out)
    assert list(line)[:3] == ["ts", "level", "event"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["ts"])
    assert line["site"] == "mx.test"
    assert line["pid"] == 7


def test_fields_without_a_value_are_left_out() -> None:
    out = io.StringIO()
    with events.captured(out):
        events.worker_lost(kind="delivery", pid=4, slot=0, cause=None)
    (line,) = lines(out)
    assert line["slot"] == 0  # falsy is not absent
    assert "cause" not in line


def test_a_bound_field_fills_one_without_a_value_and_yields_to_one_with() -> None:
    out = io.StringIO()
    with events.captured(out):
        events.bind(pid=7)
        events.engine_failed(where="start", error="no")
        events.worker_lost(kind="delivery", pid=8)
    assert [line["pid"] for line in lines(out)] == [7, 8]


def test_bound_fields_do_not_outlive_the_configuration() -> None:
    first, second = io.StringIO(), io.StringIO()
    events.configure("info", "json", first)
    events.bind(worker=3)
    events.site_resumed(site="a")
    events.configure("info", "json", second)
    events.site_resumed(site="a")
    assert lines(first)[0]["worker"] == 3
    assert "worker" not in lines(second)[0]


def test_lesser_levels_are_not_written() -> None:
    out = io.StringIO()
    with events.captured(out, level="warning"):
        for word in events.EVENTS:
            call(word)
    assert {line["level"] for line in lines(out)} == {"warning", "error", "critical"}


def test_nothing_is_written_before_configure(capfd: pytest.CaptureFixture[str]) -> None:
    events.bind(pid=1)
    events.site_resumed(site="mx.test")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("level", "format"), [("loud", "json"), ("info", "xml")])
def test_unknown_level_or_format_is_refused(level: str, format: str) -> None:
    with pytest.raises(ValueError, match=r"loud|xml"):
        events.configure(level, format)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_auto_is_console_on_a_terminal_and_json_off_it() -> None:
    screen, pipe = Terminal(), io.StringIO()
    events.configure("info", "auto", screen)
    events.site_resumed(site="mx.test")
    events.configure("info", "auto", pipe)
    events.site_resumed(site="mx.test")
    assert "site.resumed" in screen.getvalue()
    assert not screen.getvalue().startswith("{")
    assert lines(pipe)[0]["event"] == "site.resumed"


@given(st.text(), st.sampled_from(["json", "console"]))
def test_foreign_text_never_brings_control_characters_or_line_breaks(
    text: str, format: str
) -> None:
    out = io.StringIO()
    events.configure("debug", format, out)
    events.session_closed(site="s", host="h", reply=text)
    written = out.getvalue()
    assert written.endswith("\n")
    assert not {unicodedata.category(c) for c in written[:-1]} & {"Cc", "Cs", "Zl", "Zp"}
    if format == "json":
        # what a reader decodes is clean as well
        reply = json.loads(written)["reply"]
        assert not {unicodedata.category(c) for c in reply} & {"Cc", "Cs", "Zl", "Zp"}


def test_plain_text_arrives_as_it_was() -> None:
    out = io.StringIO()
    with events.captured(out):
        events.session_closed(site="s", host="h", reply='250 2.0.0 "ok" grüße \\o/')
    assert lines(out)[0]["reply"] == '250 2.0.0 "ok" grüße \\o/'


@given(
    st.lists(st.text(max_size=300), max_size=300),
    st.text(max_size=20000),
    st.text(max_size=20000),
)
def test_a_line_fits_one_atomic_pipe_write(hosts: list[str], domain: str, error: str) -> None:
    out = io.StringIO()
    with events.captured(out):
        events.mx_resolved(domain=domain, result="mx", hosts=hosts, site=domain, error=error)
    assert len(out.getvalue().encode()) <= PIPE_BUF
    assert lines(out)[0]["event"] == "mx.resolved"


def test_a_closed_or_full_stream_never_raises(tmp_path: Path) -> None:
    closed = (tmp_path / "log").open("w")
    closed.close()
    events.configure("info", "json", closed)
    events.site_resumed(site="mx.test")

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    events.configure("info", "json", Full())
    events.site_resumed(site="mx.test")


def test_engine_failed_names_the_error_and_where_it_was_raised() -> None:
    out = io.StringIO()
    try:
        raise KeyError("secret")
    except KeyError as error:
        with events.captured(out):
            events.engine_failed(where="lane", error=error)
    (line,) = lines(out)
    assert line["error"] == "KeyError: 'secret'"
    assert any("test_engine_failed" in frame for frame in line["trace"])


def test_captured_restores_what_was_configured() -> None:
    outer, inner = io.StringIO(), io.StringIO()
    events.configure("info", "json", outer)
    with events.captured(inner):
        events.site_resumed(site="inner")
    events.site_resumed(site="outer")
    assert [line["site"] for line in lines(inner)] == ["inner"]
    assert [line["site"] for line in lines(outer)] == ["outer"]


def test_a_pipe_that_nobody_reads_never_blocks_the_writer() -> None:
    """The rest of the engine must go on; what was lost is counted once somebody reads again."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        try:
            events.configure("info", "json", stream)
            for _ in range(3_000):  # far more than a pipe holds
                events.store_poisoned(error="x" * 200)
            while len(os.read(reader, 1 << 20)) == 1 << 20:
                pass
            events.store_poisoned(error="heard again")
            told = os.read(reader, 1 << 16).decode()
        finally:
            events.silence()
            os.close(reader)
    lines = [json.loads(line) for line in told.splitlines()]
    assert [line["event"] for line in lines][-2:] == ["store.poisoned", "log.dropped"]
    assert lines[-1]["lines"] > 1_000


# Into the standard library's logging


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def kept() -> Iterator[Kept]:
    """What the logger ``mailstrom.test`` is given at level debug."""
    logger, kept = logging.getLogger("mailstrom.test"), Kept()
    before = list(logger.handlers)
    logger.addHandler(kept)
    logger.setLevel(logging.DEBUG)
    yield kept
    logger.handlers[:] = before
    logger.setLevel(logging.NOTSET)


def in_context(step: Callable[[], None]) -> None:
    contextvars.copy_context().run(step)


def test_every_word_becomes_a_record_with_its_fields_as_attributes(kept: Kept) -> None:
    def story() -> None:
        events.log_into(logging.getLogger("mailstrom.test"))
        events.bind(kind="delivery", pid=7)
        for word in events.EVENTS:
            parameters = inspect.signature(function_of(word)).parameters
            call(word, **dict.fromkeys(parameters, "v"))  # no field may clash with logging's own

    in_context(story)
    assert [record.msg for record in kept.records] == list(events.EVENTS)
    for record in kept.records:
        assert record.getMessage() == record.msg
        assert record.levelname.lower() == events.EVENTS[record.msg].level
        assert record.name == "mailstrom.test"
        told = record.__dict__["fields"]
        assert all(record.__dict__[name] == value for name, value in told.items())
        assert "kind" in told
    assert Path(kept.records[0].pathname).name == Path(__file__).name  # who spoke, not how


def test_a_route_holds_in_its_context_alone(kept: Kept) -> None:
    out = io.StringIO()
    with events.captured(out):
        in_context(lambda: events.log_into(logging.getLogger("mailstrom.test")))
        events.site_resumed(site="outside")

        def story() -> None:
            events.log_into(logging.getLogger("mailstrom.test"))
            events.bind(slot=1)
            in_context(lambda: events.bind(slot=2))
            events.site_resumed(site="inside")

        in_context(story)
        events.site_resumed(site="outside")
    assert [line["site"] for line in lines(out)] == ["outside"] * 2
    assert all("slot" not in line for line in lines(out))
    (record,) = kept.records
    assert record.__dict__["fields"] == {"slot": 1, "site": "inside"}


def test_the_loggers_level_decides(kept: Kept) -> None:
    logging.getLogger("mailstrom.test").setLevel(logging.ERROR)

    def story() -> None:
        events.log_into(logging.getLogger("mailstrom.test"))
        events.site_resumed(site="s")
        events.worker_lost(kind="delivery", pid=4)

    in_context(story)
    assert [record.msg for record in kept.records] == ["worker.lost"]


def test_words_of_enums_arrive_as_plain_text_and_foreign_text_is_made_safe(kept: Kept) -> None:
    def story() -> None:
        events.log_into(logging.getLogger("mailstrom.test"))
        events.recipient_failed(
            message_id="m", recipient="r", reason=Reason.BOUNCED, reply="one\r\ntwo\x1b[31m"
        )

    in_context(story)
    told = kept.records[0].__dict__["fields"]
    assert type(told["reason"]) is str
    assert not {unicodedata.category(c) for c in told["reply"]} & {"Cc", "Zl", "Zp"}


def test_an_application_that_configures_nothing_sees_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("mailstrom.silent")
    logger.propagate = False  # pytest listens at the root

    def story() -> None:
        events.log_into(logger)
        events.log_into(logger)
        events.store_poisoned(error="x")

    in_context(story)
    assert capfd.readouterr() == ("", "")
    assert len(logger.handlers) == 1


def test_a_handler_that_fails_stops_nobody() -> None:
    class Broken(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("broken")

    logger = logging.getLogger("mailstrom.broken")
    logger.addHandler(Broken())
    in_context(lambda: (events.log_into(logger), events.store_poisoned(error="x"))[1])
