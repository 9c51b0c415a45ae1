"""Whether an exception was raised by a signal handler, and says nothing of what it interrupted.

A handler runs between two bytecodes of the main thread, whatever that is doing, and what it raises
comes out there: a ``TimeoutError`` (an ``OSError``) of an alarm beside ``fdatasync`` is no failure
of the disk, a ``ValueError`` beside an insertion is no fault of the message. Whoever judges by an
exception of a call that the application's own thread makes asks here first.

Contract. Pure but for asking which handlers are installed; costs nothing until there is an error.
"""

from __future__ import annotations

import sys
from threading import get_ident, main_thread
from types import CodeType, TracebackType
from typing import Any

_MOST_NESTED = 8


def raised(error: BaseException) -> bool:
    """Whether ``error`` came through a handler that is installed now.

    Args:
        error: as it was caught.
    """
    if get_ident() != main_thread().ident:  # handlers run nowhere else
        return False
    signals: Any = sys.modules.get("signal")
    if signals is None:  # whoever installs a handler has loaded it
        return False
    handlers = [signals.getsignal(number) for number in range(1, signals.NSIG)]
    codes = {code for handler in handlers if (code := _code_of(handler))}
    trace: TracebackType | None = error.__traceback__
    while codes and trace is not None:
        if trace.tb_frame.f_code in codes:
            return True
        trace = trace.tb_next
    return False


def _code_of(handler: Any) -> CodeType | None:
    """The code of a signal's handler; None where that is no function of Python."""
    found = handler
    for _ in range(_MOST_NESTED):  # a method's function, a partial's, what an object's class has
        code = getattr(found, "__code__", None)
        if isinstance(code, CodeType):
            return code
        inner = getattr(found, "__func__", None) or getattr(found, "func", None)
        if inner is None and not isinstance(found, int | type):
            inner = vars(type(found)).get("__call__")
        if inner is None:
            return None
        found = inner
    return None
