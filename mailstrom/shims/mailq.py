"""``mailq``: what is not finished, as Postfix prints it; and ``sendmail -q``, which makes it due.

A page at a time, newest first, so that the first lines of a million come at once and memory is
bounded. ``-j`` prints a JSON object a line with the keys of Postfix's ``postqueue -j``.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterator

from mailstrom.errors import MessageNotFound
from mailstrom.printable import printable
from mailstrom.shims.place import BUSY_MS, Place, opened
from mailstrom.shims.sysexits import OK, OUTPUT, tell
from mailstrom.storage.client import ClientStore, Selection
from mailstrom.types import MessageStatus, RecipientStatus, Status

PAGE = 2_000
"""Messages in memory; each page looks over the index of all that waits."""
_WAITING = (Status.QUEUED, Status.SENDING, Status.DEFERRED, Status.HELD)
_ID = 36
_INDENT = " " * (_ID + 33)


def main() -> int:
    """The console script; gives the exit code."""
    from mailstrom.shims.sendmail import hold_standard_files, run

    hold_standard_files()
    return run("mailstrom-mailq", sys.argv[1:], os.environ)


def show(place: Place, *, as_json: bool) -> int:
    """Print what is not finished.

    Raises:
        MailstromError: the spool cannot be asked.
    """
    lines = _objects if as_json else _table
    if isinstance(sys.stdout, io.TextIOWrapper):  # a letter the locale lacks hides no mail
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        for line in lines(_unfinished(opened(place.spool, writing=False))):
            print(line)
        sys.stdout.flush()
    except OSError as error:  # the reader has gone, or the disk is full
        sys.stdout = None  # nothing is flushed at the end
        if not isinstance(error, BrokenPipeError):
            tell(f"mailstrom-mailq: {error.strerror}")
        return OUTPUT
    return OK


def flush(place: Place, which: tuple[str, str] | None) -> int:
    """Make what is deferred due now: all, or of one message (``I``) or one domain (``R``).

    Raises:
        MailstromError: the spool cannot be changed, or has no such message.
    """
    from mailstrom.client import Mailstrom

    with Mailstrom(place.spool, timeout=BUSY_MS / 1000) as client:
        if which is None:
            client.change_all("retry", status=str(Status.DEFERRED))
        elif which[0] == "I":
            client.status(which[1])  # MessageNotFound
            client.change_all("retry", ids=[which[1]], status=str(Status.DEFERRED))
        else:
            client.change_all("retry", domain=which[1], status=str(Status.DEFERRED))
    return OK


def _unfinished(store: ClientStore) -> Iterator[MessageStatus]:
    selection = Selection(statuses=tuple(map(str, _WAITING)))
    after: str | None = None
    while True:
        try:
            page = store.find(selection, limit=PAGE, after=after)
        except MessageNotFound:  # the last one of the page before was purged meanwhile
            return
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1].id


def _waiting(message: MessageStatus) -> list[RecipientStatus]:
    return [one for one in message.recipients.values() if not one.status.final]


def _table(messages: Iterator[MessageStatus]) -> Iterator[str]:
    count = octets = 0
    for message in messages:
        if not count:
            yield (
                f"{'-Queue ID-':-<{_ID + 1}} --Size-- ----Arrival Time---- -Sender/Recipient-------"
            )
        count += 1
        octets += message.size
        waiting = _waiting(message)
        mark = _mark(waiting)
        when = time.strftime("%a %b %d %H:%M:%S", message.created_at.astimezone().timetuple())
        sender = printable(message.sender) or "MAILER-DAEMON"
        yield f"{message.id:<{_ID}}{mark} {message.size:>8} {when:>21} {sender}"
        told = None
        for one in sorted(waiting, key=_why):
            why = _why(one)
            if why != told and why:
                yield f"{_INDENT[:10]}({why})"
            told = why
            yield f"{_INDENT}{printable(one.address)}"
        yield ""
    if count:
        yield f"-- {(octets + 1023) // 1024} Kbytes in {count} Request{'s' * (count > 1)}."
    else:
        yield "Mail queue is empty"


def _objects(messages: Iterator[MessageStatus]) -> Iterator[str]:
    import json

    for message in messages:
        waiting = _waiting(message)
        mark = _mark(waiting)
        queue = {"*": "active", "!": "hold"}.get(mark)
        if queue is None:
            deferred = any(one.status is Status.DEFERRED for one in waiting)
            queue = "deferred" if deferred else "incoming"
        recipients: list[dict[str, str]] = []
        for one in waiting:
            recipients.append({"address": one.address})
            if why := _why(one):
                recipients[-1]["delay_reason"] = why
        yield json.dumps(
            {
                "queue_name": queue,
                "queue_id": message.id,
                "arrival_time": int(message.created_at.timestamp()),
                "message_size": message.size,
                "forced_expire": False,
                "sender": message.sender or "MAILER-DAEMON",
                "recipients": recipients,
            }
        )


def _mark(waiting: list[RecipientStatus]) -> str:
    """``*`` on the wire, ``!`` held, as Postfix marks them."""
    if any(one.status is Status.SENDING for one in waiting):
        return "*"
    return "!" if waiting and all(one.status is Status.HELD for one in waiting) else " "


def _why(one: RecipientStatus) -> str:
    """Why a recipient waits, in one line; "" where nothing was tried yet."""
    if one.status is Status.HELD:
        return f"held: {one.reason}" if one.reason else "held"
    said = " ".join(
        str(word) for word in (one.reply_code, one.enhanced_code, one.reply_text) if word
    )
    if said:
        return printable(f"{one.mx}: {said}" if one.mx else said)
    return str(one.reason) if one.reason else ""


if __name__ == "__main__":
    sys.exit(main())
