"""The queue: does mail move, what waits for a person, and which sites are left alone?

Pure. A site that is left alone is daily life of the Internet (a note); one that nobody could reach
for hours, or the relay that all mail goes to, is more. What is due and kept by nothing should go
out within minutes.
"""

from __future__ import annotations

from collections.abc import Iterator

from mailstrom.doctor.finding import Finding, Scalar, note, ok, plural, problem, span, warning
from mailstrom.policy.site import CRASHED
from mailstrom.storage.examined import Contents, SuspendedSite
from mailstrom.types import iso_ms

SLOW_MS, STUCK_MS = 300_000, 3_600_000
LONG_FAILURES = 6
"""Passes over all hosts in vain: with the usual pauses more than an hour."""
MANY_DOMAINS = 5
SHOWN = 5

_HELD = {
    "in_doubt": (
        "nobody knows whether they were delivered",
        "'mailstrom queue list --status held --reason in_doubt' lists them; ask their readers,"
        " then 'mailstrom resolve ID delivered|retry|failed'.",
    ),
    "poison": (
        "their connection was lost again and again with them on the wire",
        "'mailstrom queue list --status held --reason poison' lists them; look at one with"
        " 'mailstrom show ID', then 'mailstrom queue release ID' or 'mailstrom queue cancel ID'.",
    ),
}


def checks(rows: Contents, now_ms: int, *, running: bool, relay: bool) -> Iterator[Finding]:
    """All about what waits.

    Args:
        running: whether an engine delivers.
        relay: whether all mail goes to a relay.
    """
    yield _moving(rows, now_ms, running)
    yield from _suspended(rows, now_ms, relay)
    yield from _held(rows)
    yield from _domains(rows)
    yield from _reports(rows)


def _moving(rows: Contents, now_ms: int, running: bool) -> Finding:
    waiting = rows.unsent
    last = rows.last_success_ms
    success = f"a host last took mail {span(now_ms - last)} ago" if last else (
        "no host has taken mail yet")  # fmt: skip
    evidence: dict[str, Scalar] = {"waiting": waiting, "last_success_ms": last or None}
    oldest = rows.oldest
    if oldest is None or not running or rows.copied_ms is not None:
        return ok("queue.moving", f"{plural(waiting, 'recipient')} waiting; {success}", **evidence)
    late_ms = now_ms - oldest.due_ms
    evidence |= {"late_ms": late_ms, "where": oldest.where}
    if late_ms < SLOW_MS:
        return ok(
            "queue.moving",
            f"{plural(waiting, 'recipient')} waiting, the oldest due for {span(late_ms)};"
            f" {success}",
            **evidence,
        )
    full = oldest.limit is not None and oldest.lanes >= oldest.limit
    why = f", with all {oldest.lanes} connections to it in use" if full else ""
    advice = (
        "It takes mail more slowly than it comes: [sites] connections, if its owner allows more."
        if full
        else "'mailstrom why ADDRESS' says why it waits, 'mailstrom destinations' where; if no"
        " connection is open at all, read the engine's log ('engine.failed')."
    )
    return (problem if late_ms >= STUCK_MS and not full else warning)(
        "queue.moving",
        f"mail for {oldest.where} has been due for {span(late_ms)}{why} though an engine runs;"
        f" {success}",
        advice,
        **evidence,
    )


def _suspended(rows: Contents, now_ms: int, relay: bool) -> Iterator[Finding]:
    for site in rows.suspended[:SHOWN]:
        yield _one_suspended(site, now_ms, relay)
    more = rows.suspended_sites - min(len(rows.suspended), SHOWN)
    if more > 0:
        yield note(
            "queue.sites",
            f"{plural(more, 'more site')} left alone for now",
            "'mailstrom destinations' lists all of them with the reasons.",
            sites=rows.suspended_sites,
        )
    elif not rows.suspended_sites:
        yield ok("queue.sites", "no site is left alone")


