"""The write-ahead log: does it stay short, and who keeps it from being emptied, or from growing?

Pure. A reader that stays keeps every checkpoint from going past what it sees; it is named before
the log is long. At its limit accepting and claiming stop.
"""

from __future__ import annotations

from collections.abc import Iterator

from mailstrom.doctor.finding import Finding, Scalar, note, ok, problem, size, span, warning
from mailstrom.storage.examined import Examined, LogFacts

_END_IT = (
    "End that process's read transaction, or the process ('kill PID'): a report left open, a"
    " database browser, a shell with BEGIN."
)


def checks(seen: Examined) -> Iterator[Finding]:
    """All about the log."""
    log = seen.log
    if log is None:
        if seen.trouble is None:
            yield ok("log.length", "no write-ahead log: nothing was written since the last close")
        return
    yield _length(log)
    for one in log.readers:
        if log.writer is not None and f"process {one.pid} (" in log.writer:
            continue  # who writes reads, too
        behind = f", {one.behind_frames:,} pages behind its end" if one.behind_frames else ""
        yield note(
            "log.reader",
            f"process {one.pid} ({one.command}) has kept a read transaction open for"
            f" {span(one.looked_s * 1000)} or more{behind}: until it ends the log can only grow",
            "A report or a backup ends by itself. If this one does not: " + _END_IT[0].lower()
            + _END_IT[1:].replace("PID", str(one.pid)),
            pid=one.pid,
            command=one.command,
        )  # fmt: skip
    if log.writer is not None:
        text, _, rest = log.writer.partition(": ")
        yield problem(
            "log.writer",
            f"{text}: {rest.partition(';')[0]}" if rest else text,
            "Let it end its transaction; if it does not, end the process.",
        )


def _length(log: LogFacts) -> Finding:
    length, limit = size(log.size), size(log.limit_bytes)
    evidence: dict[str, Scalar] = {
        "bytes": log.size,
        "alarm_bytes": log.alarm_bytes,
        "limit_bytes": log.limit_bytes,
        "frames": log.frames,
        "moved": log.moved,
    }
    if log.size >= log.limit_bytes:
        who = log.pinned or "nobody is seen to keep it: the next 'send' or the engine empties it"
        return problem(
            "log.length",
            f"the write-ahead log has {length} and its limit is {limit}: nothing is accepted or"
            f" claimed; {who}",
            _END_IT if log.pinned else "Start the engine ('mailstrom serve'), or send once.",
            **evidence,
        )
    if log.pinned is not None:
        return warning("log.length", log.pinned.partition(": end its")[0], _END_IT, **evidence)
    if log.size >= log.alarm_bytes:
        return note(
            "log.length",
            f"the write-ahead log has {length} (alarm {size(log.alarm_bytes)}, limit {limit});"
            " nobody keeps it from being emptied",
            "A running engine cuts it back by itself; if none runs: 'mailstrom serve'.",
            **evidence,
        )
    told = f"the write-ahead log has {length}; the alarm comes at {size(log.alarm_bytes)}"
    if log.frames and log.moved is not None:
        told += f"; {log.moved:,} of {log.frames:,} pages are in the database already"
    return ok("log.length", told, **evidence)
