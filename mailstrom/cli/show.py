"""``mailstrom show``: everything that is known about one message, for a person.

The envelope and the message's own options, then each recipient with what happens to it next and why
it was not sent yet, every attempt with the connection it was made on, and what its sender was told
of it in reports, as far as events go back. ``--headers``, ``--source`` and ``--raw`` print the
message itself instead.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from mailstrom.cli.ids import full_id
from mailstrom.cli.output import cell, fold, print_json
from mailstrom.cli.selection import MOST_ROWS
from mailstrom.cli.spool import json_option, opened, spool_options
from mailstrom.client.look import reply
from mailstrom.printable import printable
from mailstrom.spans import span_text
from mailstrom.types import Reason

if TYPE_CHECKING:
    from mailstrom.client import Mailstrom
    from mailstrom.types import MessageStatus, RecipientStatus

_ATTEMPTS = """
select a.recipient, a.number, a.started_at, a.ended_at, a.ended_ms - a.started_ms as ms, a.stage,
       a.host, a.address, a.reply_code, a.enhanced_code, a.reply_text, a.verdict, a.reason,
       a.in_doubt, a.late, a.worker, a.session_id, s.source, s.messages, s.ehlo, s.tls_wanted,
       s.tls_reached, s.tls_version, s.tls_cipher, s.tls_peer, s.tls_verified, s.end_cause
  from attempts a left join sessions s on s.id = a.session_id
 where a.message_id = ? order by a.recipient, a.id
"""
_ATTEMPT_FIELDS = (
    "number", "started_at", "ended_at", "stage", "host", "address", "reply_code", "enhanced_code",
    "reply_text", "verdict", "reason", "in_doubt", "late", "worker",
)  # fmt: skip
_SESSION_FIELDS = (
    "source", "messages", "ehlo", "tls_wanted", "tls_reached", "tls_version", "tls_cipher",
    "tls_peer", "tls_verified", "end_cause",
)  # fmt: skip
_REPORTED = "select address, reported from recipients where message_id = ?"
_REPORTS = """
select at_at, type, detail from events
 where message_id = ? and type in ('message.reported', 'message.unreported') order by id
