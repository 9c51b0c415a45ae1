"""What must be true of a simulated story, whatever its seed did.

Contract: a pure look at a world that has ended: the checker over what the hosts took, what the
client was told and what the spool says; and what only a simulation can know: which connections were
open together, what was written before a cancel, which final dot a living worker can have sent.
A finding is a sentence; none may be left.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mailstrom.types import OnDoubt
from mailstrom_workers.dbrequest import StoreEnded
from tests.support.checker import Finding, History, Row, check
from tests.torture.sim_cast import Mail, Worker
from tests.torture.sim_net import DOT, Wire
from tests.torture.sim_world import WALL_MS, World

_FINAL = frozenset({"delivered", "failed", "cancelled"})
_BDAT = re.compile(rb"BDAT ([0-9]+) LAST\r\n")
_LATE_S = 0.5
"""A transaction may begin so long after its open was granted: the store's answer is under way."""
_UNTRIED = frozenset({"expired", "no_domain", "null_mx"})

_ROWS = """
SELECT r.seq, m.id, m.message_id, r.address, r.state, r.reason, r.in_doubt, r.lane
  FROM recipient r JOIN message m ON m.seq = r.message ORDER BY r.seq
"""
_ATTEMPTS = """
SELECT recipient, session, in_doubt, started_ms, ended_ms, host, verdict, late
  FROM attempt ORDER BY recipient, seq
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What became of a story.

    Args:
        messages: acknowledged recipients.
        lost, silent: as in ``table.Row``.
        marked: attempts in doubt.
        findings: everything that is wrong, what is counted in ``lost`` and ``silent`` too.
    """

    messages: int
    lost: int
    silent: int
    marked: int
    findings: tuple[str, ...]


def judge(world: World) -> Judged:
    """Look at a story that has ended."""
    rows = world.rows(_ROWS)
    attempts: dict[int, list[Any]] = defaultdict(list)
    for attempt in world.rows(_ATTEMPTS):
        attempts[attempt[0]].append(attempt)
    report = check(_history(world, rows, attempts))
    found = list(world.findings)
    for name in ("lost", "phantom", "wrong_bytes", "doubled_unmarked", "stuck"):
        ones: tuple[Finding, ...] = getattr(report, name)
        found += [f"{name}: {one.message_id} to {one.recipient}: {one.text}" for one in ones]
    found += _unfinished(world, rows, attempts)
    found += _doubts(world, rows, attempts)
    found += _spacing(world, rows, attempts)
    found += _wire(world)
    found += _durable(world)
    found += _ends(world)
    return Judged(
        messages=sum(len(m.submission.recipients) for m in world.mails if m.answered),
        lost=len(report.lost),
        silent=len(report.doubled_unmarked),
        marked=sum(a[2] for own in attempts.values() for a in own),
        findings=tuple(found),
    )


def _history(world: World, rows: list[Any], attempts: dict[int, list[Any]]) -> History:
    spool = []
    for seq, id, message_id, address, state, reason, in_doubt, lane in rows:
        # a person said that it arrived; nobody else knows
        believed = (id, address) in world.believed and state == "delivered"
        spool.append(
            Row(
                id=id,
                message_id=message_id,
                recipient=address,
                status="held" if believed else state,
                reason=reason,
                in_doubt=bool(in_doubt),
                attempts=tuple(bool(a[2]) for a in attempts[seq]),
                claimed=lane is not None,
            )
        )
    return History(
        acknowledged=tuple(s for m in world.mails if m.answered for s in m.sent()),
        unanswered=tuple(s for m in world.mails if m.answered is None for s in m.sent()),
        seen=tuple(dot.seen for dot in world.dots),
        spool=tuple(spool),
        finished=False,  # those that failed without an attempt are looked at here
    )


def _unfinished(world: World, rows: list[Any], attempts: dict[int, list[Any]]) -> list[str]:
    found = []
    expiring = {m.submission.id for m in world.mails if m.submission.expires_ms is not None}
    for seq, id, message_id, address, state, reason, _, lane in rows:
        name = f"{message_id} to {address}"
        if state not in _FINAL and state != "held":
            found.append(f"stuck: {name} is still {state} (lane {lane})")
        if state == "failed" and not attempts[seq] and reason not in _UNTRIED:
            found.append(f"failed without an attempt: {name} ({reason})")
        if reason == "expired" and id not in expiring and not world.jumps:
            found.append(f"expired: {name}, which had all the time")
        if reason in ("no_domain", "null_mx") and not world.dns_trouble:
            found.append(f"{reason}: {name}, whose domain is well")
    return found


def _doubts(world: World, rows: list[Any], attempts: dict[int, list[Any]]) -> list[str]:
    """In doubt is only what a dead process held, or what a living one ended with its final dot."""
    found = []
    wires = {wire.session: wire for wire in world.network.wires}
    mortal = any(w.killed or w.zombie or w.spoilt for w in world.workers)
    for seq, _, message_id, address, *_ in rows:
        for _, session, in_doubt, *_ in attempts[seq]:
            if not in_doubt:
                continue
            wire = wires.get((session or "")[11:])
            name = f"{message_id} to {address}"
            if wire is None:
                if not mortal:
                    found.append(f"in doubt: {name}, without a connection or a dead process")
            elif not (_ended(wire) or _dotted(wire, address)):
                found.append(f"in doubt: {name}, whose final dot a living worker never wrote")
            elif not _ended(wire) and _heard(world, wire, message_id, address):
                found.append(f"in doubt: {name}, whose answer a living worker has heard")
    return found


