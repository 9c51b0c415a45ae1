"""Injection, judged by what went over the wire.

Contract. Each case is handed to ``send``: it is refused by an error of ours (or by the ``email``
package, which built nothing then), or accepted, delivered by the real engine, and read back from
the octets that the host had: by a splitter at CRLF, by one at whatever any reader may take for a
line's end, and by the standard library. The fields, the envelope and the number of parts have to be
those intended, and there is one transaction for each message accepted and none besides. Nothing
here uses our parser.
"""

from __future__ import annotations

import email
import email.header
import email.policy
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mailstrom.errors import IdempotencyConflict, InvalidMessage
from tests.hostile.input_host import RecordingHost, Taken
from tests.hostile.input_made import CASE, Case, Maker
from tests.hostile.stand import Stand
from tests.hostile.table import Row
from tests.support.engine import DEADLINE_S
from tests.support.sockets import eventually, loopback_addresses
from tests.support.trial import Plan

SHORT, LONG = 420, 5_000
HUGE_SHORT, HUGE_LONG = 3, 60
WANTED = "refused before any write, or sent as intended"
ADDED = {
    "date",
    "message-id",
    "mime-version",
    "content-type",
    "content-transfer-encoding",
    "resent-date",
}
FORGED = ("bcc:", "x-evil:", "rcpt ")
GROUPS = {
    "header": "line ends, controls and encoded-words in header values, objects of each kind",
    "name": "... in display names and addresses of header fields",
    "part": "... in names of fields, file names, types, charsets, boundaries, attached messages",
    "octets": "... in finished messages, bodies, objects that lie",
    "option": "... in sender=, recipients=, tags, metadata, idempotency_key, stream",
}
_MEMBERS = {
    "header": lambda place: place.split(",")[0] in _TEXTS,
    "name": lambda place: place.startswith(("name in", "address in")),
    "octets": lambda place: "octets" in place or place in ("body", "an object for a value"),
    "option": lambda place: place.endswith("="),
}


@dataclass(slots=True)
class Outcome:
    """What became of a case: an id, or who refused it, and what was wrong."""

    case: Case
    id: str = ""
    refused: str = ""
    seconds: float = 0.0
    findings: list[str] = field(default_factory=list)


def rows(stand: Stand, plan: Plan) -> Iterator[Row]:
    """One row for each group of places."""
    network = stand.network
    host = RecordingHost(loopback_addresses()[0], network.port)
    network.serve(host)
    domain = network.new_domain()
    network.route(domain, [host.address])
    maker = Maker(plan.seed, domain)
    before = count(stand)
    outcomes = [
        handed_in(stand, case)
        for case in maker.cases(plan.pick(SHORT, LONG), plan.pick(HUGE_SHORT, HUGE_LONG))
    ]
    plan.say(f"{sum(bool(one.id) for one in outcomes)} of {len(outcomes)} were accepted")
    slow = max(outcomes, key=lambda one: one.seconds)
    plan.say(f"the slowest: {slow.case.place}, {slow.case.payload[:20]!r}, {slow.seconds:.2f} s")
    yield from judged(stand, host, outcomes, before)


def handed_in(stand: Stand, case: Case) -> Outcome:
    """Give a case to the library."""
    outcome = Outcome(case)
    try:
        message, options = case.made()
    except Exception as error:  # the application's own library said no
        outcome.refused = f"email: {type(error).__name__}"
        return outcome
    if not isinstance(message, bytes):
        options = {"sender": "a@sender.test", **options} if "From" not in message else options
    started = time.process_time()
    try:
        outcome.id = stand.engine.ms.send(message, **options)
    except (InvalidMessage, IdempotencyConflict) as error:
        outcome.refused = f"{type(error).__name__} {getattr(error, 'rule', '')}"
        if len(str(error)) > 2_000:
            outcome.findings.append(f"an error of {len(str(error))} characters")
    except Exception as error:
        outcome.findings.append(f"{type(error).__name__}: {str(error)[:100]}")
    outcome.seconds = time.process_time() - started
    return outcome


def count(stand: Stand) -> int:
    """Messages in the spool."""
    return int(stand.engine.rows("SELECT count(*) AS n FROM messages")[0].n)


def judged(
    stand: Stand, host: RecordingHost, outcomes: Sequence[Outcome], before: int
) -> Iterator[Row]:
    """Wait until all that was accepted is final, look at the wire, and tell."""
    accepted = [one for one in outcomes if one.id]
    common: list[str] = []
    if count(stand) - before != len(accepted):
        common.append(f"{count(stand) - before} messages were written, {len(accepted)} accepted")
    waiting = (
        "SELECT count(*) AS n FROM recipients"
        " WHERE status NOT IN ('delivered', 'failed', 'cancelled')"
    )
    eventually(
        lambda: stand.engine.rows(waiting)[0].n == 0, 4 * DEADLINE_S, what="the end of every case"
    )
    common += host.violations[:5]
    by_case: dict[str, list[Taken]] = {}
    for taken in host.taken:
        number = re.search(rb"(?im)^" + CASE.encode() + rb": ?([0-9]+)\r$", taken.content)
        by_case.setdefault(number[1].decode() if number else "", []).append(taken)
    ours = {str(one.case.number) for one in accepted}
    common += [
        f"a transaction of no case: {taken[0].mail!r}"
        for number, taken in by_case.items() if number not in ours
    ][:3]  # fmt: skip
    for one in accepted:
        one.findings += wrong(one.case, by_case.get(str(one.case.number), []))
    for group, title in GROUPS.items():
        some = [one for one in outcomes if group_of(one.case) == group]
        if not some:
            continue
        told = [f"{one.case.place}, case {one.case.number}: {text}; {one.case.payload[:80]!r}"
                for one in some for text in one.findings]  # fmt: skip
        yield Row(
            case=title, wanted=WANTED, seen=WANTED if not (told or common) else "something else",
            tried=len(some), cpu_s=max(one.seconds for one in some),
            findings=(*common, *told),
        )  # fmt: skip
        common = []


