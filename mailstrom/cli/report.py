"""``mailstrom report summary|domains|latency``: what was delivered, to whom, and how quickly.

Asks the public views only. Sums come from ``hourly_stats`` (whole hours, so ``--since`` starts with
its hour), percentiles and what waits from single rows. A question that takes longer than the
client's limit ends with a sentence that says what to narrow (exit 75).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import click

from mailstrom.cli.complete import stream_words
from mailstrom.cli.output import print_csv, print_json, print_json_array, print_table
from mailstrom.cli.selection import MOST_ROWS, characters
from mailstrom.cli.selection import domains as domain_names
from mailstrom.cli.spool import opened, spool_options
from mailstrom.cli.times import ms_of, past
from mailstrom.errors import SpoolBusy
from mailstrom.spans import span_text
from mailstrom.types import iso_ms

F = TypeVar("F", bound=Callable[..., Any])

HOUR_MS = 3_600_000
FORMATS = ("table", "csv", "json", "ndjson")

_SUMMARY = """
select status, reason, sum(recipients) as recipients, sum(bytes) as bytes,
       iif(status in ('delivered', 'failed', 'cancelled'), sum(ms_sum) / sum(recipients), null)
         as mean_ms
  from hourly_stats where hour_ms >= ? {condition}
 group by status, reason order by status, recipients desc
"""
_DOMAINS = """
select domain, sum(iif(status = 'delivered', recipients, 0)) as delivered,
       sum(iif(status = 'failed', recipients, 0)) as failed,
       sum(iif(status = 'deferred', recipients, 0)) as deferrals
  from hourly_stats where hour_ms >= ? {condition} group by domain
"""
_WAITING = """
select r.domain, count(*) as waiting, sum(r.status = 'deferred') as deferred,
       min(m.created_ms) as oldest_ms
  from messages m join recipients r on r.message_id = m.id
 where r.finished_ms is null {condition} group by r.domain
"""
# One row per group: the smallest value that so many percent do not exceed, by its place in the
# order: of two, the larger one from 51 % on.
_PERCENTILES = """
select {group}, count(*) as n, max(iif(place <= (n * 50 + 99) / 100, ms, null)) as p50_ms,
       max(iif(place <= (n * 90 + 99) / 100, ms, null)) as p90_ms,
       max(iif(place <= (n * 99 + 99) / 100, ms, null)) as p99_ms, max(ms) as max_ms
  from (select *, row_number() over (partition by {group} order by ms) as place,
               count(*) over (partition by {group}) as n from ({rows}))
 group by {group} order by n desc limit ?
"""
_DELIVERIES = """
select m.stream, max(r.finished_ms - max(m.created_ms, m.send_ms), 0) as ms
  from messages m join recipients r on r.message_id = m.id
 where r.status = 'delivered' and r.finished_ms >= ? {condition}
"""
_ATTEMPTS = """
select a.host, a.stage, a.verdict, max(a.ended_ms - a.started_ms, 0) as ms
  from attempts a where a.host is not null and a.ended_ms >= ? {condition}
