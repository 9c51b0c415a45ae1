"""A sound spool made of what a damaged one still holds.

The damaged spool must be stopped; its files are read page by page (``salvage_pages``), never opened
by SQLite and never written. What becomes part of the new spool is proved: a recipient by the
checksum over message, sender and address, content by its digests, the message by the digest over
both (one that an older client stored by its recipients and the size of its content). What was
claimed or on the wire is in doubt. A message whose content is not whole is put in as failed, so
that its id still answers; what is left out is listed, as far as anything names it
(``salvage_lost``).

States may be older than the truth, since the newest page may be the damaged one: the new spool is
marked as a copy, and sends nothing before ``adopt``. Where a delivery was recorded in an attempt
that is left, it counts. Routes, lanes, workers and sessions are not taken along: they are found or
made anew.

Crash-safe as ``backups``: written under another name beside the target, synced, checked, and only
then given its name. Writing is here, reading rows in ``salvage_rows``, what a row is worth in
``salvage_states``, what is said of it in ``salvage_report``.

Longer than a file should be: a message is written with all about it, or not at all.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import apsw

from mailstrom.errors import NotASpool, SpoolError
from mailstrom.storage.sqlite import backups, copies, salvage_rows, schema
from mailstrom.storage.sqlite.connection import advice, mark_new, require_file, spool_errors
from mailstrom.storage.sqlite.restore import alone, locked
from mailstrom.storage.sqlite.rows import SEALED, digest, fits
from mailstrom.storage.sqlite.salvage_lost import Traces, lost_messages
from mailstrom.storage.sqlite.salvage_pages import Pages
from mailstrom.storage.sqlite.salvage_report import Damaged, Salvaged
from mailstrom.storage.sqlite.salvage_rows import MESSAGE, RECIPIENT
from mailstrom.storage.sqlite.salvage_states import (
    MAX_AGE_MS,
    STAGES,
    TOLD,
    VERDICTS,
    proved,
    settled,
    timed,
)
from mailstrom.storage.sqlite.sql import STATEMENTS, run

_MOST_NUMBER = 1 << 40
"""A row's number beyond it is damage; what is numbered here comes behind all that were found."""
_AFTER = (
    "salvage_tags", "salvage_idempotency", "salvage_suppression",
    "salvage_domains", "salvage_owed", "salvage_hours", "salvage_staged", "salvage_unstage",
    "salvage_message_tally", "salvage_tally",
)  # fmt: skip


def salvage(source: str, target: str, now_ms: int, *, dry_run: bool = False) -> Salvaged:
    """Make a sound spool of what is left of a damaged one.

    Args:
        source: the damaged spool's file, with its -wal beside it, which may be all that is left of
            it; nobody has it open, this process neither. It stays as it is.
        target: path of the new spool; it must not exist.
        now_ms: the time, for the mark of a copy and for what is in doubt.
        dry_run: only say what would come of it; the work is done beside ``target`` and deleted.

    Raises:
        SpoolBusy: a process has the damaged spool open.
        NotASpool: there is nothing of a spool in it.
        SpoolError: or another subclass; nothing is left at ``target``.
    """
    source, target = os.path.realpath(source), os.path.abspath(target)
    if not os.path.exists(source) and not os.path.exists(f"{source}-wal"):
        raise SpoolError(f"{source}: there is no such file; name the damaged spool")
    require_file(source)
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise SpoolError(f"{target}: the directory {folder} does not exist; make it first")
    backups.require_free(target, "the new spool")
    backups.sweep(target)
    temporary = backups._Temporary(target)
    try:
        with alone(source), locked(source):
            salvaged = _fill(source, target, temporary.path, now_ms)
        temporary.sync()
        with spool_errors(target, "checking the new spool"):
            if not backups.checked(target, temporary.path):
                raise SpoolError(f"{target}: this process forked while it was checked; try again")
        if not dry_run:
            temporary.give_name()
    finally:
        temporary.end()
    return salvaged


def _fill(source: str, target: str, path: str, now_ms: int) -> Salvaged:
    with ExitStack() as opened, spool_errors(target, f"salvaging {source}"):
        # Errors are looked into while all is still open, or a lack of descriptors would be over.
        try:
            pages = Pages(source)
        except OSError as error:
            remedy = "; run this as its owner" if error.errno == errno.EACCES else advice(error)
            raise SpoolError(
                f"{error.filename or source}: cannot be read ({error.strerror}){remedy}"
            ) from error
        opened.callback(pages.close)
        new = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE)
        opened.callback(new.close)
        with _limited(new):
            return _written(pages, new, source, now_ms)


