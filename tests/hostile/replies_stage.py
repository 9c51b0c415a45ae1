"""Where hosts that talk nonsense are tried: one message to each, and what became of it.

Contract. ``Trial`` is one host's behaviour and the outcome wanted of a message to it, and to it
alone; ``judged`` runs some and makes one row of them that tells the worst. Beside the outcome it
holds against the engine: *delivered* where the host never had the content or refused it; a host
that may have it and no doubt marked; what no client may say; more than a MiB of memory beyond
the content, or more than a second of processor, for one host.

Must not know: any case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from tests.hostile.rawhost import Manners, RawHost
from tests.hostile.stand import Stand
from tests.hostile.table import MIB, Row
from tests.support.engine import DEADLINE_S, mail
from tests.support.sockets import eventually, loopback_addresses

DELIVERED = "delivered, 1 charged"
HOST = "deferred remote, 0 charged"
LATER = "deferred remote, 1 charged"
DOUBT = "deferred in_doubt in doubt, 1 charged"
BOUNCED = "failed bounced, 1 charged"
STAGE_S = 3
"""How long a stage may take here."""
MOST_MEMORY = MIB
MOST_CPU_S = 1.0
WAITING = ("queued", "sending")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One host and one message to it.

    Args:
        name: what is special about it, where one row tells of many.
        manners: how the host behaves.
        wanted: as ``Stand.outcome`` tells it.
        warm: a message that goes well is sent before.
        text: of the message.
        raw: the message itself; None: one is made.
        local: local part of the recipient.
        window: octets of the host's receive buffer; 0: the system's.
        content: octets of content the worker may hold for it.
        also: looks at the host afterwards; what it says is a finding.
    """

    name: str
    manners: Manners
    wanted: str
    warm: bool = False
    text: str = "Good morning.\n"
    raw: bytes | None = None
    local: str = "a"
    window: int = 0
    content: int = 0
    also: Callable[[Stand, Sent], str | None] | None = None


@dataclass(slots=True, kw_only=True)
class Sent:
    """A trial under way.

    Args:
        trial: which.
        host: its host.
        domain: whose only host that is.
        id: of the message.
    """

    trial: Trial
    host: RawHost
    domain: str
    id: str = ""
    warmed: int = field(default=0)

    @property
    def address(self) -> str:
        """The recipient."""
        return f"{self.trial.local}@{self.domain}"


def begin(stand: Stand, trial: Trial) -> Sent:
    """Start the host, and let a message go well there where that is asked for."""
    network = stand.network
    domain = network.new_domain()
    manners = trial.manners
    if trial.warm:
        manners = replace(manners, after=1)
    host = RawHost(loopback_addresses()[0], network.port, manners, window=trial.window)
    network.serve(host)
    network.route(domain, [host.address])
    sent = Sent(trial=trial, host=host, domain=domain)
    if trial.warm:
        stand.engine.final(stand.engine.send(f"warm@{domain}"))
        # the next message goes over a session of its own: the host's manners change with it
        stand.engine.until(
            "SELECT 1 FROM sessions WHERE address = ? AND ended_ms IS NOT NULL", host.address
        )
        sent.warmed = len(host.contents)
    return sent


def send(stand: Stand, sent: Sent) -> None:
    """Hand the message to the engine."""
    made = sent.trial.raw or mail(sent.address, text=sent.trial.text)
    sent.id = stand.engine.ms.send(made, sender="a@sender.test", recipients=[sent.address])


def settled(stand: Stand, sent: Sent) -> bool:
    """Whether the message was tried."""
    sql = "SELECT status FROM recipients WHERE message_id = ? AND address = ?"
    return stand.engine.rows(sql, sent.id, sent.address)[0].status not in WAITING


def wait(stand: Stand, sent: Sent) -> str:
    """The outcome, once there is one."""
    eventually(lambda: settled(stand, sent), DEADLINE_S, what=f"an outcome of {sent.trial.name}")
    return stand.outcome(sent.id, sent.address)


def leave(stand: Stand, sent: Sent) -> None:
    """Whoever was cut off, or does not read, goes."""
    stand.network.on_loop(sent.host.over.set)


def wrong(stand: Stand, sent: Sent, outcome: str) -> list[str]:
    """What contradicts what the host saw."""
    host, name = sent.host, sent.trial.name
    contents = [one for one in host.contents[sent.warmed :] if sent.trial.local in one.recipients]
    found = [f"{name}: {violation}" for violation in host.violations[:3]]
    if outcome.startswith("delivered") and not any(not one.refused for one in contents):
        found.append(f"{name}: told delivered, and the host has nothing")
    maybe = [one for one in contents if not one.refused]
    if maybe and "in doubt" not in outcome and not outcome.startswith("delivered"):
        found.append(f"{name}: the host may have it, and no doubt is marked")
    if len(maybe) > 1 and not stand.engine.rows(
        "SELECT 1 FROM attempts WHERE message_id = ? AND in_doubt", sent.id
    ):
        found.append(f"{name}: the host had it {len(maybe)} times, and no doubt was marked")
    if sent.trial.also is not None:
        said = sent.trial.also(stand, sent)
        if said:
            found.append(f"{name}: {said}")
    return found


