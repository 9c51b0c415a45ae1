"""What is seen while the demonstration runs: a live picture on a terminal, plain lines elsewhere.

Contract. A ``Snapshot`` is one look at the spool; a display shows one after the other and never
asks anything itself. On a terminal the picture is redrawn in place and its last state stays; off a
terminal a line is printed at most once a second and only if something changed, without control
sequences. ``Silent`` shows nothing, for machine-readable output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mailstrom.demo.plan import DESTINATIONS
from mailstrom.types import Status

LINE_EVERY_S = 1.0

# Heading and the statuses it sums; the statuses that a run cannot reach count as waiting.
_COLUMNS: tuple[tuple[str, frozenset[str], str], ...] = (
    ("queued", frozenset({Status.QUEUED, Status.HELD}), ""),
    ("sending", frozenset({Status.SENDING}), "cyan"),
    ("deferred", frozenset({Status.DEFERRED}), "yellow"),
    ("delivered", frozenset({Status.DELIVERED}), "green"),
    ("failed", frozenset({Status.FAILED, Status.CANCELLED}), "red"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The run at one moment.

    Args:
        elapsed_s: seconds since the first message was sent.
        messages: how many are to be sent.
        accepted: messages accepted so far.
        counts: (domain, status) -> recipients.
        per_s: recipients that became final, a second, lately.
        connections: SMTP connections open.
    """

    elapsed_s: float
    messages: int
    accepted: int
    counts: Mapping[tuple[str, str], int]
    per_s: float
    connections: int

    @property
    def recipients(self) -> int:
        """Recipients in the spool."""
        return sum(self.counts.values())

    @property
    def final(self) -> int:
        """Recipients that are final."""
        return sum(number for (_, status), number in self.counts.items() if Status(status).final)

    def sums(self, domain: str | None = None) -> list[int]:
        """Recipients per column, of one domain or of all."""
        return [
            sum(
                number
                for (name, status), number in self.counts.items()
                if status in statuses and domain in (None, name)
            )
            for _, statuses, _ in _COLUMNS
        ]


class Display(Protocol):
    """Shows snapshots for the time of its block."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def show(self, snapshot: Snapshot) -> None:
        """Show the newest snapshot."""


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, snapshot: Snapshot) -> None:
        """Show nothing."""


class Lines(Silent):
    """One line now and then.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: Snapshot | None = None

    def show(self, snapshot: Snapshot) -> None:
        """Print a line if a second has passed and something changed, or if all is final."""
        last = self._last
        if last is not None:
            changed = (snapshot.accepted, snapshot.counts) != (last.accepted, last.counts)
            early = snapshot.elapsed_s - last.elapsed_s < LINE_EVERY_S
            complete = snapshot.accepted == snapshot.messages and (
                snapshot.final == snapshot.recipients
            )
            if not changed or (early and not complete):
                return
        self._last = snapshot
        numbers = zip(_COLUMNS, snapshot.sums(), strict=True)
        counts = "  ".join(f"{name} {number}" for (name, _, _), number in numbers)
        self._console.print(
            f"{snapshot.elapsed_s:6.1f} s  accepted {snapshot.accepted}/{snapshot.messages}"
            f"  {counts}  {snapshot.per_s:.0f}/s",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )


class Picture:
    """The live picture.

    Args:
        console: a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)
        self._last: Snapshot | None = None

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._last is not None:
            self._live.update(draw(self._last, over=True), refresh=True)
        self._live.stop()

    def show(self, snapshot: Snapshot) -> None:
        """Redraw."""
        self._last = snapshot
        self._live.update(draw(snapshot), refresh=True)


def display_for(console: Console, *, silent: bool) -> Display:
    """The display that fits: none, a live picture on a terminal, or plain lines."""
    if silent:
        return Silent()
    live = console.is_terminal and not console.is_dumb_terminal
    return Picture(console) if live else Lines(console)


def draw(snapshot: Snapshot, *, over: bool = False) -> Group:
    """The picture; what remains of it when it is ``over`` says nothing about a present."""
    head = Text.assemble(
        (f"{snapshot.elapsed_s:5.1f} s  ", "bold"),
        f"{snapshot.accepted}/{snapshot.messages} messages accepted",
    )
    if not over:
        head.append(f"  {snapshot.per_s:.0f} recipients/s")
        head.append(f"  {snapshot.connections} connections open")
    # Until everything is accepted the number of recipients is not known: the bar is of messages'
    # scale then, and never full.
    scale = max(snapshot.recipients, snapshot.messages)
    bar = Table.grid(expand=True)  # a bar ends no line by itself
    bar.add_row(ProgressBar(total=max(scale, 1), completed=snapshot.final))
    table = Table(box=box.SIMPLE, padding=0, show_footer=True, show_edge=False)
    table.add_column("destination", footer="all", no_wrap=True)
    table.add_column("how it behaves", no_wrap=True)
    for (name, _, style), number in zip(_COLUMNS, snapshot.sums(), strict=True):
        table.add_column(name, footer=str(number), justify="right", style=style, no_wrap=True)
    for one in DESTINATIONS:
        numbers = (str(number) if number else "-" for number in snapshot.sums(one.domain))
        table.add_row(one.domain, one.behaviour, *numbers)
    # The cursor rests on the last line: a short one, so that an echoed ^C does not scroll the rest.
    return Group(head, bar, table) if over else Group(head, bar, table, Text(" "))
