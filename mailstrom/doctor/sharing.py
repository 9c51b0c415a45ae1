"""Who else has the spool open, and by which SQLite: two copies in one process lose its locks.

Pure. The hazard is told by facts: a process that has the log's index open twice has the spool open
by two copies of SQLite (each opens it once). Before 3.51.3 SQLite can corrupt a WAL that several
processes write; whoever only reads should open it so (``mode=ro``).
"""

from __future__ import annotations

from collections.abc import Iterator

from mailstrom.doctor.finding import Finding, Scalar, note, ok, plural, problem, warning
from mailstrom.storage.examined import Examined, Sharer

SAFE = (3, 51, 3)


def checks(seen: Examined) -> Iterator[Finding]:
    """All about who shares the spool."""
    quiet = 0
    for one in seen.sharers:
        found = _one(one)
        if found is None:
            quiet += 1
        else:
            yield found
    if seen.hidden:
        yield note(
            "sharing.hidden",
            plural(len(seen.hidden), "process", "es")
            + f" of other users or containers use the spool and cannot be looked at"
            f" ({', '.join(map(str, seen.hidden[:10]))})",
            "To have them looked at, too: 'sudo mailstrom doctor'.",
            processes=len(seen.hidden),
        )
    yield ok(
        "sharing.copies",
        f"SQLite {seen.version}; {plural(quiet, 'other process', 'es')} with the spool open, as it"
        " should be",
        version=seen.version,
        processes=len(seen.sharers),
    )


def _one(one: Sharer) -> Finding | None:
    who = f"process {one.pid} ({one.command})"
    versions = ", ".join(f"{path} {version}".strip() for path, version in one.libraries)
    evidence: dict[str, Scalar] = {"pid": one.pid, "command": one.command, "libraries": versions}
    if one.copies > 1:
        return problem(
            "sharing.copies",
            f"{who} has the spool open by {one.copies} copies of SQLite at once: each drops the"
            " locks of the other, and two processes may then write at the same time",
            "Stop it and let it use the spool by Mailstrom alone: 'ms.query()' for reports, never"
            " sqlite3.connect() or an ORM on this file. Then 'mailstrom store check'.",
            **evidence,
        )
    if one.ours and one.libraries:
        return note(
            "sharing.loaded",
            f"{who} has a second copy of SQLite loaded ({versions}) beside Mailstrom's; only one"
            " of them has the spool open now",
            "Well as long as it opens the spool by Mailstrom alone: 'ms.query()' for reports.",
            **evidence,
        )
    if one.ours or not one.writes:
        return None
    old = next((v for _, v in one.libraries if v and tuple(map(int, v.split("."))) < SAFE), None)
    told = f" by SQLite {old}, which can corrupt a log that several processes write" if old else ""
    return warning(
        "sharing.writer",
        f"{who} is none of Mailstrom's and has the spool open for writing{told}",
        "Let it open the spool for reading: 'sqlite3 -readonly', or"
        " sqlite3.connect('file:PATH?mode=ro', uri=True).",
        **evidence,
    )