_TEXTS = (
    "Subject", "X-Note", "Comments", "List-Id", "List-Unsubscribe", "In-Reply-To", "References",
    "Message-ID", "Date", "Keywords", "Received", "Organization", "MIME-Version", "Resent-From",
    "DKIM-Signature", "Authentication-Results",
)  # fmt: skip


def group_of(case: Case) -> str:
    """The row that a case belongs to."""
    return next((name for name, member in _MEMBERS.items() if member(case.place)), "part")


def wrong(case: Case, taken: Sequence[Taken]) -> list[str]:
    """What the octets on the wire say besides what was intended."""
    if len(taken) != 1:
        return [f"accepted, and there were {len(taken)} transactions"]
    (one,) = taken
    return [*_envelope(case, one), *_header(case, one.content), *_mime(case, one.content)]


def _envelope(case: Case, one: Taken) -> Iterator[str]:
    if case.sender is not None and one.sender != case.sender:
        yield f"MAIL FROM:<{one.sender}> for {case.sender!r}"
    wanted = sorted(case.recipients)
    if case.attacked is None:
        if one.recipients != wanted:
            yield f"recipients {one.recipients} for {wanted}"
        return
    got = [one.sender] if case.sender is None else [r for r in one.recipients if r not in wanted]
    if len(got) > 1:
        yield f"{len(got)} addresses for one"
    for address in got:
        text = case.attacked
        inner = text[text.rindex("<") + 1 : -1] if text.endswith(">") and "<" in text else text
        if address.rpartition("@")[0] != inner.rpartition("@")[0]:
            yield f"the address {address!r} for {inner!r}"
        if inner.isascii() and address.lower() != inner.lower():
            yield f"the address {address!r} for {inner!r}"


def _head(content: bytes) -> list[bytes]:
    return content.partition(b"\r\n\r\n")[0].split(b"\r\n")


def _header(case: Case, content: bytes) -> Iterator[str]:
    lines = _head(content)
    names = Counter(
        line.partition(b":")[0].decode("utf-8", "replace").lower()
        for line in lines if line[:1] not in (b" ", b"\t")
    )  # fmt: skip
    wanted = Counter(case.names if case.names is not None else octets_names(case))
    for name in ADDED:
        if name not in wanted and names[name] == 1:
            del names[name]
    if names - wanted:
        yield f"fields too many: {sorted(names - wanted)}"
    # An address field without any address is left out, as RFC 5322 wants it.
    lacking = set(wanted - names) - {"sender", "reply-to", "cc", "to"}
    if lacking:
        yield f"fields too few: {sorted(lacking)}"
    gullible = b"\r\n".join(lines).decode("utf-8", "replace").splitlines()
    given = {"bcc:"} if "bcc" in wanted else set()
    for line in gullible:
        found = next((one for one in FORGED if line.lower().startswith(one)), None)
        if found and found not in given and case.names is not None:
            yield f"a reader of any line end sees {line[:80]!r}"
    if any(octet in content for octet in (b"\0",)) or re.search(rb"\r(?!\n)|(?<!\r)\n", content):
        yield "a bare line end or a NUL in the content"


def octets_names(case: Case) -> list[str]:
    """Fields that finished octets have, but for what never leaves."""
    message, _ = case.made()
    head = message.replace(b"\r\n", b"\n").partition(b"\n\n")[0].split(b"\n")
    names = [line.partition(b":")[0].decode().lower() for line in head if line[:1] not in b" \t"]
    return [name for name in names if name not in ("bcc", "resent-bcc", "return-path")]


def _mime(case: Case, content: bytes) -> Iterator[str]:
    message = email.message_from_bytes(content, policy=email.policy.compat32)
    parts = list(message.walk())
    if case.names is not None and case.place != "Content-Type of the whole":
        if len(parts) != case.parts:
            yield f"{len(parts)} parts, not {case.parts}"
        for part in parts[1:]:
            forged = {name.lower() for name in part.keys()} & {"bcc", "x-evil", "rcpt to"}  # noqa: SIM118
            if forged:
                yield f"a part with {forged}"
    if not case.decodes:
        return
    for name, value in message.items():
        try:
            decoded = str(email.header.make_header(email.header.decode_header(value)))
        except (ValueError, LookupError):  # what nobody can decode is no line end
            continue
        if re.search("[\r\n\0]", re.sub("\r?\n(?=[ \t])", "", decoded)):
            yield f"{name} decodes to a line end"
