"""The standard streams of a command, whole whatever the shell left of them.

Contract. After ``complete`` none of the three is None, and none of their descriptors is free for a
file to be opened in its place. What cannot be written to standard output (full disk, closed
descriptor) is an ``OutputFailed`` wherever it is noticed, and a reader that left a ``ReaderLeft``;
what cannot be written to standard error is dropped, since the exit code still tells. A closed
standard input is an empty one.

A change that was made must not look like one that failed, or a script makes it again: what is
printed about it is printed within ``telling``.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from mailstrom.errors import MailstromError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class ReaderLeft(OSError):
    """Whoever read standard output has seen enough; without errno, by which click would go."""


class OutputFailed(OSError):
    """Standard output cannot be written.

    Args:
        why: in the system's words.
    """

    def __init__(self, why: str) -> None:
        super().__init__(f"standard output cannot be written ({why})")


class Untold(Exception):
    """Something was done, and its result could not be told.

    Args:
        done: what was done.
        why: a sentence without its end.
    """

    def __init__(self, done: str, why: str) -> None:
        super().__init__(f"{why}; {done}")


class _Output(io.BufferedWriter):
    """Its descriptor is written by C alone.

    In a ``write`` of Python's own, Ctrl-C could come behind what was written and in front of the
    buffer's hearing of it, which would then write it again.
    """

    def write(self, data: ReadableBuffer, /) -> int:
        with _named():
            return super().write(data)

    def flush(self) -> None:
        with _named():
            super().flush()


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except (OutputFailed, ReaderLeft):
        raise
    except BrokenPipeError:
        raise ReaderLeft from None
    except OSError as error:
        raise OutputFailed(error.strerror or str(error)) from error


class _Errors(io.FileIO):
    def write(self, data: object, /) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError:
            return memoryview(data).nbytes  # type: ignore[arg-type]


def complete() -> None:
    """Replaces this process's streams. Nothing may have been printed yet."""
    if sys.stdin is None:
        empty = io.FileIO(_null(0, os.O_RDONLY), closefd=False)
        sys.stdin = io.TextIOWrapper(io.BufferedReader(empty), "utf-8")
    # Not for writing, so that what is printed to a closed descriptor fails and is not lost unseen.
    sys.stdout = _over(io.FileIO, _Output, sys.__stdout__, 1, os.O_RDONLY)
    sys.stderr = _over(_Errors, io.BufferedWriter, sys.__stderr__, 2, os.O_WRONLY)


def _over(
    raw: type[io.FileIO],
    buffered: type[io.BufferedWriter],
    stream: TextIO | None,
    number: int,
    flags: int,
) -> io.TextIOWrapper:
    """A text stream on the descriptor of ``stream``, which is None where that was closed."""
    if not isinstance(stream, io.TextIOWrapper):
        written = buffered(raw(_null(number, flags), "w", closefd=False))
        return io.TextIOWrapper(written, "utf-8", "backslashreplace")
    return io.TextIOWrapper(
        buffered(raw(stream.fileno(), "w", closefd=False)),
        stream.encoding,
        "backslashreplace" if stream.errors == "strict" else stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _null(number: int, flags: int) -> int:
    """``/dev/null`` in the place of a closed descriptor, as a child inherits it, too."""
    found = os.open(os.devnull, flags)
    if found == number:
        os.set_inheritable(found, True)
    return found


def flush() -> None:
    """Everything that was printed is written.

    Raises:
        OutputFailed, ReaderLeft: it cannot be.
    """
    sys.stdout.flush()


def give_up() -> None:
    """Nobody gets what still cannot be written; Python would complain of it at its end."""
    try:
        flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


@contextmanager
def telling(done: str) -> Iterator[None]:
    """What is printed within it tells of something done.

    Args:
        done: what to say of it where the printing, or the asking for what to print, fails.

    Raises:
        Untold: it failed.
    """
    try:
        yield
        flush()
    except (OutputFailed, MailstromError) as error:
        raise Untold(done, str(error)) from error
