"""The one filter grammar of ``queue``: which recipients a command means.

Filters are joined with "and", values of one filter with "or". A change passes them to the client
(``filters()``); a listing asks the public views (``where()``), values as parameters only. Message
ids may be given by a unique suffix (``mailstrom.cli.ids``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mailstrom.cli.complete import stream_words
from mailstrom.cli.ids import full_ids
from mailstrom.cli.times import ms_of, past
from mailstrom.errors import InvalidAddress
from mailstrom.printable import printable
from mailstrom.types import FINAL, RESERVED, Reason, Status

if TYPE_CHECKING:
    from mailstrom.client import Mailstrom

F = TypeVar("F", bound=Callable[..., Any])
Text = TypeVar("Text", str, tuple[str, ...])

MOST_ROWS = 1_000_000_000
"""Of a limit; more is a slip of the finger, and beyond what SQLite counts with."""

RECIPIENT_STATUSES = tuple(str(s) for s in Status if s is not Status.PARTIAL)
WAITING = tuple(str(s) for s in Status if s not in FINAL)
REASONS = tuple(str(reason) for reason in Reason)

COLUMNS = (
    "message_id", "address", "status", "reason", "attempts", "next_attempt_at", "mx", "reply_text",
)  # fmt: skip

# a view's row of a recipient joined with its message's
SOURCE = "messages m join recipients r on r.message_id = m.id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The filters of one command line; empty fields do not restrict.

    Args:
        ids: message ids.
        status, reason, domain, recipient, sender, tag, stream: words of the views.
        since, until: accepted at or after, and before.
        everything: ``--all`` was given.
    """

    ids: tuple[str, ...] = ()
    status: tuple[str, ...] = ()
    reason: tuple[str, ...] = ()
    domain: tuple[str, ...] = ()
    recipient: tuple[str, ...] = ()
    sender: tuple[str, ...] = ()
    tag: tuple[str, ...] = ()
    stream: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    everything: bool = False

    @property
    def named(self) -> bool:
        """Whether any filter was given."""
        return replace(self, everything=False) != Selection()

    def limited_to(self, statuses: Sequence[str], reasons: Sequence[str] = ()) -> Selection:
        """With ``statuses`` and ``reasons`` where the user named none."""
        return replace(
            self, status=self.status or tuple(statuses), reason=self.reason or tuple(reasons)
        )

    def found_in(self, client: Mailstrom) -> Selection:
        """With the full ids of those that were given by their ends."""
        return replace(self, ids=full_ids(client, self.ids)) if self.ids else self

    def filters(self) -> dict[str, Any]:
        """Keyword arguments of ``Mailstrom.change_all``; empty ones are left out."""
        given = {
            name: getattr(self, name)
            for name in ("ids", *_COLUMN_OF, "tag", "since", "until")
            if getattr(self, name)
        }
        return given or {"everything": True}

    def where(self) -> tuple[str, list[str | int]]:
        """The condition over ``SOURCE``, and its parameters."""
        clauses, parameters = ["1"], list[str | int]()
        for column, values in (
            ("m.id", self.ids),
            *((column, getattr(self, name)) for name, column in _COLUMN_OF.items()),
        ):
            if values:
                clauses.append(f"{column} in ({_marks(values)})")
                parameters.extend(values)
        if self.tag:
            clauses.append(
                f"m.id in (select message_id from tags where tag in ({_marks(self.tag)}))"
            )
            parameters.extend(self.tag)
        for operator, moment in ((">=", self.since), ("<", self.until)):
            if moment is not None:
                clauses.append(f"m.created_ms {operator} ?")
                parameters.append(ms_of(moment))
        return " and ".join(clauses), parameters

    def rows_sql(self, limit: int) -> tuple[str, list[str | int]]:
        """The matching recipients with ``COLUMNS``, oldest message first; limit 0 is all.

        Ids rise with the time of acceptance, so their index gives the order without a sort.
        """
        condition, parameters = self.where()
        columns = ", ".join("r." + column for column in COLUMNS)
        sql = f"select {columns} from {SOURCE} where {condition} order by m.id, r.address limit ?"
        return sql, [*parameters, limit or -1]

    def counts_sql(self) -> tuple[str, list[str | int]]:
        """Rows of (status, recipients, messages); what waits as a whole is counted already."""
        by_status = bool(self.status) and self == Selection(status=self.status)
        if by_status and set(self.status) <= set(WAITING):
            sql = (
                "select status, recipients, messages from queue_counts where recipients > 0"
                f" and status in ({_marks(self.status)}) order by status"
            )
            return sql, [*self.status]
        condition, parameters = self.where()
        sql = (
            "select r.status as status, count(*) as recipients,"
            f" count(distinct m.id) as messages from {SOURCE}"
            f" where {condition} group by r.status order by r.status"
        )
        return sql, parameters