def _ended(wire: Wire) -> bool:
    own = wire.group
    return isinstance(own, Worker) and (own.killed or own.zombie or own.spoilt)


def _heard(world: World, wire: Wire, message_id: str, address: str) -> bool:
    own = [d for d in world.dots if d.wire is wire and d.seen.pair == (message_id, address)]
    return bool(own) and all(dot.heard for dot in own)


def _dotted(wire: Wire, address: str) -> bool:
    last = wire.written.rfind(b"RCPT TO:<%s>" % address.encode())
    if last < 0:
        return False
    chunk = _BDAT.search(wire.written, last)
    if chunk is not None and b"MAIL FROM" not in wire.written[last : chunk.start()]:
        return len(wire.written) >= chunk.end() + int(chunk[1])
    return DOT in wire.written[last:]


def _spacing(world: World, rows: list[Any], attempts: dict[int, list[Any]]) -> list[str]:
    """A host that said "later" is not asked again before the first pause of the schedule.

    Unless the worker died with it, kept for the next host: then it is due at once (W12).
    """
    if world.jumps:
        return []
    wires = {wire.session: wire for wire in world.network.wires}
    touched = {(m.submission.id, r) for m in world.mails for r in m.touched}
    found = []
    for seq, id, message_id, address, *_ in rows:
        if (id, address) in touched:
            continue
        own = [a for a in attempts[seq] if not a[7]]
        for before, after in pairwise(own):
            wire = wires.get((before[1] or "")[11:])
            same = before[5] == after[5] and wire is not None and not _ended(wire)
            if same and before[6] == "deferred" and not before[2]:
                early_ms = before[4] + 1_000 - after[3]
                if early_ms > 5:
                    found.append(f"early: {message_id} to {address} by {early_ms} ms")
    return found


def _wire(world: World) -> list[str]:
    found = []
    for site, most in world.network.most.items():
        if most > max(world.limits):
            found.append(f"connections: {most} at site {site}, the limit was {max(world.limits)}")
    mails = {mail.submission.message_id: mail for mail in world.mails}
    for dot in world.dots:
        mail = mails.get(dot.seen.message_id)
        if mail is None or _zombie(dot.wire):
            continue
        name = f"{dot.seen.message_id} to {dot.seen.recipient}"
        found += _forbidden(mail, dot.seen.recipient, dot.mail_s, name)
        if not world.jumps:
            found += _in_time(world, mail, dot.mail_s, dot.wire, name)
    return found


def _durable(world: World) -> list[str]:
    """The disk has its claim when a transaction begins, and its open where doubt means hold."""
    own = {mail.submission.message_id: mail.submission for mail in world.mails}
    found = []
    for dot in world.dots:
        mail = own.get(dot.seen.message_id)
        if mail is None or _zombie(dot.wire):
            continue
        words = ("claim", "open") if mail.on_doubt is OnDoubt.HOLD else ("claim",)
        for word in words:
            commits = world.disk.commits.get((word, mail.id, dot.seen.recipient), [])
            last = max(
                (one for one in commits if one.made_s <= dot.mail_s),
                key=lambda one: one.made_s, default=None,
            )  # fmt: skip
            if last is None or last.durable_s > dot.mail_s:
                name = f"{dot.seen.message_id} to {dot.seen.recipient}"
                found.append(f"unsynced: {name} was begun before its {word} was on the disk")
    return found


def _zombie(wire: Wire) -> bool:
    return isinstance(wire.group, Worker) and wire.group.zombie


def _forbidden(mail: Mail, recipient: str, began_s: float, name: str) -> list[str]:
    found = []
    if began_s > mail.cancelled.get(recipient, float("inf")):
        found.append(f"cancelled: {name} at {mail.cancelled[recipient]}, begun at {began_s}")
    for first_s, last_s in mail.held.get(recipient, ()):
        if first_s < began_s < last_s:
            found.append(f"held: {name} from {first_s} to {last_s}, begun at {began_s}")
    return found


def _in_time(world: World, mail: Mail, began_s: float, wire: Wire, name: str) -> list[str]:
    own, began_ms = mail.submission, WALL_MS + began_s * 1000
    if began_ms < own.send_ms:
        return [f"scheduled: {name} was begun {own.send_ms - began_ms:.0f} ms early"]
    stops = wire.group.stops if isinstance(wire.group, Worker) else []
    late_s = _LATE_S + sum(last_s - first_s for first_s, last_s in stops)
    if own.expires_ms is None or mail.touched:  # reopened, it lives another day
        return []
    if world.syncs_fail:  # an answer that waits for the disk is late
        return []
    if began_ms > own.expires_ms + late_s * 1000:
        return [f"expired: {name} was begun {began_ms - own.expires_ms:.0f} ms late"]
    return []


def _ends(world: World) -> list[str]:
    found = [f"unheard error: {text}" for text in world.loop.strays]
    for task, group in world.loop.tasks:
        if not task.done():
            found.append(f"task left: {task.get_name()} of {task.get_coro()!r}")
        elif task._log_traceback:  # type: ignore[attr-defined]
            dead = group is not None and group.dead
            if dead and isinstance(task.exception(), StoreEnded):
                continue  # as it dies: nobody is there to hear it
            found.append(f"error of {task.get_name()} never retrieved: {task.exception()!r}")
    found += [f"store check: {text}" for text in world.client.check()]
    owed = world.client.query("SELECT kind, count(*) FROM owed GROUP BY kind", (), 5.0)
    found += [f"{count} reports are owed still: {kind}" for kind, count in owed]
    if lanes := world.lanes():
        found.append(f"{lanes} lanes are left")
    return found
