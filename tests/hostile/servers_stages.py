"""Each fault at each stage, with one host and with a second one behind it, pipelined and serial.

Contract. What is wanted is the literal table of ``tests.scenarios.stage_table``, and ``FURTHER``,
in the same form and from the same policy, for faults that it has not: ``reset`` (RST in place of
the reply), ``half`` (half a reply, then FIN) and ``after`` (the reply, then FIN). ``open`` is a 421
of a host that does not close, and means what 421 means (RFC 5321 section 3.8). Cells of one
fault with one outcome are a row. Content of the ``body`` cells is larger than any buffer, so its
dot is not written when the fault comes; that of all others leaves in one write with its dot, so
behind a 354 it counts as sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mailstrom.testing.script import Act, Rule, Script
from mailstrom.testing.smtp import SMTPServer
from tests.hostile.servers_judge import Trial, family, recipients, settled
from tests.hostile.stand import Stand
from tests.hostile.table import Row
from tests.scenarios.stage_table import ALONE, Cell, Outcome, expected, script
from tests.support.engine import STAGES, Tables, mail
from tests.support.trial import Plan

PATIENCE_S = 6
SETTINGS: Tables = {
    "delivery": {"max_connections": 400},
    "retry": {"schedule": ["1h"]},
    "sites": {"suspend": ["1h"], "idle": "0s", "connections": 1},
    "timeouts": {"connect": "6s", "quit": "1s", **dict.fromkeys(STAGES, f"{PATIENCE_S}s")},
}
"""First verdicts alone: what is tried again is so after the run."""

FURTHER = """
greeting  reset    delivered  -        no   yes   deferred   remote   no   0
greeting  half     delivered  -        no   yes   deferred   remote   no   0
greeting  after    delivered  -        no   yes   deferred   remote   no   0
ehlo      reset    delivered  -        no   yes   deferred   remote   no   0
ehlo      half     delivered  -        no   yes   deferred   remote   no   0
ehlo      after    delivered  -        no   yes   deferred   remote   no   0
starttls  reset    delivered  -        no   yes   deferred   tls      no   0
starttls  half     delivered  -        no   yes   deferred   tls      no   0
starttls  after    delivered  -        no   yes   deferred   tls      no   0
mail      reset    delivered  -        no   yes   deferred   remote   no   0
mail      half     delivered  -        no   yes   deferred   remote   no   0
mail      after    delivered  -        no   yes   deferred   remote   no   1
rcpt      reset    delivered  -        no   yes   deferred   remote   no   1
rcpt      half     delivered  -        no   yes   deferred   remote   no   1
rcpt      after    delivered  -        no   yes   deferred   remote   no   1
data      reset    delivered  -        no   yes   deferred   remote   no   1
data      half     delivered  -        no   yes   deferred   remote   no   1
data      after    deferred   in_doubt yes  no    deferred   in_doubt yes  1
body      reset    delivered  -        no   yes   deferred   remote   no   1
body      half     delivered  -        no   yes   deferred   remote   no   1
dot       reset    deferred   in_doubt yes  no    deferred   in_doubt yes  1
dot       half     deferred   in_doubt yes  no    deferred   in_doubt yes  1
dot       after    delivered  -        no   no    delivered  -        no   1
"""
_ACTS: Mapping[str, Mapping[str, object]] = {
    "reset": {"act": Act.RESET},
    "half": {"act": Act.GARBAGE, "data": "25", "close": True},
    "after": {"close": True},
    "open": {"code": 421, "enhanced": "4.3.2", "text": "closing"},
}
CALLED = {
    "refused": "refuses the connection",
    "timeout": "does not answer the connection",
    "4xx": "450",
    "5xx": "554",
    "421": "421, then closes,",
    "open": "421, and stays,",
    "close": "FIN in place of the reply",
    "reset": "RST in place of the reply",
    "half": "half a reply, then FIN,",
    "after": "the reply, then FIN,",
    "silence": "silence",
    "garbage": "a line that is no reply, then silence,",
}
BIG_LINES = 110_000  # about 8 MiB
SLOW = frozenset({"silence", "timeout"})


@dataclass(frozen=True, slots=True)
class Placed:
    """A cell's two recipients: of a domain with a second host that works, and of one without."""

    two: str
    second: SMTPServer
    only: str


def wanted() -> dict[Cell, Outcome]:
    """Every cell, with what is wanted of it."""
    table = {cell: outcome for cell, outcome in expected().items() if cell.mode != "behind"}
    for line in filter(None, FURTHER.split("\n")):
        stage, fault, *told = line.split()
        for mode in ALONE:
            table[Cell(stage, fault, mode)] = Outcome(*told)
    closing = [cell for cell in table if cell.fault == "421" and cell.mode in ALONE]
    return table | {cell._replace(fault="open"): table[cell] for cell in closing}


