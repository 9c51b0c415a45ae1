"""What is printed at the end: tables, the SQL that produced each, and the account.

Contract. Every table comes from one statement on the public views, which is printed above it as it
was run and may be copied. Foreign words are made safe before they are shown. Must not know: how
the run was made.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mailstrom.client import Mailstrom
from mailstrom.demo.audit import Audit
from mailstrom.demo.tables import fitting, upright
from mailstrom.printable import printable

MOST_SHOWN = 10
_LONGEST_CELL = 300
INDENT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibit:
    """A statement worth showing.

    Args:
        title: a sentence.
        upright: one name and value a line instead of a row, where rows are wide and few.
    """

    title: str
    sql: str
    upright: bool = False


EXHIBITS = (
    Exhibit(
        title="What became of every recipient, by domain:",
        sql="""\
SELECT domain, status, reason,
       count(*) AS recipients, sum(attempts) AS attempts
  FROM recipients
 GROUP BY domain, status, reason
 ORDER BY domain, status""",
    ),
    Exhibit(
        title="The attempts of a recipient that was deferred and then delivered:",
        sql="""\
SELECT number, ended_at, stage, verdict,
       reply_code || ' ' || coalesce(enhanced_code || ' ', '')
                  || reply_text AS reply
  FROM attempts
 WHERE (message_id, recipient) = (SELECT message_id, address FROM recipients
                                   WHERE status = 'delivered' AND attempts > 1
                                   ORDER BY finished_ms LIMIT 1)
 ORDER BY number""",
    ),
    Exhibit(
        title="A recipient that failed, with the server's own words:",
        sql="""\
SELECT address, status, reason, mx, finished_at,
       reply_code, enhanced_code, reply_text
  FROM recipients
 WHERE status = 'failed' AND reason = 'bounced'
 ORDER BY finished_ms LIMIT 1""",
        upright=True,
    ),
    Exhibit(
        title="A session over TLS (self-signed, so encrypted and not verified):",
        sql="""\
SELECT host, address, messages,
       tls_wanted, tls_reached, tls_version, tls_cipher, tls_peer
  FROM sessions
 WHERE tls_version IS NOT NULL
 ORDER BY messages DESC LIMIT 1""",
        upright=True,
    ),
    Exhibit(
        title="A domain whose first MX host refuses connections; no recipient paid for it:",
        sql="""\
SELECT host, count(*) AS connections, sum(messages) AS messages,
       max(end_cause) AS end_cause
  FROM sessions
 WHERE host LIKE '%.twomx.example'
 GROUP BY host""",
    ),
)

_ELSEWHERE = (
    ("mailstrom send", "put a message into a spool, durably, and print its id"),
    ("mailstrom serve", "run the engine on it"),
    ("mailstrom status ID", "ask for a message, each recipient on its own"),
    ("mailstrom show ID", "the same with every attempt, and what happens next"),
    ("mailstrom queue list", "what waits, where, and why"),
    ("mailstrom sql QUERY", "any question to the views; schema_info describes them"),
)


def say(console: Console, text: str = "", style: str = "") -> None:
    """Print a line of ours as it is: no markup, no colouring of numbers, never cut."""
    console.print(Text(text, style=style), soft_wrap=True, highlight=False)


def print_exhibits(console: Console, client: Mailstrom) -> None:
    """Ask each statement and print it with its rows; those without rows are left out.

    Raises:
        SpoolError: the spool cannot be read.
    """
    for exhibit in EXHIBITS:
        rows = client.query(exhibit.sql)
        if not rows:
            continue
        say(console)
        say(console, exhibit.title, "bold")
        for line in exhibit.sql.splitlines():
            say(console, f"  {line}", "dim")
        say(console)
        table = _table(rows, console.width - INDENT, standing=exhibit.upright)
        _print_table(console, Padding(table, (0, 0, 0, INDENT)))


def print_elsewhere(console: Console, store: Path, log: Path, *, kept: bool) -> None:
    """Print where one can look further.

    Args:
        store, log: of this run.
        kept: whether they stay.
    """
    say(console)
    if kept:
        say(console, f"This run stays in {store.parent} (log: {log.name}). Ask it:")
        say(console, f"  export MAILSTROM_STORE={shlex.quote(str(store))}")
        say(console, "  mailstrom destinations list --all")
    else:
        say(console, "This run's spool is removed now; --keep leaves it for your own questions.")
    say(console, "With a spool of your own (each command has --help):")
    for command, purpose in _ELSEWHERE:
        say(console, f"  {command:<22}{purpose}")


def print_findings(console: Console, audit: Audit) -> None:
    """Print each finding of the account that is not empty, the first few by name."""
    for name, findings in audit.findings.items():
        if not findings:
            continue
        say(console, f"{len(findings)} {name}:", "bold red")
        for text in findings[:MOST_SHOWN]:
            say(console, f"  {printable(text)}")
        if len(findings) > MOST_SHOWN:
            say(console, f"  and {len(findings) - MOST_SHOWN} more")


def _print_table(console: Console, table: Padding) -> None:
    """Draw it; off a terminal without the blanks that fill lines up to the width."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as drawn:
        console.print(table)
    for line in drawn.get().splitlines():
        say(console, line.rstrip())


def _cell(value: object) -> str:
    return "" if value is None else printable(str(value), _LONGEST_CELL)


def _table(rows: list[Any], width: int, *, standing: bool) -> Table:
    columns = rows[0]._fields
    cells = [[_cell(value) for value in row] for row in rows]
    if standing:
        return upright(columns, cells)
    numbers = {place for place, value in enumerate(rows[0]) if isinstance(value, int)}
    return fitting(columns, cells, width, right=numbers)
