"""``mailstrom destinations``: sites (sets of mail hosts), what waits, and whether they rest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from mailstrom.cli.ids import Several
from mailstrom.cli.output import cell, fold, print_json, print_table, terminal
from mailstrom.cli.selection import characters
from mailstrom.cli.spool import json_option, opened, spool_options
from mailstrom.clock import wall_ms
from mailstrom.errors import MailstromError
from mailstrom.spans import span_text
from mailstrom.types import RouteResult, iso_ms

if TYPE_CHECKING:
    from mailstrom.client import Mailstrom

_SITES = "select * from destinations"
_NAMED = (
    f"{_SITES} where site = ?1 or site in (select site from domains where name = ?2)"
    " or exists (select 1 from json_each(hosts) where value ->> 1 = ?2)"
    " or instr(';' || site || ';', ';' || ?2 || ';') order by site limit 10"
)
COLUMNS = ("site", "queued", "deferred", "oldest", "lanes", "until", "because", "domains")
_NUMBERS = (1, 2, 3, 4)


class ListedGroup(click.Group):
    """Takes ``list`` for granted where no command is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts ``list`` before options that stand alone."""
        alone = not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names)
        completing = ctx.resilient_parsing
        return super().parse_args(ctx, ["list", *args] if alone and not completing else args)


@click.group("destinations", cls=ListedGroup)
def command() -> None:
    """Sites (sets of mail hosts), what waits there, and whether they are left alone.

    Without a command: list.
    """


@command.command("list")
@click.option("--all", "everything", is_flag=True, help="Also sites where nothing waits.")
@spool_options
@json_option
def list_sites(everything: bool, config: str | None, store: str | None, as_json: bool) -> None:
    """Sites where something waits or that are left alone. The fullest come first."""
    with opened(config, store) as client:
        rows = client.query(f"{_SITES} order by queued + deferred desc, site")
    now = wall_ms()
    if not everything:
        rows = [row for row in rows if row.queued or row.deferred or row.lanes or _rests(row, now)]
    if as_json:
        for row in rows:
            print_json(_record(row, now))
    elif rows:
        lines = [_line(row, now) for row in rows]
        kept = len(COLUMNS) - terminal()  # what a person has no room for, 'show' tells
        print_table(COLUMNS[:kept], [x[:kept] for x in lines], brief=True, right=_NUMBERS)
    else:
        click.echo("nothing waits at any site; --all shows all sites", err=True)


@command.command("show")
@click.argument("site", callback=characters)
@spool_options
@json_option
def show(site: str, config: str | None, store: str | None, as_json: bool) -> None:
    """Everything about SITE. Name it by itself, by one of its hosts, or by a domain it serves."""
    with opened(config, store) as client:
        row = _one(client, site)
        sessions = client.query(
            "select id, worker, host, address, started_at, messages, tls_version from sessions"
            " where site = ? and ended_ms is null order by started_ms",
            (row.site,),
        )
        domains = client.query(
            "select name, result, expires_at, error from domains where site = ? order by name",
            (row.site,),
        )
    now = wall_ms()
    if as_json:
        record = _record(row, now)
        record["sessions"] = [session._asdict() for session in sessions]
        print_json(record)
    else:
        _tell(row, domains, sessions, now)


def _one(client: Mailstrom, name: str) -> Any:
    domain = name.lower().rstrip(".")
    rows = client.query(_NAMED, (name, domain))
    exact = [row for row in rows if row.site == name]
    rows = exact or rows
    if not rows:
        raise MailstromError(
            f"no site, host or domain {name[:255]!r} is known;"
            " 'mailstrom destinations list --all' shows what is"
        )
    if len(rows) > 1:
        raise Several(f"{name!r} belongs to several sites; name one:", [row.site for row in rows])
    return rows[0]


def _rests(row: Any, now: int) -> bool:
    return (row.suspended_until_ms or 0) > now


def _oldest_ms(row: Any, now: int) -> int | None:
    """How long the longest waiting recipient is due; None where nothing is due yet."""
    due = row.oldest_due_ms
    return now - due if due is not None and due <= now else None


def _lanes(row: Any) -> str:
    return f"{row.lanes}/{row.lanes_limit}" if row.lanes_limit is not None else str(row.lanes)


def _because(row: Any) -> str:
    return "; ".join(part for part in (row.reason, row.suspended_by, row.last_reply) if part)


def _line(row: Any, now: int) -> Sequence[object]:
    oldest = _oldest_ms(row, now)
    rests = _rests(row, now)
    return (
        _short(row.site.split(";")) if terminal() else row.site,
        row.queued,
        row.deferred,
        None if oldest is None else span_text(oldest),
        _lanes(row),
        row.suspended_until_at if rests else None,
        _because(row) if rests else None,
        _short(json.loads(row.domains)),
    )


def _short(names: Sequence[str]) -> str:
    """The first of names, and how many more there are."""
    first = names[0].removesuffix(":25") if names else ""
    return f"{first} +{len(names) - 1}" if len(names) > 1 else first


def _record(row: Any, now: int) -> dict[str, object]:
    record: dict[str, object] = row._asdict()
    hosts = json.loads(row.hosts)
    record["hosts"] = [{"preference": p, "host": name, "port": port} for p, name, port in hosts]
    record["domains"] = json.loads(row.domains)
    record["oldest_due_age_ms"] = _oldest_ms(row, now)
    record["suspended"] = _rests(row, now)
    return record


def _tell(row: Any, domains: Sequence[Any], sessions: Sequence[Any], now: int) -> None:
    oldest = _oldest_ms(row, now)
    rests = _rests(row, now)
    lines = [
        ("site", row.site),
        ("provider", row.provider),
        ("queued", f"{row.queued:,}"),
        ("deferred", f"{row.deferred:,}"),
        ("oldest due", None if oldest is None else f"{span_text(oldest)} ago"),
        ("next due", row.oldest_due_at if oldest is None else None),
        ("connections", f"{row.lanes} of {row.lanes_limit}" if row.lanes_limit else row.lanes),
        ("pipelining", row.pipelining if row.pipelining_until_at is None
         else f"{row.pipelining} until {row.pipelining_until_at}, as it went wrong"),
        ("chunking", row.chunking),
        ("rests until", f"{row.suspended_until_at}: {_because(row)}" if rests else None),
        ("last rest", f"until {iso_ms(row.suspended_until_ms)}: {_because(row)}"
         if row.suspended_until_ms and not rests else None),
    ]  # fmt: skip
    for name, value in lines:
        if value is not None and value != "":
            fold(f"{name + ':':<13}", cell(value))
    click.echo("hosts:")
    for preference, host, port in json.loads(row.hosts):
        fold(f"  {preference:>5} ", cell(f"{host}:{port}" if port else host))
    click.echo("domains:")
    for domain in domains:
        known = f"{domain.result}, good until {domain.expires_at}"
        if domain.result == RouteResult.RELAY:  # by configuration, which has no end
            known = domain.result
        error = f": {domain.error}" if domain.error else ""
        fold("  ", cell(f"{domain.name} ({known}){error}"))
    if sessions:
        click.echo("open connections:")
    for session in sessions:
        tls = session.tls_version or "no TLS"
        # its messages are counted in the row when it ends
        fold("  ", cell(f"{session.host} [{session.address}] since {session.started_at}, {tls}"))
