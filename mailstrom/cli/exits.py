"""Exit codes of the command line: one table for code, tests and documentation (sysexits.h)."""

from __future__ import annotations

from enum import IntEnum

from mailstrom import errors


class Exit(IntEnum):
    """What a command's exit code says."""

    OK = 0
    FAILED = 1
    USAGE = 64
    DATA = 65
    CANNOT_CREATE = 73
    OUTPUT = 74
    TEMPORARY = 75
    CONFIG = 78


MEANINGS: dict[Exit, str] = {
    Exit.OK: "Done; also an engine that drained after TERM or INT.",
    Exit.FAILED: "Not found (the message, or a spool to ask), a check failed, the spool is damaged,"
    " not all of it could be salvaged, `doctor` has a problem or a warning to tell of,"
    " `send --wait` saw a recipient fail, no recipient matched a change, a question was answered"
    " with no, the demo did not end as planned, or the engine did not drain whole: a second TERM"
    " stopped it at once, or a process of it was lost or killed at the drain timeout.",
    Exit.USAGE: "The command line is wrong; so is SQL that is wrong, would write, or is more than"
    " one statement; an id's end that fits several; a change that nobody is there to confirm.",
    Exit.DATA: "The message cannot be sent as given, or its key was used for another message.",
    Exit.CANNOT_CREATE: "The spool cannot be created, opened or written.",
    Exit.OUTPUT: "What was to be printed could not be: standard output is full or closed, or the"
    " spool could not be asked for it. What the command was to change is changed, and standard"
    " error says what that was: do not repeat it. `send` has accepted the message, and names its"
    " id there. `serve` alone never ends so: an engine whose log cannot be written goes on.",
    Exit.TEMPORARY: "Try again: the spool is busy or full, another supervisor runs or took over, a"
    " query took too long, the outcome is unknown, or `send --wait` ran out of time.",
    Exit.CONFIG: "The configuration is unusable, the file is not a spool of this version, or a"
    " part of Mailstrom is not installed.",
}

# the first class that fits decides, so subclasses stand before their roots
_BY_ERROR: tuple[tuple[type[BaseException], Exit], ...] = (
    (errors.InvalidMessage, Exit.DATA),
    (errors.IdempotencyConflict, Exit.DATA),
    (errors.MessageNotFound, Exit.FAILED),
    (errors.ConfigError, Exit.CONFIG),
    (errors.OutcomeUnknown, Exit.TEMPORARY),
    (errors.SpoolBusy, Exit.TEMPORARY),
    (errors.SpoolFull, Exit.TEMPORARY),
    (errors.SpoolReadOnly, Exit.CANNOT_CREATE),
    (errors.SpoolCorrupt, Exit.FAILED),
    (errors.NotASpool, Exit.CONFIG),
    (errors.SchemaMismatch, Exit.CONFIG),
    (errors.SpoolError, Exit.CANNOT_CREATE),
    (errors.MailstromError, Exit.FAILED),
)


def exit_of(error: BaseException) -> Exit | None:
    """The exit code of an error that a user can cause; None for one that is our bug."""
    return next((code for cls, code in _BY_ERROR if isinstance(error, cls)), None)
