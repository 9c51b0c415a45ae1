"""The clock: does it go, is it kept right by somebody, and did it jump?

Pure. An engine writes down every half minute what wall and monotonic clock say; within one boot
the two must have moved alike since. Expiry survives jumps (``docs/design/queue.md``), retry times
and reports are the better for a clock that is right.
"""

from __future__ import annotations

from collections.abc import Iterator

from mailstrom.doctor.finding import Finding, note, ok, plural, problem, span, warning
from mailstrom.storage.examined import ClockFacts
from mailstrom.types import iso_ms

JUMP_MS = 60_000
LATELY_MS = 86_400_000
EARLIEST_MS = 1_735_689_600_000  # 2025: no Mailstrom is older
_SET_IT = "Set the clock right and keep it so: 'timedatectl set-ntp true', or chrony."


def checks(clock: ClockFacts, synchronised: bool | None) -> Iterator[Finding]:
    """All about the clock.

    Args:
        synchronised: the kernel's word (adjtimex); None where it says none.
    """
    now = clock.wall_ms
    if now < EARLIEST_MS:
        yield problem(
            "clock.time",
            f"the clock says {iso_ms(now)}, which is before this Mailstrom was made",
            _SET_IT,
            wall_ms=now,
        )
    yield from _against_the_spool(clock)
    if synchronised is None:
        yield note("clock.sync", "this system does not say whether its clock is kept right")
    elif synchronised:
        yield ok("clock.sync", "the kernel says that the clock is kept synchronised")
    else:
        yield note(
            "clock.sync",
            "the kernel says that nobody keeps the clock synchronised",
            "Run a time daemon ('timedatectl set-ntp true', or chrony); in a virtual machine or a"
            " container its host may do it, and this says nothing.",
        )
    lately = [(at, amount) for at, amount in clock.jumps if at > now - LATELY_MS]
    if lately:
        at, amount = lately[0]
        yield warning(
            "clock.jumps",
            f"the clock jumped {plural(len(lately), 'time')} within a day, last at {iso_ms(at)} by"
            f" {span(amount)} {'ahead' if amount > 0 else 'back'}; the engine moved what waits"
            " with it",
            "Find out who sets it: 'journalctl -u chrony -u systemd-timesyncd', the hypervisor, a"
            " person. Slewing ('chronyc makestep' only at boot) does not jump.",
            jumps=len(lately),
            amount_ms=amount,
        )


def _against_the_spool(clock: ClockFacts) -> Iterator[Finding]:
    now, passed_ms = clock.wall_ms, clock.monotonic_ms - clock.row_monotonic_ms
    known = clock.row_wall_ms >= 0
    newest = clock.newest_ms
    if known and clock.boot and clock.boot == clock.row_boot and passed_ms >= 0:
        moved_ms = now - clock.row_wall_ms - passed_ms
        if abs(moved_ms) > JUMP_MS:
            yield warning(
                "clock.jump",
                f"the clock was moved {span(moved_ms)} {'ahead' if moved_ms > 0 else 'back'} since"
                f" an engine last looked at it, {span(passed_ms)} ago",
                "If it is right now, nothing is to be done: the engine moves what waits with it as"
                " soon as it runs. Else " + _SET_IT[0].lower() + _SET_IT[1:],
                moved_ms=moved_ms,
            )
            return
        yield ok(
            "clock.jump",
            f"since an engine looked at it {span(passed_ms)} ago the clock went as it should",
            moved_ms=moved_ms,
        )
    elif known and now < clock.row_wall_ms - JUMP_MS:
        yield problem(
            "clock.jump",
            f"the clock says {iso_ms(now)}, and before the last start of this machine an engine"
            f" saw {iso_ms(clock.row_wall_ms)}: it went back by"
            f" {span(clock.row_wall_ms - now)} at least",
            _SET_IT,
            moved_ms=now - clock.row_wall_ms,
        )
    elif newest is not None and newest > now + JUMP_MS:
        yield warning(
            "clock.jump",
            f"the newest message says that it came at {iso_ms(newest)}, {span(newest - now)} from"
            " now: the clock was ahead then, or is behind now",
            _SET_IT,
            newest_ms=newest,
        )
    else:
        told = f"the clock says {iso_ms(now)}"
        if known or newest is not None:
            told += "; nothing in the spool contradicts"
        yield ok("clock.jump", told)
