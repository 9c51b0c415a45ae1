"""The spool: is it there, may this user open it, is it sound, is there room?

Pure. What the modes of its files should be: 0600 in a directory of 0700, or, where several users
share it by a setgid directory, 0660; nobody else may read mail or forge it.
"""

from __future__ import annotations

import shlex
import stat
from collections.abc import Iterator

from mailstrom.doctor.finding import Finding, Scalar, note, ok, plural, problem, size, warning
from mailstrom.storage.examined import Examined, FileFacts, Trouble, TroubleKind
from mailstrom.storage.facts import ROOM_BYTES

LITTLE_ROOM_BYTES = 256 << 20
LITTLE_ROOM_SHARE = 0.02
FEW_FILES = 1_000
_SHOWN = 5
_OTHERS = stat.S_IROTH | stat.S_IWOTH


def checks(seen: Examined) -> Iterator[Finding]:
    """All about the spool's files and rows."""
    yield _found(seen)
    yield from _schema_and_mark(seen)
    yield from _soundness(seen)
    yield from _poison(seen)
    yield from _directory(seen)
    yield from _room(seen)
    if seen.trouble is None or seen.trouble.kind is not TroubleKind.NOT_A_SPOOL:
        yield from _names(seen)  # a file of another kind, named by mistake, is as its owner has it
        yield from _modes(seen)


def _found(seen: Examined) -> Finding:
    trouble, place = seen.trouble, shlex.quote(seen.path)
    if trouble is None:
        facts = seen.files["database"]
        return ok(
            "spool.found",
            f"found at {seen.path}, {size(facts.size)}, and readable",
            bytes=facts.size,
        )
    check, advice = _TROUBLES[trouble.kind]
    return problem(check, _told(trouble, seen), advice.format(path=place), kind=trouble.kind)


_TROUBLES: dict[TroubleKind, tuple[str, str]] = {
    TroubleKind.MISSING: (
        "spool.found",
        "If the path is right, create it: 'mailstrom store init {path}'. If it is not, name the"
        " spool with --store, MAILSTROM_STORE or 'store' in the configuration.",
    ),
    TroubleKind.NOT_A_SPOOL: (
        "spool.kind",
        "Name the right file with --store, MAILSTROM_STORE or 'store' in the configuration; nothing"
        " was changed in this one.",
    ),
    TroubleKind.SCHEMA: (
        "spool.schema",
        "Run the same version of Mailstrom everywhere: 'mailstrom version' in each environment.",
    ),
    TroubleKind.CORRUPT: (
        "spool.sound",
        "Stop the engine, then 'mailstrom store restore COPY {path}'; without a copy"
        " 'mailstrom store salvage {path} NEW' gets out what is whole.",
    ),
    TroubleKind.BUSY: (
        "spool.busy",
        "Try again in a moment. If it stays so, see what the machine and its disk are doing"
        " ('mailstrom doctor --no-network' is quicker to repeat).",
    ),
    TroubleKind.DENIED: (
        "spool.readable",
        "Run this as the spool's owner or as root: 'sudo mailstrom doctor', or give this user"
        " access to the directory and the spool's files.",
    ),
    TroubleKind.OTHER: (
        "spool.readable",
        "What stands before says what the system answered; 'mailstrom store check {path}' asks"
        " again.",
    ),
}


def _told(trouble: Trouble, seen: Examined) -> str:
    if trouble.kind is TroubleKind.MISSING:
        empty = seen.files["database"].error is None
        return f"there is no spool at {seen.path}{', but an empty file' if empty else ''}"
    if trouble.kind is TroubleKind.DENIED:
        return f"{seen.path}: this user may not read the spool"
    if trouble.kind is TroubleKind.CORRUPT:
        return trouble.text.partition("; ")[0]  # the rest is what the advice says
    return trouble.text


def _schema_and_mark(seen: Examined) -> Iterator[Finding]:
    rows = seen.contents
    if rows is None:
        return
    yield ok("spool.schema", f"schema {rows.schema}, as this Mailstrom writes it")
    if rows.copied_ms is not None:
        waiting = rows.unsent
        yield warning(
            "spool.copy",
            f"this spool is a copy of {rows.copied_from or 'another one'}: nothing in it is sent"
            f" ({plural(waiting, 'recipient')} waiting)",
            "If the spool it was copied from is gone, 'mailstrom store adopt' lets an engine"
            " deliver. If that one still runs, leave this as it is: its mail would go twice.",
            waiting=waiting,
        )


def _soundness(seen: Examined) -> Iterator[Finding]:
    check = seen.check
    if check is None:
        return
    for sentence in check.findings[:_SHOWN]:
        text, _, remedy = sentence.rpartition(": ")
        if not text:
            text, remedy = sentence, ""
        yield problem("spool.sound", text, f"{remedy[:1].upper()}{remedy[1:]}.")
    if len(check.findings) > _SHOWN:
        yield problem(
            "spool.sound",
            f"and {len(check.findings) - _SHOWN:,} more broken invariants",
            f"'mailstrom store check {shlex.quote(seen.path)}' lists all of them.",
            findings=len(check.findings),
        )
    if check.left:
        yield note(
            "spool.checked",
            f"the spool is large: {check.asked - check.left} of {check.asked} questions of"
            " 'store check' were answered in the time there was",
            f"'mailstrom store check {shlex.quote(seen.path)}' asks all of them, while the engine"
            " runs.",
            left=check.left,
        )
    elif not check.findings:
        yield ok("spool.sound", f"its invariants hold ({check.asked} questions asked)")