def run(stand: Stand, plan: Plan) -> Iterator[Row]:
    """The rows of ``connect`` to ``dot``, in the order of the table, then BDAT in one flight."""
    table = wanted()
    together = {} if plan.long else {c: o for c, o in table.items() if c.fault in SLOW}
    together |= {cell: outcome for cell, outcome in table.items() if cell.mode == "bdat"}
    alike: dict[tuple[str, Outcome], list[Cell]] = {}
    for cell, outcome in table.items():
        if cell not in together:
            alike.setdefault((cell.fault, outcome), []).append(cell)
    for (fault, outcome), cells in alike.items():
        yield group(stand, f"{CALLED[fault]} {_places(cells)}", cells, told(outcome), table)
    case = "every fault of the stage table in a flight of envelope and BDAT"
    if not plan.long:
        case += "; silence at any stage"
    yield group(stand, case, list(together), "as the stage table says of each", table)


def told(outcome: Outcome) -> str:
    """An outcome in words."""
    alone = [outcome.last_status, outcome.last_reason.replace("-", ""), _doubt(outcome)]
    one = f"{' '.join(filter(None, alone))}, {outcome.attempts} charged"
    if outcome.next_host == "yes":
        return f"{one}; {outcome.status} by the next host where there is one"
    return f"{one}; no other host is tried"


def _doubt(outcome: Outcome) -> str:
    return "in doubt" if outcome.last_in_doubt == "yes" else ""


def _places(cells: list[Cell]) -> str:
    stages = [stage for stage in dict.fromkeys(cell.stage for cell in cells) if stage != "connect"]
    return f"at {', '.join(stages)}" if stages else ""


def group(
    stand: Stand, case: str, cells: list[Cell], words: str, table: Mapping[Cell, Outcome]
) -> Row:
    """Cells brought about together, as one row."""
    placed = {cell: _place(stand, cell) for cell in cells}
    return family(stand, case.strip(), words, lambda: bring(stand, placed, table))


def bring(
    stand: Stand, placed: Mapping[Cell, Placed], table: Mapping[Cell, Outcome]
) -> Iterable[Trial]:
    """Send to all, wait for the first verdict on each."""
    ms, both = stand.engine.ms, lambda one: (one.two, one.only)
    warm = [
        f"warm{address.removeprefix('a')}"
        for cell, one in placed.items()
        if cell.mode == "bdat"
        for address in both(one)
    ]
    big, small = [], []
    for cell, one in placed.items():
        (big if cell.stage == "body" and cell.mode != "bdat" else small).extend(both(one))
    ids = ms.send_many(mail(address) for address in (*warm, *small))
    if big:
        ids.append(ms.send(mail(*big, text=f"{'x' * 76}\n" * BIG_LINES)))
    settled(stand, ids)
    rows = recipients(stand, ids)
    for address in warm:
        yield Trial(name=address, wanted="delivered", seen=rows[address].status)
    for cell, one in placed.items():
        outcome = Outcome(
            *_seen(rows[one.two]),
            "yes" if one.second.connections else "no",
            *_seen(rows[one.only]),
            str(rows[one.only].attempts),
        )
        if (cell.stage, cell.fault) == ("greeting", "reset") and outcome.last_reason == "connect":
            # a slow client hears of the RST before it hears that it was connected
            outcome = outcome._replace(last_reason="remote")
        yield Trial(name="-".join(cell), wanted=told(table[cell]), seen=told(outcome))


def _seen(row: Any) -> tuple[str, str, str]:
    return row.status, row.reason or "-", "yes" if row.in_doubt else "no"


def _place(stand: Stand, cell: Cell) -> Placed:
    network = stand.network
    second = network.host(Script(pipelining=cell.mode != "serial"))
    if cell.stage == "connect":
        first, only = (_nobody(stand, cell) for _ in "12")
    else:
        names = ("mx1.test",) if cell.stage == "starttls" else ()
        first, only = (network.host(_script(cell), names=names).host for _ in "12")
    two, one = network.new_domain(), network.new_domain()
    network.route(two, [first, second.host])
    network.route(one, [only])
    return Placed(f"a@{two}", second, f"a@{one}")


def _nobody(stand: Stand, cell: Cell) -> str:
    return stand.network.deaf() if cell.fault == "timeout" else stand.network.nobody()


def _script(cell: Cell) -> Script:
    if cell.fault not in _ACTS:
        return script(cell)
    rule = Rule(stage=cell.stage, **_ACTS[cell.fault])  # type: ignore[arg-type]
    return Script(rules=(rule,), magic=False, pipelining=cell.mode == "pipelined")