def _one_suspended(site: SuspendedSite, now_ms: int, relay: bool) -> Finding:
    name = site.site.removeprefix("relay ").split(";")[0].removesuffix(":25")
    others = site.site.count(";")
    named = f"{name} and {plural(others, 'more host')}" if others else name
    why = site.last_reply or site.reason or "no reason is known"
    by = f" ({site.by})" if site.by else ""
    since = f", nothing went there since {iso_ms(site.last_success_ms)}" if (
        site.last_success_ms) else ""  # fmt: skip
    crashed = (site.last_reply or "").startswith(CRASHED)
    passes = plural(site.failures, "pass", "es")
    behind = "since Mailstrom itself failed there" if (
        crashed) else f"after {passes} over its hosts in vain"  # fmt: skip
    found = (
        f"{'the relay' if relay else 'site'} {named} is left alone for"
        f" {span(site.until_ms - now_ms)} more, {behind}{since};"
        f" {plural(site.waiting, 'recipient')} waiting: {why}{by}"
    )
    evidence: dict[str, Scalar] = {
        "site": site.site,
        "until_ms": site.until_ms,
        "by": site.by,
        "reason": site.reason,
        "last_reply": site.last_reply,
        "failures": site.failures,
        "waiting": site.waiting,
    }
    if crashed:
        return (problem if relay else warning)(
            "queue.sites",
            found,
            "That is a fault of Mailstrom's, and no host's: the engine's log has it"
            " ('engine.failed', with a trace); report it. The site is tried again by itself.",
            **evidence,
        )
    if relay:
        return problem(
            "queue.sites",
            found,
            "All mail goes there: see the findings about the relay's port, TLS and password below,"
            " or ask who runs it. 'mailstrom queue retry --all' tries at once when it is mended.",
            **evidence,
        )
    if site.failures >= LONG_FAILURES and site.waiting:
        return warning(
            "queue.sites",
            found,
            "It is tried again by itself until its mail expires. If the domain will not come back:"
            " 'mailstrom destinations show SITE', then 'mailstrom queue cancel --domain DOMAIN'.",
            **evidence,
        )
    return note(
        "queue.sites",
        found,
        "Nothing to do: it is tried again by itself. 'mailstrom destinations show SITE' tells"
        " more.",
        **evidence,
    )


def _held(rows: Contents) -> Iterator[Finding]:
    for reason, amount in sorted(rows.held.items()):
        known = _HELD.get(reason)
        if known is None:
            yield note(
                "queue.held",
                f"{plural(amount, 'recipient')} held by a person",
                "'mailstrom queue release --status held --reason user' lets them go.",
                reason=reason,
                recipients=amount,
            )
        else:
            yield warning(
                "queue.held",
                f"{plural(amount, 'recipient')} held since {known[0]}",
                known[1],
                reason=reason,
                recipients=amount,
            )
    if not rows.held:
        yield ok("queue.held", "nothing is held for a person")


def _reports(rows: Contents) -> Iterator[Finding]:
    if rows.unreported:
        why = rows.unreported_error or "no reason is on record any more"
        yield warning(
            "queue.reports",
            f"reports about {plural(rows.unreported, 'recipient')} to their senders could not be"
            f" made yet: {why}",
            "They are tried again, five times within a day; 'mailstrom tail --type"
            " message.unreported' shows which. Where the disk is full, free some space; else"
            " please report the sentence as a bug.",
            recipients=rows.unreported,
            error=rows.unreported_error,
        )


def _domains(rows: Contents) -> Iterator[Finding]:
    if not rows.failing_domains:
        return
    name, error = rows.failing_domain or ("", "")
    many = rows.failing_domains >= MANY_DOMAINS
    yield (warning if many else note)(
        "queue.domains",
        f"the mail hosts of {plural(rows.failing_domains, 'domain')} cannot be looked up for now,"
        f" {name} among them: {error or 'no answer'}",
        "If they are many the nameservers are in trouble: see the findings about DNS."
        " They are asked again by themselves.",
        domains=rows.failing_domains,
    )
