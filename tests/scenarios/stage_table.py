"""What becomes of a recipient when its mail host fails at each stage in each way: the table.

Contract. ``EXPECTED`` is written from the documented policy (the head of
``mailstrom.policy.outcome``), not from what the engine does. Each line: stage, fault, then for a
domain with a second host that works: status, reason, in doubt, next host tried; then for a domain
domain whose only host it is: status, reason, in doubt, attempts charged.

``EXPECTED`` holds with PIPELINING and without; the tests measure both. ``BEHIND`` is for what
stands behind another message's dot, which is answered late, and well; ``FLIGHT`` for a message
whose content goes by BDAT in one flight with its envelope, after another that proved BDAT there. An
envelope behind a dot of which nothing was answered charges nobody: it goes to the same host once
more. A flight with its content is past its last octet at once: what is lost in it is in doubt.

``render`` makes the page ``docs/design/stage-table.md``; write it with
``python -P -m tests.scenarios.stage_table > docs/design/stage-table.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mailstrom.testing.script import Act, Rule, Script
from tests.support.network import HELD_S

ALONE = ("pipelined", "serial")
MODES = (*ALONE, "behind", "bdat")
WARM_S = 0.7
"""The content before by BDAT is answered so late."""

EXPECTED = """
connect   refused  delivered  -        no   yes   deferred   connect  no   0
connect   timeout  delivered  -        no   yes   deferred   connect  no   0
greeting  4xx      delivered  -        no   yes   deferred   remote   no   0
greeting  5xx      delivered  -        no   yes   deferred   remote   no   0
greeting  421      delivered  -        no   yes   deferred   remote   no   0
greeting  close    delivered  -        no   yes   deferred   remote   no   0
greeting  silence  delivered  -        no   yes   deferred   remote   no   0
greeting  garbage  delivered  -        no   yes   deferred   remote   no   0
ehlo      4xx      delivered  -        no   yes   deferred   remote   no   0
ehlo      5xx      delivered  -        no   yes   deferred   remote   no   0
ehlo      421      delivered  -        no   yes   deferred   remote   no   0
ehlo      close    delivered  -        no   yes   deferred   remote   no   0
ehlo      silence  delivered  -        no   yes   deferred   remote   no   0
ehlo      garbage  delivered  -        no   yes   deferred   remote   no   0
starttls  4xx      delivered  -        no   no    delivered  -        no   1
starttls  5xx      delivered  -        no   no    delivered  -        no   1
starttls  421      delivered  -        no   yes   deferred   tls      no   0
starttls  close    delivered  -        no   yes   deferred   tls      no   0
starttls  silence  delivered  -        no   yes   deferred   tls      no   0
starttls  garbage  delivered  -        no   yes   deferred   tls      no   0
mail      4xx      delivered  -        no   yes   deferred   remote   no   1
mail      5xx      failed     bounced  no   no    failed     bounced  no   1
mail      421      delivered  -        no   yes   deferred   remote   no   1
mail      close    delivered  -        no   yes   deferred   remote   no   0
mail      silence  delivered  -        no   yes   deferred   remote   no   1
mail      garbage  delivered  -        no   yes   deferred   remote   no   1
rcpt      4xx      delivered  -        no   yes   deferred   remote   no   1
rcpt      5xx      failed     bounced  no   no    failed     bounced  no   1
rcpt      421      delivered  -        no   yes   deferred   remote   no   1
rcpt      close    delivered  -        no   yes   deferred   remote   no   1
rcpt      silence  delivered  -        no   yes   deferred   remote   no   1
rcpt      garbage  delivered  -        no   yes   deferred   remote   no   1
data      4xx      delivered  -        no   yes   deferred   remote   no   1
data      5xx      failed     bounced  no   no    failed     bounced  no   1
data      421      delivered  -        no   yes   deferred   remote   no   1
data      close    delivered  -        no   yes   deferred   remote   no   1
data      silence  delivered  -        no   yes   deferred   remote   no   1
data      garbage  delivered  -        no   yes   deferred   remote   no   1
body      4xx      delivered  -        no   yes   deferred   remote   no   1
body      5xx      failed     bounced  no   no    failed     bounced  no   1
body      421      delivered  -        no   yes   deferred   remote   no   1
body      close    delivered  -        no   yes   deferred   remote   no   1
body      silence  delivered  -        no   yes   deferred   remote   no   1
body      garbage  delivered  -        no   yes   deferred   remote   no   1
dot       4xx      delivered  -        no   yes   deferred   remote   no   1
dot       5xx      failed     bounced  no   no    failed     bounced  no   1
dot       421      delivered  -        no   yes   deferred   remote   no   1
dot       close    deferred   in_doubt yes  no    deferred   in_doubt yes  1
dot       silence  deferred   in_doubt yes  no    deferred   in_doubt yes  1
dot       garbage  deferred   in_doubt yes  no    deferred   in_doubt yes  1
"""

BEHIND = """
mail      4xx      delivered  -        no   yes   deferred   remote   no   1
mail      5xx      failed     bounced  no   no    failed     bounced  no   1
mail      421      delivered  -        no   no    delivered  -        no   1
mail      close    delivered  -        no   no    delivered  -        no   1
mail      silence  delivered  -        no   no    delivered  -        no   1
mail      garbage  delivered  -        no   no    delivered  -        no   1
rcpt      4xx      delivered  -        no   yes   deferred   remote   no   1
rcpt      5xx      failed     bounced  no   no    failed     bounced  no   1
rcpt      421      delivered  -        no   yes   deferred   remote   no   1
rcpt      close    delivered  -        no   yes   deferred   remote   no   1
rcpt      silence  delivered  -        no   yes   deferred   remote   no   1
rcpt      garbage  delivered  -        no   yes   deferred   remote   no   1
data      4xx      delivered  -        no   yes   deferred   remote   no   1
data      5xx      failed     bounced  no   no    failed     bounced  no   1
data      421      delivered  -        no   yes   deferred   remote   no   1
data      close    delivered  -        no   yes   deferred   remote   no   1
data      silence  delivered  -        no   yes   deferred   remote   no   1
data      garbage  delivered  -        no   yes   deferred   remote   no   1
body      4xx      delivered  -        no   yes   deferred   remote   no   1
body      5xx      failed     bounced  no   no    failed     bounced  no   1
body      421      delivered  -        no   yes   deferred   remote   no   1
body      close    delivered  -        no   yes   deferred   remote   no   1
body      silence  delivered  -        no   yes   deferred   remote   no   1
body      garbage  delivered  -        no   yes   deferred   remote   no   1
dot       4xx      delivered  -        no   yes   deferred   remote   no   1
dot       5xx      failed     bounced  no   no    failed     bounced  no   1
dot       421      delivered  -        no   yes   deferred   remote   no   1
dot       close    deferred   in_doubt yes  no    deferred   in_doubt yes  1
dot       silence  deferred   in_doubt yes  no    deferred   in_doubt yes  1
dot       garbage  deferred   in_doubt yes  no    deferred   in_doubt yes  1
"""

FLIGHT = """
mail      4xx      delivered  -        no   yes   deferred   remote   no   1
mail      5xx      failed     bounced  no   no    failed     bounced  no   1
mail      421      delivered  -        no   no    delivered  -        no   1
mail      close    deferred   in_doubt yes  no    deferred   in_doubt yes  1
mail      silence  deferred   in_doubt yes  no    deferred   in_doubt yes  1
mail      garbage  deferred   in_doubt yes  no    deferred   in_doubt yes  1
rcpt      4xx      delivered  -        no   yes   deferred   remote   no   1
rcpt      5xx      failed     bounced  no   no    failed     bounced  no   1
rcpt      421      delivered  -        no   yes   deferred   remote   no   1
rcpt      close    deferred   in_doubt yes  no    deferred   in_doubt yes  1
rcpt      silence  deferred   in_doubt yes  no    deferred   in_doubt yes  1
rcpt      garbage  deferred   in_doubt yes  no    deferred   in_doubt yes  1
body      close    deferred   in_doubt yes  no    deferred   in_doubt yes  1
body      silence  deferred   in_doubt yes  no    deferred   in_doubt yes  1
body      garbage  deferred   in_doubt yes  no    deferred   in_doubt yes  1
dot       4xx      delivered  -        no   yes   deferred   remote   no   1
dot       5xx      failed     bounced  no   no    failed     bounced  no   1
dot       421      delivered  -        no   yes   deferred   remote   no   1
dot       close    deferred   in_doubt yes  no    deferred   in_doubt yes  1
dot       silence  deferred   in_doubt yes  no    deferred   in_doubt yes  1
dot       garbage  deferred   in_doubt yes  no    deferred   in_doubt yes  1
"""


class Cell(NamedTuple):
    """One place of the table."""

    stage: str
    fault: str
    mode: str


class Outcome(NamedTuple):
    """What became of the recipients of one cell, in words.

    Args:
        status, reason, in_doubt, next_host: with a second host that works.
        last_status, last_reason, last_in_doubt, attempts: where it is the only host.
    """

    status: str
    reason: str
    in_doubt: str
    next_host: str
    last_status: str
    last_reason: str
    last_in_doubt: str
    attempts: str


def expected() -> dict[Cell, Outcome]:
    """The literal tables, once for each mode."""
    table: dict[Cell, Outcome] = {}
    for text, modes in ((EXPECTED, ALONE), (BEHIND, ("behind",)), (FLIGHT, ("bdat",))):
        for line in filter(None, text.split("\n")):
            stage, fault, *words = line.split()
            for mode in modes:
                table[Cell(stage, fault, mode)] = Outcome(*words)
    return table


def attempted(cell: Cell) -> str:
    """The stage that the failed attempt of a cell names: what is in doubt is so at the dot."""
    return "dot" if expected()[cell].last_in_doubt == "yes" else cell.stage


_FAULTS: Mapping[str, Mapping[str, object]] = {
    "4xx": {"code": 450, "enhanced": "4.3.0", "text": "not now"},
    "5xx": {"code": 554, "enhanced": "5.3.0", "text": "not ever"},
    "421": {"code": 421, "enhanced": "4.3.2", "text": "closing", "close": True},
    "close": {"act": Act.CLOSE},
    "silence": {"act": Act.SILENCE},
    "garbage": {"act": Act.GARBAGE, "data": "certainly no SMTP\r\n"},
}


def script(cell: Cell) -> Script:
    """How the faulty host of a cell behaves; to ``a@...``, where ``warm@...`` goes first."""
    fault = dict(_FAULTS[cell.fault])
    if (cell.stage, cell.fault) == ("body", "silence"):
        # A host that reads on and says nothing is silent at the dot: here it stops reading.
        fault["act"] = Act.STALL
    if cell.mode not in ALONE:
        # The content before is answered when what follows is seen to stand behind it.
        warm_s = HELD_S if cell.mode == "behind" else WARM_S
        return Script(
            rules=(
                Rule(stage="dot", delay=warm_s, recipient="warm@*", last=1),
                Rule(stage=cell.stage, **fault, **_narrowed(cell)),  # type: ignore[arg-type]
            ),
            magic=False,
            chunking=cell.mode == "bdat",
        )
    rules = [Rule(stage=cell.stage, **fault)]  # type: ignore[arg-type]
    if (cell.stage, cell.fault) == ("ehlo", "5xx"):
        # A refused EHLO is tried as HELO (RFC 5321 section 3.2): this host knows neither.
        rules.append(Rule(stage="helo", **fault))  # type: ignore[arg-type]
    return Script(rules=tuple(rules), magic=False, pipelining=cell.mode == "pipelined")


def _narrowed(cell: Cell) -> Mapping[str, object]:
    """To the message that comes second; once, where no recipient is named yet."""
    if cell.stage != "mail":
        return {"recipient": "a@*"}
    return {"behind": True} if cell.mode == "behind" else {"first": 2, "last": 2}


_HEAD = """\
# Stage by fault: what becomes of a recipient