def _written(pages: Pages, new: apsw.Connection, source: str, now_ms: int) -> Salvaged:
    mark_new(new)
    new.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
    new.execute("PRAGMA synchronous = OFF").fetchall()
    schema.migrate(new)
    new.execute("ATTACH '' AS found").fetchall()
    new.execute("BEGIN").fetchall()
    salvage_rows.create(new)
    tally = salvage_rows.gather(pages, new)
    salvage_rows.index(new)
    # A savepoint of a transaction that made tables could not be rolled back under a cursor.
    new.execute("COMMIT").fetchall()
    new.execute("BEGIN").fetchall()
    run(new, "salvage_meta")
    work = _Work(pages, new, now_ms)
    work.result.pages, work.result.unreadable, work.result.unfit_frames = tally
    run(new, "salvage_numbers", {"most": _MOST_NUMBER})
    work.messages()
    found = work.result.messages or work.result.damaged or work.result.replaced
    if not found and not _ours(new):
        raise NotASpool(f"{source}: nothing of a Mailstrom spool is in it; name another file")
    work.rest()
    copies.mark(new, source, now_ms)
    new.execute("COMMIT").fetchall()
    return work.result


@contextmanager
def _limited(new: apsw.Connection) -> Iterator[None]:
    """A limit of files' sizes (ulimit -f) is told as a full disk: SQLite calls it an I/O error."""
    try:
        yield
    except apsw.IOError as error:
        if new.system_errno == errno.EFBIG:
            raise apsw.FullError(str(error)) from error
        raise


def _ours(new: apsw.Connection) -> bool:
    """Whether anything was found at all; an empty spool has its settings."""
    return bool(new.execute("SELECT 1 FROM found.meta LIMIT 1").fetchall())


