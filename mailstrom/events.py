"""The log vocabulary: every line Mailstrom writes is one of these events.

A line is one JSON object whose first keys are ``ts`` (ISO 8601 UTC), ``level`` and ``event``; on a
terminal it is a form for people. How a line looks is ``logforms``'s; how lines are written, and
that an event loop may have those of a moment written together, is ``logstream``'s. The words are
those of the ``events`` view and are part of SemVer. Fields that are None are left out.

Rules: one function per word, its keyword parameters are the line's fields; never a message body,
never an AUTH secret. Before ``configure()`` nothing is written. A line that cannot be written
(closed pipe, full disk) is dropped: mail matters more than its log.

An engine inside an application speaks through the standard library's ``logging`` instead
(``log_into``), chosen by context variable: other engines and threads of the process are not
affected.

Longer than a usual file because of the vocabulary, which is two thirds of it: one table and its
functions, read beside each other, so that each word has exactly one.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, TextIO

from mailstrom.logforms import (
    LONGEST_LIST,
    TEXT_LIMIT,
    ConsoleForm,
    Form,
    JsonForm,
    arranged,
    given,
)
from mailstrom.logstream import Later, LineStream


class Event(NamedTuple):
    """What the documentation says of an event word."""

    level: str
    sentence: str


EVENTS: Mapping[str, Event] = {
    "message.accepted": Event("info", "A message is durably in the spool."),
    "message.cancelled": Event("info", "Recipients of a message were cancelled by a user."),
    "message.held": Event("info", "Recipients of a message were put on hold by a user."),
    "message.released": Event("info", "Held recipients of a message are queued again."),
    "message.reported": Event("info", "A report about a message to its sender was stored."),
    "message.unreported": Event("warning", "A report to a sender could not be made, and why."),
    "recipient.routed": Event("debug", "Waiting recipients of a domain were given their site."),
    "recipient.deferred": Event("info", "An attempt ended without a final result; tried again."),
    "recipient.delivered": Event("info", "The remote server took responsibility."),
    "recipient.failed": Event("warning", "A recipient failed for good, with its reason."),
    "recipient.held": Event("warning", "A recipient waits for a person."),
    "claim.lapsed": Event("warning", "Claims of a process that ended were taken back."),
    "session.opened": Event("debug", "A connection to a host is ready for transactions."),
    "session.closed": Event("debug", "A connection ended."),
    "mx.resolved": Event("debug", "A domain's route was looked up and put into the shared cache."),
    "site.suspended": Event("warning", "All hosts of a site are in trouble; it is left alone."),
    "site.resumed": Event("info", "A suspended site works again."),
    "submission.accepted": Event("info", "A message that came by SMTP is durably in the spool."),
    "submission.refused": Event("warning", "The content of a message was refused, or not stored."),
    "client.refused": Event("warning", "An SMTP client was refused a connection, login or mail."),
    "worker.started": Event("info", "The supervisor started a process."),
    "worker.ready": Event("info", "A process registered itself and works."),
    "worker.stopped": Event("info", "A process ended because it was asked to."),
    "worker.lost": Event("error", "A process ended unasked."),
    "worker.restarting": Event("info", "A lost process will be started again after a delay."),
    "watchdog.killed": Event("error", "A process gave no sign of life and was killed."),
    "supervisor.ready": Event("info", "Every process of the engine is ready."),
    "supervisor.draining": Event("info", "No new work; what is on the wire is being finished."),
    "supervisor.stopped": Event("info", "The engine has ended."),
    "config.reloaded": Event("info", "A changed configuration is in force."),
    "config.warned": Event("warning", "The configuration in force is usable and unwise."),
    "config.rejected": Event("error", "A changed configuration is unusable; the old one stays."),
    "store.checkpointed": Event("debug", "The write-ahead log was copied into the database."),
    "store.copied": Event("warning", "The spool is a copy: nothing is delivered until adopted."),
    "store.poisoned": Event("critical", "A sync failed: nothing is acknowledged until it heals."),
    "store.pinned": Event("error", "A process keeps the write-ahead log from being emptied."),
    "store.unpinned": Event("info", "The write-ahead log could be emptied again."),
    "log.dropped": Event("warning", "Lines were dropped, since nobody read the log."),
    "engine.failed": Event("critical", "An unexpected error: where, and what it was."),
}

_LEVELS: Mapping[str, int] = {
    word: logging.getLevelNamesMapping()[event.level.upper()] for word, event in EVENTS.items()
}


# -- set-up --------------------------------------------------------------------------------------


class _Speaker(NamedTuple):
    """Says words: in a form, to a stream, with fields that each line has."""

    lines: LineStream
    form: Form
    bound: Mapping[str, Any]

    def say(self, method: str, word: str, fields: dict[str, Any]) -> None:
        """The line of a word whose level was looked at before.

        Args:
            method: the level's name.
            fields: with those that have no value.
        """
        getattr(self.lines, method)(self.form(method, word, fields, self.bound))


class _Route(NamedTuple):
    """Where the lines of one engine inside an application go."""

    logger: logging.Logger
    bound: Mapping[str, str | int]

    def write(self, level: int, word: str, fields: Mapping[str, Any]) -> None:
        """One record: the word as its message, each field as an attribute, all as ``fields``."""
        if not self.logger.isEnabledFor(level):
            return
        told = {**self.bound, **arranged(given(fields), TEXT_LIMIT, LONGEST_LIST)}
        with contextlib.suppress(Exception):  # the application's handlers must not stop mail
            self.logger.log(level, word, extra={**told, "fields": told}, stacklevel=4)


_logger: _Speaker | None = None
_lines: LineStream | None = None
_later: Later | None = None
_threshold = logging.CRITICAL
_route: ContextVar[_Route | None] = ContextVar("mailstrom_log", default=None)


def configure(level: str = "info", format: str = "auto", stream: TextIO | None = None) -> None:
    """Starts writing events; called once per process, again after a configuration reload.

    Args:
        level: ``debug info warning error critical``; lesser events are not written.
        format: ``json``, ``console``, or ``auto``: console on a terminal, else JSON.
        stream: where lines go; standard output as it is now when None.
    Raises:
        ValueError: on an unknown level or format.
    """
    global _logger, _lines, _threshold
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"unknown log level {level!r}: debug, info, warning, error or critical")
    if format not in {"auto", "json", "console"}:
        raise ValueError(f"unknown log format {format!r}: auto, json or console")
    out = sys.stdout if stream is None else stream
    if format == "auto":
        format = "console" if out.isatty() else "json"
    flush()
    _lines = LineStream(out, lambda lines: log_dropped(lines=lines), _later)
    form = ConsoleForm(out.isatty()) if format == "console" else JsonForm()
    _logger = _Speaker(_lines, form, {})
    _threshold = number


def log_into(logger: logging.Logger) -> None:
    """Sends later lines of this context to ``logger``, which stays silent until it is configured.

    Holds for this thread and for the tasks and threads that are given its context; fields bound
    before are forgotten.

    Args:
        logger: any; its level decides, not ``configure()``'s.
    """
    if not logger.handlers:  # without any, logging itself would print warnings to standard error
        logger.addHandler(logging.NullHandler())
    _route.set(_Route(logger, {}))


def bind(**fields: str | int) -> None:
    """Adds fields to every later line of this process, for example ``kind`` and ``pid``.

    After ``log_into()``: of this context.
    """
    global _logger
    route = _route.get()
    if route is not None:
        _route.set(_Route(route.logger, {**route.bound, **fields}))
    elif _logger is not None:
        _logger = _logger._replace(bound={**_logger.bound, **fields})


def silence() -> None:
    """Stops writing events, as before ``configure()``."""
    global _logger, _lines
    flush()
    _logger = _lines = None


def flush() -> None:
    """Writes what waits (``gathered``); for those who end the process without unwinding it."""
    if _lines is not None:
        _lines.flush()


@contextlib.contextmanager
def gathered(later: Later) -> Iterator[None]:
    """Lines of this thread wait for each other for the length of the block, and no longer.

    A line at ``error`` or above is written at once, with those before it.

    Args:
        later: calls what it is given soon; an event loop's ``call_soon``, say.
    """
    global _later
    _later = later
    if _lines is not None:
        _lines.gather(later)
    try:
        yield
    finally:
        _later = None
        if _lines is not None:
            _lines.at_once()


@contextlib.contextmanager
def captured(stream: TextIO, level: str = "debug") -> Iterator[None]:
    """Writes JSON lines to ``stream`` for the length of the block, then restores what was."""
    global _logger, _lines, _threshold
    before = (_logger, _lines, _threshold)
    configure(level, "json", stream)
    try:
        yield
    finally:
        flush()
        _logger, _lines, _threshold = before


def _emit(word: str, fields: dict[str, Any]) -> None:
    level = _LEVELS[word]
    route = _route.get()
    if route is not None:
        route.write(level, word, fields)
    elif level >= _threshold and _logger is not None:
        _logger.say(EVENTS[word].level, word, fields)


# -- the words: each function's parameters are the fields of its line -----------------------------


def message_accepted(
    *,
    message_id: str,
    sender: str,
    recipients: int,
    size: int,
    stream: str | None = None,
) -> None:
    """``message.accepted``: recipients is a count, size is in bytes."""
    _emit("message.accepted", locals())


def message_cancelled(*, message_id: str, recipients: int, recipient: str | None = None) -> None:
    """``message.cancelled``: recipients is a count; recipient where only one was named."""
    _emit("message.cancelled", locals())


def message_held(*, message_id: str, recipients: int, recipient: str | None = None) -> None:
    """``message.held``: recipients is a count; recipient where only one was named."""
    _emit("message.held", locals())


def message_released(*, message_id: str, recipients: int, recipient: str | None = None) -> None:
    """``message.released``: recipients is a count; recipient where only one was named."""
    _emit("message.released", locals())


def message_reported(*, message_id: str, report: str, kind: str, count: int) -> None:
    """``message.reported``: report is the report's id, count how many recipients it tells of."""
    _emit("message.reported", locals())


