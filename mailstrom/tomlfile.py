"""Reads a TOML file into plain tables; whatever is wrong with it is a ``ConfigError``.

The one reader for the engine's configuration, the thin client (which needs a single key of it) and
shell completion. The parser is loaded at the first need. A byte order mark, which some editors put
in front of UTF-8, is passed over. Knows no setting.

What the parser raises beyond its own error: RecursionError for thousands of nested brackets,
ValueError for an integer of thousands of digits or a date that no calendar has.
"""

from __future__ import annotations

import os
import re
from codecs import BOM_UTF8
from typing import Any

from mailstrom.errors import ConfigError
from mailstrom.printable import printable
from mailstrom.regular import beginning

LARGEST_FILE = 1 << 20  # bytes; more is not a configuration
# The parser takes time by the square of a dotted key's parts: half an hour for one as long as that.
# No host name, which a string may hold, has so many labels either.
_DOTTED = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){128}""")


def tables(file: str | os.PathLike[str], *, whole: bool = False) -> dict[str, Any]:
    """The tables and keys of a file.

    Args:
        file: its path, for the error, too.
        whole: refuse what only a file that somebody is still writing looks like: one without any
            key, and one that ends within a line, in a number that may go on.

    Raises:
        ConfigError: says what is wrong and where, and what to do.
    """
    import tomllib

    data = _read(file)
    file = _shown(file)
    try:
        text = data.removeprefix(BOM_UTF8).decode("utf-8")
        if _DOTTED.search(text) is not None:
            raise RecursionError
        found = tomllib.loads(text)
    except UnicodeDecodeError as error:
        place = error.start + (len(BOM_UTF8) if data.startswith(BOM_UTF8) else 0)
        raise ConfigError(f"{file}: not UTF-8 at byte {place}; save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not TOML: {error}") from error
    except RecursionError:
        raise ConfigError(
            f"{file}: not usable: brackets or dotted keys are nested too deeply"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{file}: not usable: {error}") from error
    if whole and not found:
        raise ConfigError(f"{file}: is empty; {_HALF}")
    if whole and data[-1:].isdigit():
        raise ConfigError(f"{file}: ends in a number without a line end; {_HALF}")
    return found


_HALF = (
    "a file that is half written looks like this: write a new one beside it and rename it over,"
    " and end its last line"
)


def _shown(file: str | os.PathLike[str]) -> str:
    """Its path as it may go to a terminal or a log: a name may hold a line end, too."""
    return printable(os.fspath(file), 2000)


def _read(file: str | os.PathLike[str]) -> bytes:
    try:
        data = beginning(file, LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(
            f"{_shown(file)}: cannot be read: {error.strerror or error};"
            f" make it a file that user id {os.geteuid()} can read"
        ) from error
    if len(data) > LARGEST_FILE:
        raise ConfigError(
            f"{_shown(file)}: longer than {LARGEST_FILE} bytes; is this the right file?"
        )
    return data
