"""Exit codes that callers of sendmail know (sysexits.h), and the one an error ends with.

0 is said only once the message is durable. Whatever may go away by itself is 75, so that a caller
that keeps mail tries again; what a person has to mend first is told apart.
"""

from __future__ import annotations

import sys

from mailstrom import errors
from mailstrom.printable import printable

OK = 0
USAGE = 64
DATA = 65
OUTPUT = 74
TEMPORARY = 75
PERMISSION = 77
CONFIG = 78

# the first class that fits decides, so subclasses stand before their roots
_BY_ERROR: tuple[tuple[type[BaseException], int], ...] = (
    (errors.InvalidMessage, DATA),
    (errors.IdempotencyConflict, DATA),
    (errors.MessageNotFound, DATA),
    (errors.ConfigError, CONFIG),
    (errors.NotASpool, CONFIG),
    (errors.SchemaMismatch, CONFIG),
    (errors.SpoolReadOnly, PERMISSION),
    (PermissionError, PERMISSION),
)


class Refusal(Exception):
    """The end of a run that did nothing.

    Args:
        code: to exit with.
        sentence: what is wrong, and what to do.
    """

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


def code_of(error: BaseException) -> int:
    """The exit code of an error."""
    if isinstance(error, Refusal):
        return error.code
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), TEMPORARY)


def tell(sentence: str) -> None:
    """One line on standard error, where the caller has one and takes it."""
    if sys.stderr is None:  # print would take standard output instead
        return
    try:
        print(printable(sentence, 1000), file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = None  # else its second failure, at the end, would be the exit code