def message_unreported(
    *, message_id: str, kind: str, count: int, error: str, tries: int, given_up: bool
) -> None:
    """``message.unreported``: count as above; it is tried again unless it was given up."""
    _emit("message.unreported", locals())


def recipient_routed(
    *, domain: str, site: str | None, recipients: int, provider: str | None = None
) -> None:
    """``recipient.routed``: recipients is a count of rows stamped with the site."""
    _emit("recipient.routed", locals())


def recipient_deferred(
    *,
    message_id: str,
    recipient: str,
    reason: str | None,
    attempt: int | None = None,
    stage: str | None = None,
    site: str | None = None,
    host: str | None = None,
    address: str | None = None,
    code: int | None = None,
    enhanced: str | None = None,
    reply: str | None = None,
    next_attempt_at: str | None = None,
    in_doubt: bool | None = None,
    session_id: int | str | None = None,
    elapsed_ms: int | None = None,
) -> None:
    """``recipient.deferred``: one attempt of one recipient."""
    _emit("recipient.deferred", locals())


def recipient_delivered(
    *,
    message_id: str,
    recipient: str,
    attempt: int | None = None,
    stage: str | None = None,
    site: str | None = None,
    host: str | None = None,
    address: str | None = None,
    code: int | None = None,
    enhanced: str | None = None,
    reply: str | None = None,
    tls: str | None = None,
    session_id: int | str | None = None,
    elapsed_ms: int | None = None,
) -> None:
    """``recipient.delivered``: one attempt of one recipient."""
    _emit("recipient.delivered", locals())