"""
_FLAGS = frozenset({"in_doubt", "late", "tls_verified"})


@click.command("show")
@click.argument("id")
@click.option("--headers", "part", flag_value="headers", help="Print the header block.")
@click.option(
    "--source",
    "part",
    flag_value="source",
    help="Print the message with unsafe characters escaped.",
)
@click.option("--raw", "part", flag_value="raw", help="Print the exact bytes that go on the wire.")
@spool_options
@json_option
def command(
    id: str, part: str | None, config: str | None, store: str | None, as_json: bool
) -> None:
    """Tell everything about the message ID: what was tried, what comes next, and why not yet.

    ID may be a unique end of at least six characters. Exit 1 if there is no such message.
    """
    if part and as_json:
        raise click.UsageError(f"--json and --{part} exclude each other")
    with opened(config, store) as client:
        id = full_id(client, id)
        if part:
            _content(client.raw(id), part)
        else:
            _tell(client, id, as_json)


def _content(content: bytes, part: str) -> None:
    if part == "raw":
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    text = content if part == "source" else content.partition(b"\r\n\r\n")[0]
    for line in text.decode("utf-8", "surrogateescape").removesuffix("\r\n").split("\r\n"):
        click.echo("\t".join(printable(piece, 2_000_000) for piece in line.split("\t")))


def _tell(client: Mailstrom, id: str, as_json: bool) -> None:
    status = client.status(id)
    ((stream, priority, message_id, key, origin, giver),) = client.query(
        "select stream, priority, message_id, idempotency_key, origin, client"
        " from messages where id = ?",
        (id,),
    )
    steps = {one.address: one.sentence for one in client.why(id, limit=MOST_ROWS)}
    attempts: dict[str, list[Any]] = {}
    for row in client.query(_ATTEMPTS, (id,)):
        attempts.setdefault(row.recipient, []).append(row)
    more = {
        "stream": stream,
        "priority": priority,
        "message_id": message_id,
        "idempotency_key": key,
        "origin": origin,
        "client": json.loads(giver) if giver else None,
    }
    reported = {row.address: row.reported for row in client.query(_REPORTED, (id,))}
    reports = [_report(row, status.sender) for row in client.query(_REPORTS, (id,))]
    if as_json:
        print_json(_record(status, more, steps, attempts, reported, reports))
        return
    _envelope(status, more)
    named: dict[str, list[dict[str, Any]]] = {}
    for report in reports:
        for address in report.get("recipients", ()):
            named.setdefault(address, []).append(report)
    untold = next((one for one in reversed(reports) if one["id"] is None), None)
    for recipient in status.recipients.values():
        click.echo()
        address = recipient.address
        _recipient(recipient, steps.get(address), attempts.get(address, []))
        _told(reported.get(address), named.get(address, []), untold)


def _record(
    status: MessageStatus,
    more: dict[str, Any],
    steps: dict[str, str],
    attempts: dict[str, list[Any]],
    reported: dict[str, str | None],
    reports: list[dict[str, Any]],
) -> dict[str, object]:
    told = status.to_dict() | more | {"reports": reports}
    told["recipients"] = {
        address: recipient.to_dict()
        | {
            "next": steps.get(address),
            "reported": reported.get(address),
            "attempts_made": [_attempt_record(row) for row in attempts.get(address, ())],
        }
        for address, recipient in status.recipients.items()
    }
    return told


def _attempt_record(row: Any) -> dict[str, object]:
    def value(name: str) -> object:
        found = getattr(row, name)
        return bool(found) if name in _FLAGS and found is not None else found

    made: dict[str, object] = {name: value(name) for name in _ATTEMPT_FIELDS}
    session = {name: value(name) for name in _SESSION_FIELDS}
    known = row.tls_reached is not None
    made["session"] = {"id": row.session_id, **session} if known else None
    return made


def _report(row: Any, sender: str) -> dict[str, Any]:
    """A report that was made, with the first of its recipients, or why none was."""
    detail = json.loads(row.detail)
    made = {"at": row.at_at, "kind": detail["kind"], "count": detail["count"]}
    if row.type == "message.reported":
        return made | {"id": detail["report"], "to": sender, "recipients": detail["recipients"]}
    return made | {"id": None, "error": detail["error"], "given_up": bool(detail["given_up"])}


def _envelope(status: MessageStatus, more: dict[str, Any]) -> None:
    told = status.to_dict()
    lines = [
        ("id", status.id),
        ("status", status.status),
        ("came by", _came(more["origin"], more["client"] or {})),
        ("sender", status.sender or "<> (the null sender)"),
        ("subject", status.subject),
        ("message-id", more["message_id"]),
        ("stream", f"{more['stream']}, priority {more['priority']}"),
        ("key", more["idempotency_key"]),
        ("tags", ", ".join(status.tags)),
        ("metadata", json.dumps(status.metadata, ensure_ascii=False) if status.metadata else ""),
        ("size", f"{status.size:,} bytes"),
        ("accepted", told["created_at"]),
        ("not before", told["send_at"] if status.send_at != status.created_at else None),
        ("expires", told["expires_at"] if status.finished_at is None else None),
        ("finished", told["finished_at"]),
    ]
    for name, value in lines:
        if value:
            fold(f"{name + ':':<12} ", cell(value))


def _came(origin: str, giver: dict[str, Any]) -> str:
    """Who handed it in, where that was not a program with the library."""
    if origin == "library":
        return ""
    address = giver.get("address")
    told = [origin + (f" from {address}" if address else "")]
    if giver.get("user"):
        told.append(f"user {giver['user']}")
    if giver.get("helo"):
        told.append(f"called itself {giver['helo']}")
    if address:
        told.append(giver.get("tls") or "in clear")
    return ", ".join(told)


def _recipient(recipient: RecipientStatus, step: str | None, attempts: list[Any]) -> None:
    number = f"{recipient.attempts} attempt{'' if recipient.attempts == 1 else 's'}"
    known = recipient.reason == Reason.IN_DOUBT
    doubt = ", in doubt" if recipient.in_doubt and not known else ""
    fold("", f"{cell(recipient.address)}: {_verdict(recipient)}{doubt}, {number}")
    if step:
        fold("  next: ", cell(step))
    for row in attempts:
        where = f"{row.host} [{row.address}]" if row.address else row.host or "no host"
        fold(
            f"  {row.number:>3}. ",
            cell(f"{row.started_at} {row.stage}, {where}: {_verdict_of(row)}"),
            f" ({span_text(row.ms)})",
        )
        words = reply(row.reply_code, row.enhanced_code, row.reply_text)
        if words:
            fold("       ", cell(words))
        if row.tls_reached is not None:
            fold("       ", cell(_session(row)))


def _told(reported: str | None, named: list[dict[str, Any]], untold: dict[str, Any] | None) -> None:
    """What the sender was told of a recipient: each report that names it, or the last word.

    Args:
        named: those reports.
        untold: the message's last report that could not be made.
    """
    for one in named:
        fold("  told: ", cell(f"{one['kind']}, {one['at']}, to {one['to']}, in report {one['id']}"))
    if reported == "none":
        why = f": {untold['error']}" if untold else ""
        fold("  told: ", cell(f"nobody, no report was made{why}"))
    elif reported and not named:  # it is one of very many, or the events are purged
        fold("  told: ", reported)
    elif untold and not reported and not untold["given_up"]:
        kind, error = untold["kind"], untold["error"]
        fold("  told: ", cell(f"nobody yet, a report ({kind}) could not be made: {error}"))


def _verdict(recipient: RecipientStatus) -> str:
    reason = f" ({recipient.reason})" if recipient.reason else ""
    return f"{recipient.status}{reason}"


def _verdict_of(row: Any) -> str:
    doubt = row.in_doubt and row.reason != Reason.IN_DOUBT
    marks = [row.reason, "in doubt" if doubt else None, "late" if row.late else None]
    said = ", ".join(mark for mark in marks if mark)
    return f"{row.verdict} ({said})" if said else str(row.verdict)


def _session(row: Any) -> str:
    parts = [f"session {row.session_id}, worker {row.worker}"]
    if row.tls_reached == "none":
        parts.append(f"no TLS (wanted: {row.tls_wanted})")
    else:
        verified = "verified" if row.tls_verified else "not verified"
        parts.append(f"{row.tls_version} {row.tls_cipher} ({row.tls_reached}, {verified})")
    parts.append(f"{row.messages} message{'' if row.messages == 1 else 's'}")
    if row.end_cause:
        parts.append(f"ended: {row.end_cause}")
    return "; ".join(parts)