Measured by `tests/scenarios/test_stage_table.py`, each cell on real sockets against a real
engine; the test holds this page to what it measures. `421` and `close` close the connection,
`garbage` is a line that is no reply, then silence; `silence` in the body is a host that stops
reading. At STARTTLS the policy is opportunistic: a host that refuses it by a reply gets the mail in
clear.

Modes: `pipelined` and `serial` are a message alone, with PIPELINING and without. `behind`: its
envelope left behind the dot of another message, which was answered late, and well. `bdat`: its
envelope and its content by BDAT left in one flight. In these two modes the host fails once, and
only for this message.

Left: the domain has a second host that works. Right: this host is the only one; 0 attempts means
that the site was suspended and the recipient not charged.

Each message has one recipient. Where a 421 or a close at RCPT or DATA comes behind other
recipients that were refused for good, who is left goes to the same host again, on another
connection, uncharged
([failure policy](failure-policy.md#hosts-that-close-behind-unknown-recipients)).

| stage | fault | mode | status | reason | in doubt | next host tried | only host: status | reason \
| in doubt | attempts |
|---|---|---|---|---|---|---|---|---|---|---|
"""


def render(table: Mapping[Cell, Outcome]) -> str:
    """The table as a Markdown page; modes with one outcome share a line."""
    lines: list[str] = []
    for stage, fault in dict.fromkeys((cell.stage, cell.fault) for cell in table):
        alike: dict[Outcome, list[str]] = {}
        for mode in MODES:
            if (cell := Cell(stage, fault, mode)) in table:
                alike.setdefault(table[cell], []).append(mode)
        lines += [
            f"| {' | '.join((stage, fault, ', '.join(modes), *outcome))} |\n"
            for outcome, modes in alike.items()
        ]
    return _HEAD + "".join(lines)


if __name__ == "__main__":
    print(render(expected()), end="")