def recipient_failed(
    *,
    message_id: str,
    recipient: str,
    reason: str | None,
    attempt: int | None = None,
    stage: str | None = None,
    site: str | None = None,
    host: str | None = None,
    address: str | None = None,
    code: int | None = None,
    enhanced: str | None = None,
    reply: str | None = None,
    in_doubt: bool | None = None,
    session_id: int | str | None = None,
    elapsed_ms: int | None = None,
) -> None:
    """``recipient.failed``: also without an attempt (expired, no such domain)."""
    _emit("recipient.failed", locals())


def recipient_held(
    *,
    message_id: str,
    recipient: str,
    reason: str | None,
    attempt: int | None = None,
    stage: str | None = None,
    site: str | None = None,
    host: str | None = None,
    reply: str | None = None,
    in_doubt: bool | None = None,
) -> None:
    """``recipient.held``: for example in doubt with ``on_doubt = "hold"``."""
    _emit("recipient.held", locals())


def claim_lapsed(
    *,
    recipients: int,
    in_doubt: int = 0,
    lanes: int | None = None,
    worker: int | str | None = None,
    lost_pid: int | None = None,
) -> None:
    """``claim.lapsed``: counts of rows taken back, of those in doubt, and of lanes freed."""
    _emit("claim.lapsed", locals())


