"""Which recipients a ``queue`` command means: filters to SQL over the public views.

Filters are joined with "and", values of one filter with "or". Values travel as parameters only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import click

from mailstrom.types import FINAL, Status

F = TypeVar("F", bound=Callable[..., Any])

RECIPIENT_STATUSES = tuple(str(s) for s in Status if s is not Status.PARTIAL)
WAITING = tuple(str(s) for s in Status if s not in FINAL)

COLUMNS = (
    "message_id", "address", "status", "reason", "attempts", "next_attempt_at", "mx", "reply_text",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The filters of one command line; empty fields do not restrict.

    Args:
        ids: message ids.
        statuses, domains, recipients, senders: words of the ``recipients`` and ``messages`` views.
        everything: ``--all`` was given.
    """

    ids: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    recipients: tuple[str, ...] = ()
    senders: tuple[str, ...] = ()
    everything: bool = False

    @property
    def named(self) -> bool:
        """Whether any filter was given."""
        return bool(self.ids or self.statuses or self.domains or self.recipients or self.senders)

    @property
    def whole_messages(self) -> bool:
        """Whether the filters choose messages, never single recipients of one."""
        return not (self.statuses or self.domains or self.recipients)

    def limited_to(self, statuses: Sequence[str]) -> Selection:
        """With ``statuses`` where the user named none."""
        return self if self.statuses else replace(self, statuses=tuple(statuses))

    def where(self) -> tuple[str, list[str]]:
        """The condition over ``recipients r`` joined with ``messages m``, and its parameters."""
        clauses, parameters = ["1"], list[str]()
        for column, values in (
            ("r.message_id", self.ids),
            ("r.status", self.statuses),
            ("r.domain", tuple(value.lower() for value in self.domains)),
            ("r.address", self.recipients),
            ("m.sender", self.senders),
        ):
            if values:
                clauses.append(f"{column} in ({', '.join('?' * len(values))})")
                parameters.extend(values)
        return " and ".join(clauses), parameters

    def rows_sql(self, limit: int) -> tuple[str, list[str | int]]:
        """The matching recipients with ``COLUMNS``, oldest message first; limit 0 is all."""
        condition, parameters = self.where()
        sql = (
            f"select {', '.join('r.' + column for column in COLUMNS)}"
            " from recipients r join messages m on m.id = r.message_id"
            f" where {condition} order by m.created_ms, r.message_id, r.address limit ?"
        )
        return sql, [*parameters, limit or -1]

    def counts_sql(self) -> tuple[str, list[str]]:
        """Rows of (status, recipients, messages)."""
        condition, parameters = self.where()
        sql = (
            "select r.status as status, count(*) as recipients,"
            " count(distinct r.message_id) as messages"
            " from recipients r join messages m on m.id = r.message_id"
            f" where {condition} group by r.status order by r.status"
        )
        return sql, parameters


def filters(function: F) -> F:
    """Adds IDS, --status, --domain, --recipient, --sender and --all."""
    for decorate in (
        click.option("--all", "everything", is_flag=True, help="Without a filter: everything."),
        click.option("--sender", "senders", multiple=True, metavar="ADDR", help="Envelope sender."),
        click.option("--recipient", "recipients", multiple=True, metavar="ADDR", help="Address."),
        click.option("--domain", "domains", multiple=True, metavar="D", help="Recipient domain."),
        click.option(
            "--status",
            "statuses",
            multiple=True,
            type=click.Choice(RECIPIENT_STATUSES),
            metavar="WORD",
            help=f"Recipient status: {', '.join(RECIPIENT_STATUSES)}.",
        ),
        click.argument("ids", nargs=-1),
    ):
        function = decorate(function)
    return function
