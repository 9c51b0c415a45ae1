"""What must be reached, held against recorded figures: a table of numbers, and whether each is met.

Contract. Pure. A goal names the case that it is about and how its number is read: a value, a ratio
to a peer in the same run, or to another case. Each is read with uvloop and without where both were
measured. What was not measured has no number, and is not met. Numbers are medians of runs; a worst
wait is the worst of all runs, and its median is told beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tools.bench.figures import OURS, Row, ratio

PURGING = "finished mail is purged"
PINNED = "a foreign report stays open"

Key = tuple[str, str, str, bool | None]
Found = Mapping[Key, Row]
Reading = Callable[[Found, bool | None], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One number to reach.

    Args:
        what: for a reader.
        bound: the number, at least or at most.
        at_most: which of the two.
        text: the bound as it is told, with its unit.
        digits: decimals of what was measured.
        read: the number in recorded figures, for one form of the loop.
        beside: another reading of the same figures, told and not judged; None: there is none.
    """

    what: str
    bound: float
    at_most: bool
    text: str
    digits: int
    read: Reading
    beside: Reading | None = None

    def told(self, found: Found, loop: bool | None) -> str:
        """The number as a reader sees it: ``41.2 (median 30.1)``, or ``not measured``."""
        number = self.read(found, loop)
        if number is None:
            return "not measured"
        other = None if self.beside is None else self.beside(found, loop)
        more = "" if other is None else f" (median {other:,.{self.digits}f})"
        return f"{number:,.{self.digits}f}{more}"

    def met(self, number: float | None) -> bool:
        """Whether a measured number reaches it."""
        if number is None:
            return False
        return number <= self.bound if self.at_most else number >= self.bound


def _row(found: Found, bench: str, case: str, loop: bool | None, who: str = OURS) -> Row | None:
    """The row of a case; of one that has no form of the loop where that is all there is."""
    return found.get((bench, case, who, loop)) or found.get((bench, case, who, None))


def value(bench: str, case: str, name: str) -> Reading:
    """The median of a value."""

    def read(found: Found, loop: bool | None) -> float | None:
        row = _row(found, bench, case, loop)
        return row.median(name) if row else None

    return read


def worst(bench: str, case: str, name: str) -> Reading:
    """The worst of all runs."""

    def read(found: Found, loop: bool | None) -> float | None:
        row = _row(found, bench, case, loop)
        return row.worst(name) if row else None

    return read


def beside(bench: str, case: str, peer: str) -> Reading:
    """The rate, as a ratio to a peer's of the same case."""

    def read(found: Found, loop: bool | None) -> float | None:
        ours, theirs = _row(found, bench, case, loop), _row(found, bench, case, None, peer)
        return ratio(ours.runs, theirs.runs, "rate") if ours and theirs else None

    return read


def deepest(
    name: str,
    kind: str,
    *,
    to_shallowest: bool = True,
    of: Callable[[Row, str], float | None] = Row.median,
) -> Reading:
    """A value beside the deepest queue, as a ratio to that beside the shallowest or as it is.

    Args:
        kind: how the case's name ends.
        of: which number of a row's runs.
    """

    def read(found: Found, loop: bool | None) -> float | None:
        steps = {
            row.runs[0].at or 0.0: number
            for (bench, case, _, form), row in found.items()
            if bench == "depth" and case.endswith(kind) and form in (loop, None)
            and (number := of(row, name)) is not None
        }  # fmt: skip
        if not steps or (to_shallowest and len(steps) < 2):
            return None
        return steps[max(steps)] / (steps[min(steps)] if to_shallowest else 1)

    return read


def _dead(found: Found, loop: bool | None) -> float | None:
    rows = {case: row for (bench, case, _, form), row in found.items()
            if bench == "sites" and form == loop and "," not in case}  # fmt: skip
    with_dead = next((row for case, row in rows.items() if "never answers" in case), None)
    without = next((row for case, row in rows.items() if "never answers" not in case), None)
    if not with_dead or not without:
        return None
    times = ratio(with_dead.runs, without.runs, "rate")
    if times is None:
        return None
    # messages go to one site less: a site's share is what is compared
    sites = [int(row.key[1].split()[0]) for row in (with_dead, without)]
    return times * sites[1] / sites[0]