def session_opened(
    *,
    session_id: int | str,
    site: str,
    host: str,
    address: str,
    source: str | None = None,
    tls: str | None = None,
    elapsed_ms: int | None = None,
) -> None:
    """``session.opened``: tls is the level reached."""
    _emit("session.opened", locals())


def session_closed(
    *,
    site: str,
    host: str,
    session_id: int | str | None = None,
    address: str | None = None,
    messages: int = 0,
    cause: str | None = None,
    stage: str | None = None,
    reply: str | None = None,
    elapsed_ms: int | None = None,
) -> None:
    """``session.closed``: also for a connection that never became ready; cause says why."""
    _emit("session.closed", locals())


def mx_resolved(
    *,
    domain: str,
    result: str,
    hosts: Sequence[str] = (),
    site: str | None = None,
    ttl_s: int | None = None,
    error: str | None = None,
    elapsed_ms: int | None = None,
) -> None:
    """``mx.resolved``: result as in the ``domains`` view."""
    _emit("mx.resolved", locals())


def site_suspended(
    *,
    site: str,
    reason: str,
    until: str | None = None,
    delay_s: float | None = None,
    failures: int | None = None,
    host: str | None = None,
    error: str | None = None,
) -> None:
    """``site.suspended``: until is ISO 8601 UTC, failures the count in a row."""
    _emit("site.suspended", locals())


def site_resumed(*, site: str, host: str | None = None) -> None:
    """``site.resumed``: a transaction or session there succeeded."""
    _emit("site.resumed", locals())


def submission_accepted(
    *,
    message_id: str,
    sender: str,
    recipients: int,
    size: int,
    client: str,
    user: str | None = None,
) -> None:
    """``submission.accepted``: client is its address, user who logged in; size as stored."""
    _emit("submission.accepted", locals())


def submission_refused(
    *,
    client: str,
    code: int,
    reply: str,
    sender: str | None = None,
    user: str | None = None,
    error: str | None = None,
) -> None:
    """``submission.refused``: code and reply are what the client was told; error why, if more."""
    _emit("submission.refused", locals())


def client_refused(
    *,
    client: str,
    reason: str,
    user: str | None = None,
    recipient: str | None = None,
    again: int | None = None,
) -> None:
    """``client.refused``: again counts those like it that were not told of since the last."""
    _emit("client.refused", locals())


def worker_started(
    *, kind: str, pid: int, slot: int | None = None, restarts: int | None = None
) -> None:
    """``worker.started``: kind is ``delivery``, ``listener`` or ``janitor``, slot its place."""
    _emit("worker.started", locals())


def worker_ready(
    *,
    kind: str,
    pid: int,
    slot: int | None = None,
    worker: int | str | None = None,
    loop: str | None = None,
) -> None:
    """``worker.ready``: worker is its row's id, loop ``uvloop`` or ``asyncio``."""
    _emit("worker.ready", locals())


def worker_stopped(
    *, kind: str, pid: int, slot: int | None = None, cause: str | None = None
) -> None:
    """``worker.stopped``: cause is ``drained``, ``drain timeout`` or ``stopped``, or as in
    ``worker.lost``."""
    _emit("worker.stopped", locals())


def worker_lost(*, kind: str, pid: int, slot: int | None = None, cause: str | None = None) -> None:
    """``worker.lost``: cause is ``exit 1`` or ``signal 9 (SIGKILL)``."""
    _emit("worker.lost", locals())


def worker_restarting(
    *, kind: str, slot: int | None = None, delay_s: float = 0.0, exits: int | None = None
) -> None:
    """``worker.restarting``: exits is the count inside the back-off's window."""
    _emit("worker.restarting", locals())


