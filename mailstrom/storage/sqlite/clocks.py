"""The wall clock's jumps: noticed, and shifted into unfinished messages; steps of one transaction.

Within one boot the monotonic clock tells a jump exactly, so a message's expiry moves with it: its
age stays the smaller of wall and monotonic age. Across a boot (or where the system does not name
its boots) the two cannot be compared: a clock that went back did so by that much at least, and
after a gap of more than a day late messages live one hour more and are due now, for one more
attempt.

A jump concerns what the old clock stamped and nothing else. All that was there at the look before
is told by that look's clock; of what came since, ``created_ms`` tells which clock it was. Where it
was neither, the clock jumped more than once between the looks, and that mail counts from now on.

A worker reads the clock before it waits for the write lock, so what it writes just after a jump
back may be stamped by the old clock: a while later the newest rows are looked at once more.

A client's clock may be wrong by itself: it took mail before the machine's clock was put right, and
no engine ran then. What came after a look and says that it came long before it, or has yet to come,
is a stray: it counts from now on, as if it had come at this look.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import apsw

from mailstrom.storage.sqlite import sweeps
from mailstrom.storage.sqlite.sql import run

JUMP_MS = 60_000
"""A wall clock that moved this much against the monotonic one has jumped."""
LOOK_MS = 30_000
"""An even clock is written down this often: less than a jump, so that old and new stay apart."""
SLACK_MS = JUMP_MS // 2
BOOT_GAP_MS = 86_400_000
"""Down (or ahead) for longer than this: late messages get one more attempt before they expire."""
GRACE_MS = 3_600_000
_LAST_MS = 253_402_300_799_000
"""No clock is later: the end of the year 9999."""
SETTLE_MS = 3_600_000
"""So long after a jump no history is deleted."""
ECHO_MS = 15_000
"""So long after a jump back nobody writes by the old clock: longer than a lock is awaited."""
NEWEST = 10_000
"""The newest messages that are looked at for strays each time; all of them after a pause."""
_ALL = 1 << 60


class Look(NamedTuple):
    """What the clocks say."""

    wall_ms: int
    monotonic_ms: int
    boot: str


class _Jump(NamedTuple):
    amount_ms: int
    grace_ms: int
    old_ms: int


def quiet(connection: apsw.Connection, look: Look) -> bool:
    """Whether this look has nothing to write; reads only."""
    before = _before(connection)
    if before is None or run(connection, "jumps_pending") or sweeps.shifting(connection):
        return False
    if _echo(connection, look):
        return False
    then, known = before
    passed_ms = look.monotonic_ms - then.monotonic_ms
    if not (_same_boot(then, look) and 0 <= passed_ms < LOOK_MS and _jump(then, look) is None):
        return False
    return not any(_strays(connection, then, known, look))


def keep(connection: apsw.Connection, look: Look, limit: int) -> tuple[int, bool]:
    """Write a look down; shift ``limit`` messages of each jump, and a piece of the other rows.

    Returns:
        How many messages were passed, and whether other rows are left (``sweeps.shift``).
    """
    before = _before(connection)
    if before is not None:
        then, known = before
        jump = _jump(then, look)
        if jump is None or jump.amount_ms == 0:
            _add_strays(connection, then, known, look)
    else:
        jump, known = _first(connection, look), 0
    if jump is not None:
        values = {**jump._asdict(), "at_ms": look.wall_ms, "known": known}
        run(connection, "jump_add", values)
        if before is not None:
            _add_others(connection, then, known, look, jump)
        asked = sweeps.Shift(look.wall_ms, jump.old_ms + SLACK_MS, jump.amount_ms)
        sweeps.begin_shift(connection, asked)
        run(connection, "jump_copied", {"amount_ms": jump.amount_ms})
    else:
        ahead = {"wall_ms": look.wall_ms, "ahead_ms": look.wall_ms + JUMP_MS}
        run(connection, "last_jump_ends", ahead)
    run(connection, "clock_set", look._asdict())
    passed = shift(connection, limit)
    for seq, amount_ms in _echo(connection, look):
        _hear(connection, seq, amount_ms, look)
    return passed, sweeps.shift(connection)


def _before(connection: apsw.Connection) -> tuple[Look, int] | None:
    """The look before and the newest message then; None where there is none that can be read.

    A boot that is no text is none that could be this one.
    """
    for wall_ms, monotonic_ms, boot, last in run(connection, "clock_get"):
        if all(type(one) is int and 0 <= one <= _LAST_MS for one in (wall_ms, monotonic_ms, last)):
            try:
                return Look(wall_ms, monotonic_ms, boot.decode()), last
            except (AttributeError, UnicodeDecodeError):
                return Look(wall_ms, monotonic_ms, ""), last
    return None


def _echo(connection: apsw.Connection, look: Look) -> list[tuple[int, int]]:
    """The last jump back, if it is long enough ago to look again at what was written after it."""
    found = run(connection, "echo_due", {"before_ms": look.wall_ms - ECHO_MS})
    return [(row[0], row[1]) for row in found]


def _hear(connection: apsw.Connection, jump: int, amount_ms: int, look: Look) -> None:
    """Nothing that was stamped by the old clock, and written after the jump, waits for it."""
    sweeps.begin_shift(connection, sweeps.Shift(look.wall_ms, look.wall_ms, 0))
    values = {"at_ms": look.wall_ms, "amount_ms": amount_ms, "most": NEWEST}
    moved = {
        "recipients": json.dumps([row[0] for row in run(connection, "echo_recipients", values)])
    }
    run(connection, "lower_next_due", moved)
    run(connection, "domains_due", moved)
    run(connection, "meta_set", {"key": "clock_echo", "value": jump})


def _strays(connection: apsw.Connection, then: Look, last: int, look: Look) -> tuple[bool, bool]:
    """Whether mail came after a look that says it came long before it; or that is yet to come."""
    passed_ms = look.monotonic_ms - then.monotonic_ms
    steady = _same_boot(then, look) and 0 <= passed_ms < 2 * LOOK_MS
    values = {
        "last": last,
        "most": NEWEST if steady else _ALL,
        "behind_ms": then.wall_ms - JUMP_MS,
        "ahead_ms": look.wall_ms + JUMP_MS,
    }
    ((behind, ahead),) = run(connection, "strays", values)
    return bool(behind), bool(ahead)


def _add_strays(connection: apsw.Connection, then: Look, last: int, look: Look) -> None:
    """Note what is to be shifted although no clock of ours jumped; those that are done go."""
    run(connection, "strays_done")
    behind, ahead = _strays(connection, then, last, look)
    values = {"at_ms": look.wall_ms, "done": last}
    if behind:
        old_ms = then.wall_ms - JUMP_MS - SLACK_MS
        run(connection, "stray_add", {**values, "old_ms": old_ms, "amount_ms": look.wall_ms})
    if ahead:
        run(connection, "stray_add", {**values, "old_ms": look.wall_ms, "amount_ms": -1})


def _add_others(
    connection: apsw.Connection, then: Look, known: int, look: Look, jump: _Jump
) -> None:
    """Note mail that came since the look before by neither its clock nor this one's.

    The clock jumped more than once meanwhile. Such mail counts from now on, as strays do.
    """
    passed_ms = look.monotonic_ms - then.monotonic_ms
    if not _same_boot(then, look) or not 0 <= passed_ms < 2 * LOOK_MS:
        return
    forward = jump.amount_ms > 0
    behind_ms = look.wall_ms - passed_ms - SLACK_MS
    values = {
        "known": known,
        "old_from_ms": jump.old_ms - passed_ms - SLACK_MS,
        "old_to_ms": jump.old_ms + SLACK_MS,
        "behind_ms": behind_ms,
        "ahead_ms": look.wall_ms + SLACK_MS,
    }
    ((behind, ahead),) = run(connection, "jump_others", values)
    if behind if forward else ahead:  # the old clock's as well, then: no mail is shifted twice
        run(connection, "jump_of_known")
    values = {"at_ms": look.wall_ms, "done": known}
    if behind:
        old_ms = behind_ms - SLACK_MS
        run(connection, "stray_add", {**values, "old_ms": old_ms, "amount_ms": look.wall_ms})
    if ahead:
        run(connection, "stray_add", {**values, "old_ms": look.wall_ms, "amount_ms": -1})


def shift(connection: apsw.Connection, limit: int) -> int:
    """Shift ``limit`` messages of each jump that is not done. Returns how many were passed."""
    return sum(_shift(connection, row, limit) for row in run(connection, "jumps_pending"))


def unsettled(connection: apsw.Connection, now_ms: int) -> bool:
    """Whether the clock jumped so lately that nothing should be called old."""
    if run(connection, "jumps_pending"):
        return True
    last = run(connection, "last_jump")
    return bool(last) and now_ms < last[0][0] + SETTLE_MS


def _same_boot(then: Look, look: Look) -> bool:
    return look.boot != "" and then.boot == look.boot


def _jump(then: Look, look: Look) -> _Jump | None:
    """How the wall clock jumped between two looks, if it did."""
    ahead_ms = look.wall_ms - then.wall_ms
    if _same_boot(then, look):
        amount = ahead_ms - (look.monotonic_ms - then.monotonic_ms)
        return _Jump(amount, 0, look.wall_ms - amount) if abs(amount) > JUMP_MS else None
    if ahead_ms < -JUMP_MS:
        return _Jump(ahead_ms, 0, then.wall_ms)
    if ahead_ms > BOOT_GAP_MS:
        return _Jump(0, look.wall_ms + GRACE_MS, then.wall_ms)
    return None


def _first(connection: apsw.Connection, look: Look) -> _Jump | None:
    """No look before: mail that a client took in the future says that its clock was ahead."""
    newest = run(connection, "newest_created")
    if newest and newest[0][0] > look.wall_ms + JUMP_MS:
        return _Jump(look.wall_ms - newest[0][0], 0, newest[0][0])
    return None


def _shift(
    connection: apsw.Connection, row: tuple[int, int, int, int, int, int, int, int], limit: int
) -> int:
    """A piece of one jump; returns how many messages it passed."""
    seq, at_ms, old_ms, amount_ms, grace_ms, known, last, done = row
    done = max(done, 0)
    until = min(last, done + limit)
    if until >= run(connection, "newest_number")[0][0]:
        until = last  # behind the newest message nothing is left: also where damage says so
    values = {
        "seq": seq,
        "at_ms": at_ms,
        "old_ms": old_ms,
        "amount_ms": amount_ms,
        "grace_ms": grace_ms,
        "known": known,
        "done": done,
        "until": until,
        "slack_ms": SLACK_MS,
    }
    sooner: list[int] = []
    for name in ("jump_due", "jump_grace_due"):
        sooner += [found[0] for found in run(connection, name, values)]
    if sooner:
        moved = {"recipients": json.dumps(sooner), "now_ms": at_ms}
        run(connection, "lower_next_due", moved)
        run(connection, "domains_due", moved)
    for name in ("jump_expiry", "jump_done"):
        run(connection, name, values)
    return until - done