def _poison(seen: Examined) -> Iterator[Finding]:
    for sentence in seen.poisoned:
        text, _, remedy = sentence.partition(", and is not repaired: ")
        if not remedy:
            text, _, remedy = sentence.rpartition(": ")
        yield problem(
            "spool.disk",
            text,
            f"Look at the disk and the kernel's log ('dmesg'). What keeps the repair: {remedy}.",
        )


def _directory(seen: Examined) -> Iterator[Finding]:
    """Where nobody has the spool open it may be missing: who opens it next makes it."""
    run = seen.files["run"]
    users = [one.pid for one in seen.sharers if one.ours and one.writes]
    if run.error is None or not users or seen.trouble is not None:
        return
    yield problem(
        "spool.directory",
        f"{run.path}: {run.error}. Lock files and signs of disk errors are kept there, and"
        " who has the spool open acknowledges nothing without it",
        "Let nothing clean up there. An engine that runs makes it again within seconds; else"
        f" 'mailstrom store init {shlex.quote(seen.path)}' does, and leaves the spool as it is.",
        processes=len(users),
    )


def _names(seen: Examined) -> Iterator[Finding]:
    if seen.named is not None:
        yield problem(
            "spool.name",
            seen.named,
            "Delete the name that it should not have, while nobody has the spool open.",
        )


def _room(seen: Examined) -> Iterator[Finding]:
    room = seen.room
    if room is None:
        return
    if room.network is not None:
        yield problem(
            "spool.local",
            room.network,
            "Stop everything, 'mailstrom store backup' to a local disk, adopt that copy and name it"
            " as the store.",
        )
    share = room.free_bytes / room.total_bytes if room.total_bytes else 1.0
    told = f"{size(room.free_bytes)} ({share:.0%}) are free on the spool's disk"
    where = shlex.quote(seen.files["directory"].path)
    evidence: dict[str, Scalar] = {"free_bytes": room.free_bytes, "total_bytes": room.total_bytes}
    if room.free_bytes < ROOM_BYTES:
        yield problem(
            "spool.room",
            f"{told}: with less than {size(ROOM_BYTES)} nothing is claimed",
            f"Free some space ('df {where}'); 'mailstrom store purge --older-than 1d' deletes"
            " finished mail sooner.",
            **evidence,
        )
    elif room.free_bytes < LITTLE_ROOM_BYTES or (
        share < LITTLE_ROOM_SHARE and room.free_bytes < 10 * LITTLE_ROOM_BYTES
    ):
        yield warning(
            "spool.room",
            told,
            f"Free some space before accepting stops ('df {where}'); 'mailstrom store purge"
            " --older-than 1d' deletes finished mail sooner.",
            **evidence,
        )
    else:
        yield ok("spool.room", told, **evidence)
    if room.free_files is not None and room.free_files < FEW_FILES:
        yield warning(
            "spool.inodes",
            f"only {room.free_files:,} more files can be made on the spool's disk",
            f"Delete files there ('df -i {where}'): lock files could not be made.",
            free_files=room.free_files,
        )


def _modes(seen: Examined) -> Iterator[Finding]:
    files = {name: one for name, one in seen.files.items() if one.error is None}
    database, folder = files.get("database"), files.get("directory")
    if database is None or folder is None:
        return
    shared = bool(folder.mode & stat.S_ISGID)
    others = [one for name, one in files.items() if name != "directory" and one.mode & _OTHERS]
    if folder.mode & stat.S_IWOTH and not folder.mode & stat.S_ISVTX:
        others.append(folder)
    bad = bool(others)
    if others:
        change = any(one.mode & stat.S_IWOTH for one in others)
        told = ", ".join(f"{one.path} (mode {_octal(one)})" for one in others)
        yield warning(
            "spool.modes",
            f"every user of this machine may {'read or change' if change else 'read'} {told}",
            f"chmod o-rwx {' '.join(shlex.quote(one.path) for one in others)}",
            files=len(others),
        )
    for name in ("log", "index", "run"):
        other = files.get(name)
        if other is not None and not shared and other.uid != database.uid:
            bad = True
            yield warning(
                "spool.owner",
                f"{other.path} belongs to user id {other.uid}, the spool to {database.uid}: the"
                " engine may not be able to write",
                f"Stop what uses it, then: chown {database.uid} {shlex.quote(other.path)}",
                uid=other.uid,
            )
    if database.readable and not database.writable and seen.trouble is None:
        yield note(
            "spool.writable",
            "this user may read the spool and not write it: it cannot send mail or run the engine",
            f"Nothing to do if that is meant so; the owner's user id is {database.uid}.",
            uid=database.uid,
        )
    if not bad:
        whom = "its group, by the setgid directory" if shared else "its owner"
        yield ok("spool.modes", f"its files are open to {whom} alone (mode {_octal(database)})")


def _octal(one: FileFacts) -> str:
    return f"{stat.S_IMODE(one.mode):04o}"
