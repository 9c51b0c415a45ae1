"""``mailstrom sql``: questions to the public views, read only."""

from __future__ import annotations

import re
import sys

import click

from mailstrom.cli.output import print_csv, print_json, print_table
from mailstrom.cli.selection import characters
from mailstrom.cli.spool import json_option, opened, spool_options
from mailstrom.errors import SpoolError, SpoolReadOnly

# What may hold a semicolon that ends nothing: texts, quoted names, comments.
_TOKEN = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|\Z)|[^'"`\[;/-]+|.""",
    re.DOTALL,
)


def behind_first(sql: str) -> str:
    """What stands behind the first statement, without comments; empty where nothing does."""
    rest: list[str] | None = None
    for match in _TOKEN.finditer(sql):
        token = match[0]
        if rest is not None and not token.startswith(("--", "/*")):
            rest.append(token)
        elif token == ";" and rest is None:
            rest = []
    return "".join(rest or ()).strip(" \t\r\n;")


def _read() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except OSError as error:
        raise click.UsageError(f"the query cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise click.UsageError(f"the query is not UTF-8 at byte {error.start}") from error


@click.command("sql")
@click.argument("query")
@spool_options
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="CSV with a heading line.")
def command(query: str, config: str | None, store: str | None, as_json: bool, as_csv: bool) -> None:
    """Run QUERY (``-`` reads it from standard input) and print its rows.

    The views are messages, recipients, attempts, sessions, events, destinations, domains, workers,
    hourly_stats, suppressions, tags, queue_counts and schema_info, which describes them; the tables
    below may change with any version. Name what you compute, as in "count(*) AS n": a column
    without a plain name of its own is shown as _0, _1, ...
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other")
    if query == "-":
        query = _read()
    if not query.strip():
        raise click.UsageError("the query is empty")
    if "\0" in query:
        raise click.UsageError("the query holds NUL, which has no place in a statement")
    characters(click.get_current_context(), None, query)
    if further := behind_first(query):
        raise click.UsageError(
            f"one statement at a time; behind the first semicolon stands {further[:40]!r}"
        )
    with opened(config, store) as client:
        try:
            rows = client.query(query)
        except SpoolError as error:
            # neither class has a reason of its own here: the statement is wrong, or would write
            if type(error) in {SpoolError, SpoolReadOnly}:
                raise click.UsageError(str(error)) from error
            raise
    if as_json:
        for row in rows:
            print_json(row._asdict())
    elif rows and as_csv:
        print_csv(rows[0]._fields, rows)
    elif rows:
        print_table(rows[0]._fields, rows)
    elif not as_csv:
        click.echo("no rows", err=True)