def watchdog_killed(
    *, kind: str, pid: int, slot: int | None = None, silent_s: float | None = None
) -> None:
    """``watchdog.killed``: silent_s is the time without a heartbeat."""
    _emit("watchdog.killed", locals())


def supervisor_ready(
    *,
    workers: int,
    pid: int,
    store: str | None = None,
    version: str | None = None,
    config: str | None = None,
) -> None:
    """``supervisor.ready``: config is the file in force."""
    _emit("supervisor.ready", locals())


def supervisor_draining(
    *, signal: str | None = None, timeout_s: float | None = None, pid: int | None = None
) -> None:
    """``supervisor.draining``: timeout_s is ``[delivery] drain_timeout``."""
    _emit("supervisor.draining", locals())


def supervisor_stopped(
    *,
    exit_code: int,
    lost: int | None = None,
    pid: int | None = None,
    elapsed_ms: int | None = None,
) -> None:
    """``supervisor.stopped``: exit_code 0 when drained, 75 to leave it to another, 1 at once.

    Or 1 where lost is not 0: so many processes ended unasked, or by force, while it drained.
    """
    _emit("supervisor.stopped", locals())


def config_reloaded(
    *, file: str | None = None, restart_needed: Sequence[str] | None = None
) -> None:
    """``config.reloaded``: file is None where there is none and defaults rule.

    restart_needed names the changed keys that the engine reads at its start only.
    """
    _emit("config.reloaded", locals())


def config_warned(*, advice: str, file: str | None = None) -> None:
    """``config.warned``: advice says what is unwise and what to do; at the start and a reload."""
    _emit("config.warned", locals())


def config_rejected(*, error: str, file: str | None = None) -> None:
    """``config.rejected``: error is what the ConfigError says.

    Args:
        error: each of several on a line of its own; in the log ``; `` stands between them.
        file: what the first of them begins with goes without saying before the others.
    """
    first, *others = error.split("\n")
    error = "; ".join((first, *(other.removeprefix(f"{file}: ") for other in others)))
    _emit("config.rejected", {"error": error, "file": file})


def store_checkpointed(
    *,
    frames: int,
    checkpointed: int | None = None,
    wal_bytes: int | None = None,
    mode: str | None = None,
    elapsed_ms: int | None = None,
) -> None:
    """``store.checkpointed``: frames in the log, and how many of them were copied."""
    _emit("store.checkpointed", locals())


def log_dropped(*, lines: int) -> None:
    """``log.dropped``: lines that were not written because nobody read the log."""
    _emit("log.dropped", locals())


def store_copied(*, advice: str, store: str | None = None) -> None:
    """``store.copied``: advice says how to let the engine deliver what waits in it."""
    _emit("store.copied", locals())


def store_poisoned(*, error: str, store: str | None = None) -> None:
    """``store.poisoned``: error names the failed call."""
    _emit("store.poisoned", locals())


def store_pinned(
    *,
    wal_bytes: int,
    limit_bytes: int,
    full: bool,
    advice: str,
    holder_pid: int | None = None,
    command: str | None = None,
    held_s: float | None = None,
    others: Sequence[str] | None = None,
    store: str | None = None,
) -> None:
    """``store.pinned``: holder_pid keeps the log from being emptied, for held_s at least.

    Without it the system does not tell; others are further processes that do, or that may. Where
    full, accepting and claiming have stopped.
    """
    _emit("store.pinned", locals())


def store_unpinned(*, held_s: float, wal_bytes: int, store: str | None = None) -> None:
    """``store.unpinned``: held_s since the first ``store.pinned``, wal_bytes what it is now."""
    _emit("store.unpinned", locals())


def engine_failed(
    *,
    where: str,
    error: BaseException | str,
    kind: str | None = None,
    pid: int | None = None,
    trace: Sequence[str] | None = None,
    site: str | None = None,
    pause_s: float | None = None,
) -> None:
    """``engine.failed``: trace, the last frames, is taken from error where it is an exception.

    pause_s: so long its site is left alone.
    """
    if trace is None and isinstance(error, BaseException):
        trace = [
            f"{frame.filename}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)[-12:]
        ]
    error = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    _emit("engine.failed", locals())