class _Work:
    """Deciding what is whole, message by message, and writing it.

    Args:
        pages: of the damaged spool.
        new: the new spool, with the scratch database attached, in a transaction.
        now_ms: the time.
    """

    def __init__(self, pages: Pages, new: apsw.Connection, now_ms: int) -> None:
        self.result = Salvaged()
        self._pages = pages
        self._new = new
        self._now_ms = now_ms
        self._traces = Traces(new)
        self._digests: dict[int, list[bytes]] = {}
        """Of unnamed content that was read: each is read once, not for every message without."""
        kept = run(new, "salvage_max_age")
        self._max_age_ms = int(kept[0][0]) if kept else MAX_AGE_MS

    def messages(self) -> None:
        """Every message that a row is found of, the newest sound row of each."""
        candidates: list[dict[str, Any]] = []
        cursor = self._new.cursor()
        for row in cursor.execute(STATEMENTS["found_messages"]):
            message = dict(zip(MESSAGE, row, strict=True))
            if candidates and candidates[0]["seq"] != message["seq"]:
                self._one(candidates)
                candidates = []
            candidates.append(message)
        if candidates:
            self._one(candidates)
        self.result.damaged += lost_messages(self._new)
        self._replaced()

    def _replaced(self) -> None:
        """Messages that the -wal made nothing of, where that can hardly be their deletion."""
        if not self._pages.logged:
            return
        named = json.dumps([one.id for one in self.result.damaged if one.id is not None])
        ((only, undeleted, unfinished),) = run(self._new, "found_replaced", {"named": named})
        if undeleted or (unfinished and not self.result.sound):
            self.result.replaced = only

    def rest(self) -> None:
        """What belongs to the spool as a whole."""
        for name in _AFTER:
            run(self._new, name)

    def _one(self, candidates: list[dict[str, Any]]) -> None:
        rows = run(self._new, "found_recipients", {"message": candidates[0]["seq"]})
        recipients = [dict(zip(RECIPIENT, row, strict=True)) for row in rows]
        for message in candidates:
            own = proved(message, recipients)
            content = self._content(message) if own else None
            if content is not None and self._kept(message, recipients, own, content):
                self._others(message, candidates, recipients)
                return
        for message in candidates:
            own = proved(message, recipients)
            if own and self._kept(message, recipients, own, None):
                self._others(message, candidates, recipients)
                return
        message = candidates[0]
        missing = self._traces.missing(message, recipients, [])
        self.result.damaged.append(
            Damaged(
                id=message["id"],
                sender=message["sender"],
                subject=message["subject"],
                recipients=missing.addresses,
                unnamed=missing.unnamed,
                kept=False,
                why="its own row, or every row of a recipient of it, is damaged or lost",
            )
        )

    def _others(
        self,
        kept: dict[str, Any],
        candidates: list[dict[str, Any]],
        recipients: list[dict[str, Any]],
    ) -> None:
        """Name messages that were accepted, too, under the number of one that is taken along."""
        named = {kept["id"]}
        for message in candidates:
            own = [] if message["id"] in named else proved(message, recipients)
            if own:
                named.add(message["id"])
                self.result.damaged.append(
                    Damaged(
                        id=message["id"],
                        sender=message["sender"],
                        subject=message["subject"],
                        recipients=tuple(row["address"] for row in own),
                        kept=False,
                        why=f"another message ({kept['id']}) has its number, so a page or the -wal"
                        " is another spool's",
                    )
                )

    def _content(self, message: dict[str, Any]) -> list[tuple[int, bytes, bytes]] | None:
        """Chunks of the message that prove it, [] where it has none any more; None: not whole."""
        if message["purged_ms"] is not None:
            return []
        for number in self._numbers(message):
            if run(self._new, "salvage_has_content", {"key": number * 4096}):
                continue  # another message's, of the same bytes
            if number in self._digests and not _whole(message, self._digests[number]):
                continue
            chunks = self._chunks(message, number)
            if chunks is not None:
                message["content"] = number if number < 0 else None
                return chunks
        return None

    def _numbers(self, message: dict[str, Any]) -> Iterator[int]:
        """Where a message's content may lie: as its row says, under its own number, or anywhere.

        No digest covers the number in the row, but the content proves itself wherever it is found;
        and under a message's own number lies nobody else's. That of one chunk was never staged.
        """
        number = message["content"]
        if number is not None and -_MOST_NUMBER < number < 0:
            yield number
        yield message["seq"]
        if message["digest"] is not None and message["chunks"] > 1:
            values = {"chunks": message["chunks"], "size": message["size"]}
            yield from (row[0] for row in run(self._new, "found_unnamed", values))

    def _chunks(
        self, message: dict[str, Any], number: int
    ) -> list[tuple[int, bytes, bytes]] | None:
        """What lies under a number, if it is all of this message's content."""
        first = number * 4096
        found: dict[int, tuple[int, bytes, bytes]] = {}
        places = run(self._new, "found_chunks", {"first": first, "last": first + 4095})
        for key, page, image, cell in places:
            if key in found:
                continue
            chunk = salvage_rows.content_of(self._pages, page, image, cell)
            if chunk is not None and digest(chunk[0]) == chunk[1]:
                found[key] = (key, *chunk)
        chunks = [found[key] for key in sorted(found)]
        digests = [kept for _, _, kept in chunks]
        if number not in (message["seq"], message["content"]):
            self._digests[number] = digests
        if [key for key, _, _ in chunks] != list(range(first, first + len(chunks))):
            return None
        if sum(len(data) for _, data, _ in chunks) != message["size"]:
            return None
        return chunks if _whole(message, digests) else None

    def _kept(
        self,
        message: dict[str, Any],
        found: list[dict[str, Any]],
        recipients: list[dict[str, Any]],
        content: list[tuple[int, bytes, bytes]] | None,
    ) -> bool:
        """Write a message with all about it; False where its row is none that a spool can hold."""
        now_ms, damaged = self._now_ms, content is None
        message = timed(message, self._max_age_ms, now_ms)
        attempts = self._attempts(message, recipients)
        taken: list[dict[str, Any]] = []
        doubtful = 0
        new = self._new
        new.execute("SAVEPOINT message").fetchall()
        try:
            for row in recipients:
                in_doubt = settled(row, message, attempts[row["seq"]], damaged, now_ms)
                if self._recipient(row, attempts[row["seq"]]):
                    doubtful += in_doubt
                    taken.append(row)
            finished = [row["finished_ms"] for row in taken]
            message["finished_ms"] = None if None in finished else max(finished, default=None)
            message["purged_ms"] = message["purged_ms"] or (None if content else now_ms)
            if not content:  # what its row names may be another message's
                message["content"] = None
            lacks_content = message["finished_ms"] is None and message["purged_ms"] is not None
            if lacks_content or not taken:
                raise apsw.ConstraintError("a row that says so is damaged, or no recipient is left")
            run(new, "salvage_message", message)
            for key, data, kept in content or ():
                run(new, "salvage_content", {"key": key, "data": data, "digest": kept})
        except (apsw.ConstraintError, apsw.MismatchError):
            new.execute("ROLLBACK TO message").fetchall()
            return False
        finally:
            new.execute("RELEASE message").fetchall()
        self._events(message, {row["seq"] for row in taken}, attempts)
        self.result.messages += 1
        self.result.recipients += len(taken)
        self.result.in_doubt += doubtful
        self._told(message, found, taken, damaged)
        return True

    def _recipient(self, row: dict[str, Any], attempts: list[dict[str, Any]]) -> bool:
        """Write a recipient and its attempts; False where its row is none that a spool can hold."""
        try:
            seq = run(self._new, "salvage_recipient", _numbered(self._new, "recipient", row))[0][0]
        except (apsw.ConstraintError, apsw.MismatchError):
            return False
        for attempt in attempts:
            attempt["recipient"] = seq
            run(self._new, "salvage_attempt", _numbered(self._new, "attempt", attempt))
        return True

    def _told(
        self,
        message: dict[str, Any],
        found: list[dict[str, Any]],
        taken: list[dict[str, Any]],
        damaged: bool,
    ) -> None:
        """Say what is not whole of a message that is in the new spool."""
        names = {name: message[name] for name in ("id", "sender", "subject")}
        said = self.result.damaged
        said += self._traces.between(message, taken)
        missing = self._traces.missing(message, found, taken)
        lost = bool(missing.addresses or missing.unnamed)
        if damaged:
            addresses = tuple(row["address"] for row in taken)
            why = "its content is damaged or lost"
            said.append(Damaged(**names, recipients=addresses, kept=True, why=why))
        if lost:
            addresses, unnamed = missing
            why = "these recipients' rows are damaged or lost; its others are taken along"
            said.append(
                Damaged(**names, recipients=addresses, unnamed=unnamed, kept=False, why=why)
            )
        self.result.whole += not (damaged or lost)

    def _attempts(
        self, message: dict[str, Any], recipients: list[dict[str, Any]]
    ) -> dict[int, list[dict[str, Any]]]:
        """What is left of the attempts, by recipient, numbered anew."""
        names = ("seq", "recipient", "session", "worker", "started_ms", "ended_ms", "stage", "host",
                 "address", "reply_code", "enhanced_code", "reply_text", "verdict", "reason",
                 "in_doubt", "late")  # fmt: skip
        found: dict[int, list[dict[str, Any]]] = {row["seq"]: [] for row in recipients}
        seen: set[int] = set()
        for values in run(self._new, "found_attempts", {"message": message["seq"]}):
            row = dict(zip(names, values, strict=True))
            legal = row["stage"] in STAGES and row["verdict"] in VERDICTS
            if row["seq"] in seen or row["recipient"] not in found or not legal:
                continue
            if row["in_doubt"] in (0, 1) and row["late"] in (0, 1):
                seen.add(row["seq"])
                own = found[row["recipient"]]
                own.append({**row, "message": message["seq"], "number": len(own) + 1})
        return found

    def _events(
        self, message: dict[str, Any], recipients: set[int], attempts: dict[int, list[Any]]
    ) -> None:
        """What is left of the message's events, and one for each attempt that was added here."""
        seen: set[int] = set()
        for id, at_ms, type, recipient, detail in run(
            self._new, "found_events", {"message": message["seq"]}
        ):
            if id in seen or (recipient is not None and recipient not in recipients):
                continue
            seen.add(id)
            row = {"id": id, "at_ms": at_ms, "type": type, "message": message["seq"]}
            try:
                run(self._new, "salvage_event", {**row, "recipient": recipient, "detail": detail})
            except (apsw.ConstraintError, apsw.MismatchError):
                continue
        for recipient in recipients:
            for row in attempts[recipient]:
                if row["seq"] is None and row["reply_text"] != TOLD:
                    names = ("stage", "reason", "in_doubt", "late", "number")
                    values = {
                        "at_ms": self._now_ms,
                        "type": f"recipient.{row['verdict']}",
                        "message": message["seq"],
                        "recipient": row["recipient"],
                        "detail": json.dumps({name: row[name] for name in names}),
                    }
                    run(self._new, "salvage_new_event", values)


def _whole(message: dict[str, Any], digests: list[bytes]) -> bool:
    """Whether chunks of these digests are all of the message's content."""
    facts = {name: message[name] for name in (*SEALED, "require_tls", "on_doubt")}
    return message["chunks"] == len(digests) and fits(message["digest"], **facts, digests=digests)


def _numbered(new: apsw.Connection, table: str, row: dict[str, Any]) -> dict[str, Any]:
    """The row with a number of its own: one that two rows claim is given to the first."""
    taken = run(new, f"salvage_has_{table}", {"seq": row["seq"]})
    return {**row, "seq": None} if taken else row