"""


class Answer(NamedTuple):
    """Rows of a report.

    Args:
        show: makes a person's cell of a column's value.
        numbers: columns that stand to the right.
        last: the column that goes last in a table, where it may be cut for the rest to fit.
    """

    columns: Sequence[str]
    rows: list[tuple[Any, ...]]
    show: dict[str, Callable[[Any], str]]
    numbers: Sequence[str]
    last: str


@click.group("report")
def command() -> None:
    """What was delivered, to whom, and how quickly."""


def report_options(function: F) -> F:
    """Adds --since, --domain, --stream and --format."""
    for decorate in (
        click.option("--json", "as_json", is_flag=True, help="The same as --format ndjson."),
        click.option(
            "--format",
            "form",
            type=click.Choice(FORMATS),
            default="table",
            show_default=True,
            help="ndjson is one JSON object a line, json one array.",
        ),
        click.option(
            "--stream",
            multiple=True,
            metavar="S",
            callback=characters,
            shell_complete=stream_words,
            help="Stream.",
        ),
        click.option(
            "--domain", multiple=True, metavar="D", callback=domain_names, help="Recipient domain."
        ),
        click.option(
            "--since",
            default="24h",
            show_default=True,
            metavar="AGE",
            callback=past,
            help="From then on: 24h, 7d, or an ISO time.",
        ),
    ):
        function = decorate(function)
    return spool_options(function)


@command.command("summary")
@report_options
def summary(**given: Any) -> None:
    """Recipients by outcome since then, and what waits now.

    Counted from the hour on in which --since begins. Deferred and held count how often that
    happened; delivered, failed and cancelled count recipients. The mean time runs from
    acceptance to the outcome.
    """
    with _question(given) as ask:
        condition, values = ask.limits("stream", "domain")
        found = ask(_SUMMARY.format(condition=condition), (ask.hour_ms, *values))
        waiting = ask.client.stats().waiting if not condition else {}
        hour = str(iso_ms(ask.hour_ms))
    rows = [(f"since {hour[:10]} {hour[11:16]}Z", *row) for row in found]
    rows += [("now", word, None, number, None, None) for word, number in waiting.items() if number]
    columns = ("when", "status", "reason", "recipients", "bytes", "mean_ms")
    _print(given, Answer(columns, rows, {"mean_ms": span_text}, columns[3:], "reason"))


@command.command("domains")
@report_options
@click.option(
    "--limit",
    type=click.IntRange(0, MOST_ROWS),
    metavar="N",
    default=50,
    show_default=True,
    help="Rows; 0 is all.",
)
def by_domain(limit: int, **given: Any) -> None:
    """Delivered, failed and rate by domain, and what waits now.

    The rate is delivered of delivered and failed. The fullest domains come first. Whole hours.
    """
    with _question(given) as ask:
        condition, values = ask.limits("stream", "domain")
        sums = ask(_DOMAINS.format(condition=condition), (ask.hour_ms, *values))
        condition, values = ask.limits("m.stream", "r.domain")
        waits = ask(_WAITING.format(condition=condition), tuple(values))
        now_ms = ask.now_ms
    waiting = {row.domain: row for row in waits}
    rows = []
    for row in sums:
        final = row.delivered + row.failed
        rate = round(row.delivered / final, 4) if final else None
        here = waiting.pop(row.domain, None)
        rows.append((row.domain, row.delivered, row.failed, rate, *_waits(here, now_ms)))
    rows += [(row.domain, 0, 0, None, *_waits(row, now_ms)) for row in waiting.values()]
    rows.sort(key=lambda row: (-row[1] - row[2] - row[4], row[0]))
    columns = ("domain", "delivered", "failed", "rate", "waiting", "deferred", "oldest_ms")
    show = {"rate": lambda rate: f"{rate:.1%}", "oldest_ms": span_text}
    _print(given, Answer(columns, rows[: limit or None], show, columns[1:], "domain"))


def _waits(row: Any, now_ms: int) -> tuple[int, int, int | None]:
    return (0, 0, None) if row is None else (row.waiting, row.deferred, now_ms - row.oldest_ms)


@command.command("latency")
@report_options
@click.option(
    "--limit",
    type=click.IntRange(1, MOST_ROWS),
    metavar="N",
    default=50,
    show_default=True,
    help="Rows of each kind.",
)
def latency(limit: int, **given: Any) -> None:
    """Percentiles of deliveries, by stream, and of attempts, by host.

    Attempts are told by stage, too. A delivery is timed from acceptance, or from send_at where that
    is later; an attempt by its own duration, under the stage that it ended at.
    """
    with _question(given) as ask:
        condition, values = ask.limits("m.stream", "r.domain")
        deliveries = ask(
            _PERCENTILES.format(group="stream", rows=_DELIVERIES.format(condition=condition)),
            (ask.since_ms, *values, limit),
        )
        condition, values = ask.limits_of_attempts()
        attempts = ask(
            _PERCENTILES.format(
                group="host, stage, verdict", rows=_ATTEMPTS.format(condition=condition)
            ),
            (ask.since_ms, *values, limit),
        )
    rows = [("delivery", row.stream, None, None, *row[1:]) for row in deliveries]
    rows += [("attempt", *row) for row in attempts]
    columns = (
        "what", "stream_or_host", "stage", "verdict", "n", "p50_ms", "p90_ms", "p99_ms", "max_ms",
    )  # fmt: skip
    show: dict[str, Callable[[Any], str]] = dict.fromkeys(columns[5:], span_text)
    _print(given, Answer(columns, rows, show, columns[4:], "stream_or_host"))


class _Question:
    """A client with the report's limits at hand."""

    def __init__(self, client: Any, given: dict[str, Any], since: datetime) -> None:
        from mailstrom.clock import wall_ms

        self.client = client
        self.now_ms = wall_ms()
        self.since_ms = ms_of(since)
        self.hour_ms = self.since_ms // HOUR_MS * HOUR_MS
        self._stream: tuple[str, ...] = given["stream"]
        self._domain: tuple[str, ...] = given["domain"]

    def __call__(self, sql: str, values: tuple[Any, ...]) -> list[Any]:
        found: list[Any] = self.client.query(sql, values)
        return found

    def limits(self, stream: str, domain: str) -> tuple[str, tuple[str, ...]]:
        """``and ...`` for the columns of these names, and its values."""
        clauses = [
            f"and {column} in ({', '.join('?' * len(values))})"
            for column, values in ((stream, self._stream), (domain, self._domain))
            if values
        ]
        return " ".join(clauses), (*self._stream, *self._domain)

    def limits_of_attempts(self) -> tuple[str, tuple[str, ...]]:
        """The same for attempts, which have neither column."""
        condition, values = self.limits("m.stream", "r.domain")
        if not condition:
            return "", ()
        return (
            "and exists (select 1 from messages m join recipients r on r.message_id = m.id"
            f" where m.id = a.message_id and r.address = a.recipient {condition})",
            values,
        )


@contextmanager
def _question(given: dict[str, Any]) -> Iterator[_Question]:
    with opened(given["config"], given["store"]) as client:
        try:
            yield _Question(client, given, given["since"])
        except SpoolBusy as error:
            raise SpoolBusy(
                f"{error}; ask for less: a later --since, or one --domain or --stream"
            ) from error


def _print(given: dict[str, Any], answer: Answer) -> None:
    form = "ndjson" if given["as_json"] else given["form"]
    if form == "csv":
        print_csv(answer.columns, answer.rows)
        return
    if form != "table":
        records = [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]
        if form == "json":
            print_json_array(records)
        else:
            for record in records:
                print_json(record)
        return
    if not answer.rows:
        click.echo("nothing happened since then", err=True)
        return
    order = [*(name for name in answer.columns if name != answer.last), answer.last]
    shown = []
    for row in answer.rows:
        cells = dict(zip(answer.columns, row, strict=True))
        for name, show in answer.show.items():
            cells[name] = None if cells[name] is None else show(cells[name])
        shown.append([cells[name] for name in order])
    heads = [name.removesuffix("_ms").replace("_", " ") for name in order]
    right = [place for place, name in enumerate(order) if name in answer.numbers]
    print_table(heads, shown, brief=True, right=right)