def goals(cases: Sequence[Key]) -> list[Goal]:
    """All of them; some name their case by how it begins.

    Args:
        cases: keys that were recorded.
    """

    def case(bench: str, begins: str) -> str:
        return next((key[1] for key in cases if key[0] == bench and key[1].startswith(begins)), "")

    def least(what: str, bound: float, unit: str, digits: int, read: Reading) -> Goal:
        text = f"at least {bound:,g}{unit}"
        return Goal(what=what, bound=bound, at_most=False, text=text, digits=digits, read=read)

    def most(
        what: str, bound: float, unit: str, digits: int, read: Reading, also: Reading | None = None
    ) -> Goal:
        text = f"at most {bound:,g}{unit}"
        return Goal(what=what, bound=bound, at_most=True, text=text, digits=digits, read=read,
                    beside=also)  # fmt: skip

    def longest(what: str, bound: float, bench: str, case: str, name: str) -> Goal:
        return most(what, bound, " ms", 1, worst(bench, case, name), value(bench, case, name))

    near, far, ready = "20 connections", "50 ms, 20 connections", "ready bytes"
    crowd = case("accept", "send, 32 processes, engine idle")
    busy = case("accept", "send, 32 processes, engine draining")
    return [
        least("drain, to Postfix", 5, " x", 2, beside("drain", near, "postfix")),
        least("end to end, 20 callers, to Postfix", 4, " x", 2, beside("e2e", ready, "postfix")),
        least("drain at 50 ms, to Postfix", 3, " x", 2, beside("latency", far, "postfix")),
        most("drain, CPU per 1,000 messages", 0.2, " s", 3,
             value("drain", near, "cpu_s_per_1000")),
        least("durable accept, 1 process of 16 threads", 3000, "/s", 0,
              value("accept", case("accept", "send, 1 process of"), "rate")),
        least("durable accept, 1 process of one thread", 3000, "/s", 0,
              value("accept", "send, 1 process, no engine", "rate")),
        least("durable accept, 32 processes", 5000, "/s", 0, value("accept", crowd, "rate")),
        most("the same, p99", 100, " ms", 1, value("accept", crowd, "p99_ms")),
        most("32 processes, engine draining, p99", 250, " ms", 1,
             value("accept", busy, "p99_ms")),
        least("send_many", 20000, "/s", 0, value("accept", "send_many, no engine", "rate")),
        least("by SMTP, connections kept, to Postfix's smtpd", 2, " x", 2,
              beside("listener", "accept, 20 sessions, connections kept", "postfix")),
        least("by SMTP, a connection a message, to Postfix's smtpd", 2, " x", 2,
              beside("listener", "accept, 20 sessions, a connection a message", "postfix")),
        least("in and out by SMTP, to Postfix", 2, " x", 2,
              beside("listener", "in and out by SMTP", "postfix")),
        most("a listener with 5,000 idle connections", 300, " MiB", 0,
             value("listener", "idle connections", "pss_mib")),
        most("a message to an idle engine: MAIL on an open connection, median", 20, " ms", 1,
             value("idle", "send to MAIL, a connection open", "wire_p50_ms")),
        most("a message to an idle engine: a new connection, median", 20, " ms", 1,
             value("idle", "send to MAIL, no connection open", "connect_p50_ms")),
        most("an idle engine, of one core", 1, " %", 2,
             value("idle", "at rest", "idle_core_percent")),
        most("deepest to shallowest queue: CPU a message", 1.5, " x", 2,
             deepest("cpu_s_per_1000", "delivery")),
        most("deepest to shallowest queue: routing a domain", 1.5, " x", 2,
             deepest("route_us", "routing")),
        most("deepest to shallowest queue: mailstrom queue count", 1.5, " x", 2,
             deepest("count_ms", "queue count")),
        most("worst wait of a sender beside the deepest queue", 50, " ms", 1,
             deepest("stall_max_ms", "delivery", to_shallowest=False, of=Row.worst),
             deepest("stall_max_ms", "delivery", to_shallowest=False)),
        longest("worst wait of a sender while finished mail is purged", 50,
                "stalls", PURGING, "stall_max_ms"),
        longest("the same, from the call to MAIL on the wire", 50,
                "stalls", PURGING, "wire_max_ms"),
        longest("worst wait of a sender beside an open report", 50,
                "stalls", PINNED, "stall_max_ms"),
        longest("beside an open report, from the call to MAIL on the wire", 50,
                "stalls", PINNED, "wire_max_ms"),
        least("99 sites beside a dead one, a site's share", 0.95, " x", 2, _dead),
        most("memory of supervisor and two workers", 250, " MiB", 0,
             value("memory", case("memory", ""), "pss_mib")),
        most("import mailstrom; Mailstrom(path)", 60, " ms", 1,
             value("idle", "import mailstrom; Mailstrom(path)", "import_ms")),
    ]  # fmt: skip


def limit(row: Row, processors: int, disk: float | None) -> str:
    """What a row's rate ran into, judged by the figures alone.

    Args:
        processors: of the machine.
        disk: ``fdatasync`` a second; None where it was not measured.
    """
    rate, bound = row.median("rate"), row.median("bound_rate")
    share, busy = row.median("share"), row.median("busy_cores")
    if rate and bound and rate >= 0.8 * bound:
        return f"the wire: {rate / bound:.0%} of one round trip a message and connection"
    if share and share >= 0.8:
        return f"the wire: {share:.0%} of what the connections allow"
    if row.noisy:
        return "not to be told: other programs worked on this machine meanwhile"
    if busy and busy >= 0.85 * processors:
        return f"CPU: {busy:.1f} of {processors} cores busy, sink and senders included"
    if row.key[0] in ("accept", "listener") and disk and rate and rate >= 0.6 * disk:
        if rate > disk:  # more messages than syncs: one sync is shared by many
            return f"one interpreter, and the disk: {rate / disk:.1f} messages to each of its syncs"
        return f"the disk: {rate / disk:.0%} of its syncs by one writer"
    if rate and bound and busy and busy < 0.5 * processors:
        return f"the wire, in part: {rate / bound:.0%} of one round trip a message and connection"
    if busy and row.key[1].endswith("1 process, no engine") and busy >= 0.8:
        return f"one interpreter: {busy:.1f} of {processors} cores busy"
    if busy:
        return f"waits between processes: {busy:.1f} of {processors} cores busy"
    return ""


def judged(found: Found, loops: Sequence[bool | None]) -> Iterator[tuple[Goal, list[float | None]]]:
    """Each goal with what was measured, by form of the loop."""
    for goal in goals(list(found)):
        yield goal, [goal.read(found, loop) for loop in loops]