def judged(stand: Stand, case: str, wanted: str, trials: Sequence[Trial]) -> Row:
    """Run trials one after another; one row of all of them.

    Args:
        case: what the hosts do.
        wanted: the outcomes of all, in words; seen where each trial had what it wanted.
        trials: at least one.
    """
    rows: list[Row] = []
    for trial in trials:
        row = _measured(stand, trial)
        if _dear(row, trial):
            row = _measured(stand, trial)  # what a worker grows by once is not the host's doing
        rows.append(replace(row, findings=(*row.findings, *_dear(row, trial))))
    return together(case, wanted, rows)


def _measured(stand: Stand, trial: Trial) -> Row:
    sent = begin(stand, trial)

    def tried() -> str:
        send(stand, sent)
        return wait(stand, sent)

    row = stand.measured(trial.name, trial.wanted, tried)
    found = _wrong(stand, sent, row.seen)
    leave(stand, sent)
    return replace(row, findings=(*row.findings, *found))


def _wrong(stand: Stand, sent: Sent, outcome: str) -> list[str]:
    if not sent.id:
        return []
    try:
        return wrong(stand, sent, outcome)
    except (AssertionError, TimeoutError) as error:
        return [f"{sent.trial.name}: {str(error).splitlines()[0]}"]


def _dear(row: Row, trial: Trial) -> list[str]:
    """What it cost too much of."""
    found: list[str] = []
    if row.memory is not None and row.memory > MOST_MEMORY + trial.content:
        found.append(f"{trial.name}: {row.memory / MIB:.1f} MiB of memory")
    if row.cpu_s is not None and row.cpu_s > MOST_CPU_S:
        found.append(f"{trial.name}: {row.cpu_s:.1f} s of processor")
    return found


def at_once(stand: Stand, cases: Sequence[tuple[str, str, Sequence[Trial]]]) -> list[Row]:
    """Run the trials of several cases at the same time, where each waits for a timeout.

    Time, processor and memory are those of all.
    """
    under_way = [[begin(stand, trial) for trial in trials] for _, _, trials in cases]
    number = sum(map(len, under_way))
    outcomes: dict[str, str] = {}
    everything = [sent for some in under_way for sent in some]

    def tried() -> str:
        for sent in everything:
            send(stand, sent)
        for sent in everything:
            outcomes[sent.id] = wait(stand, sent)
        return "all"

    whole = stand.measured("all", "all", tried)
    rows: list[Row] = []
    for (case, wanted, _), some in zip(cases, under_way, strict=True):
        each: list[Row] = []
        for sent in some:
            outcome = outcomes.get(sent.id, "no outcome")
            each.append(
                Row(
                    case=sent.trial.name, wanted=sent.trial.wanted, seen=outcome,
                    findings=tuple(_wrong(stand, sent, outcome)),
                )
            )  # fmt: skip
            leave(stand, sent)
        rows.append(together(case, wanted, each))
    memory, cpu_s = whole.memory or 0, whole.cpu_s or 0.0
    extra = list(whole.findings)
    content = sum(sent.trial.content for sent in everything)
    if memory > number * MOST_MEMORY + content:
        extra.append(f"{memory / MIB:.1f} MiB of memory for {number} hosts")
    if cpu_s > number * MOST_CPU_S:
        extra.append(f"{cpu_s:.1f} s of processor for {number} hosts")
    return [
        replace(
            row, seconds=whole.seconds, cpu_s=cpu_s, memory=memory,
            findings=(*row.findings, *extra),
        )
        for row in rows
    ]  # fmt: skip


def together(case: str, wanted: str, rows: Sequence[Row]) -> Row:
    """Many rows as one: the worst of each figure, and every outcome that was not wanted."""
    odd = [
        f"{row.case}: {row.seen} (wanted: {row.wanted})" for row in rows if row.seen != row.wanted
    ]
    seconds = [row.seconds for row in rows if row.seconds is not None]
    cpu_s = [row.cpu_s for row in rows if row.cpu_s is not None]
    memory = [row.memory for row in rows if row.memory is not None]
    return Row(
        case=case,
        wanted=wanted,
        seen="; ".join(odd) or wanted,
        tried=len(rows),
        seconds=max(seconds, default=None),
        cpu_s=max(cpu_s, default=None),
        memory=max(memory, default=None),
        findings=tuple(text for row in rows for text in row.findings),
    )