_COLUMN_OF = {
    "status": "r.status",
    "reason": "r.reason",
    "domain": "r.domain",
    "recipient": "r.address",
    "sender": "m.sender",
    "stream": "m.stream",
}


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def addresses(
    ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]
) -> tuple[str, ...]:
    """Addresses as the spool has them: the domain as lower-case A-label; "" is the null sender."""
    if not texts:
        return texts
    from mailstrom.message.address import parse_address

    try:
        return tuple(parse_address(text).key if text else "" for text in texts)
    except InvalidAddress as error:
        raise click.BadParameter(str(error)) from error


def address(ctx: click.Context, param: click.Parameter, text: str | None) -> str | None:
    """The same for a single address."""
    return None if text is None else addresses(ctx, param, (text,))[0]


def domains(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    """Domains as the spool has them: lower-case A-labels."""
    if not texts:
        return texts
    from mailstrom.message.address import parse_domain

    try:
        return tuple(parse_domain(text) for text in texts)
    except InvalidAddress as error:
        raise click.BadParameter(str(error)) from error


def characters(ctx: click.Context, param: click.Parameter | None, given: Text) -> Text:
    """Text, or several, as it was given, where it is text: the shell passes any bytes."""
    for text in (given,) if isinstance(given, str) else given:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise click.BadParameter(f"'{printable(text, 80)}' is not UTF-8") from None
    return given


def _words(
    name: str, words: Sequence[str], text: str, reserved: Sequence[str] = ()
) -> Callable[[F], F]:
    told = (f"{word} (reserved)" if word in reserved else word for word in words)
    return click.option(
        f"--{name}",
        multiple=True,
        type=click.Choice(words),
        metavar="WORD",
        help=f"{text}: {', '.join(told)}.",
    )


def filters(function: F) -> F:
    """Adds IDS and the options of ``Selection``, in the order of the page."""
    for decorate in reversed(
        (
            click.argument("ids", nargs=-1, metavar="[ID]..."),
            _words("status", RECIPIENT_STATUSES, "Recipient status"),
            _words("reason", REASONS, "Recipient reason", RESERVED),
            click.option(
                "--domain", multiple=True, metavar="D", callback=domains, help="Recipient domain."
            ),
            click.option(
                "--recipient", multiple=True, metavar="ADDR", callback=addresses, help="Address."
            ),
            click.option(
                "--sender",
                multiple=True,
                metavar="ADDR",
                callback=addresses,
                help='Envelope sender; "" is the null sender.',
            ),
            click.option(
                "--tag", multiple=True, metavar="T", callback=characters, help="Tag of the message."
            ),
            click.option(
                "--stream",
                multiple=True,
                metavar="S",
                callback=characters,
                shell_complete=stream_words,
                help="Stream of the message.",
            ),
            click.option(
                "--older-than",
                "until",
                metavar="AGE",
                callback=past,
                help="Accepted before: 2h, 3d, or an ISO time.",
            ),
            click.option(
                "--newer-than",
                "since",
                metavar="AGE",
                callback=past,
                help="Accepted since: 2h, 3d, or an ISO time.",
            ),
            click.option("--all", "everything", is_flag=True, help="Without a filter: everything."),
        )
    ):
        function = decorate(function)
    return function
