"""How a line of the log looks: one JSON object, or structlog's console form on a terminal.

Contract. A form makes the octets of one line, without its end, from a level's name, a word, that
word's own fields and those bound beside them; a bound field is told where the word has no value of
its own, and fields without a value are left out. Foreign text has no control characters, no line is
longer than PIPE_BUF (long texts and lists are cut), and nothing that a field holds makes a form
fail. One loop's turn makes many lines of one word, so what can be known of a word beforehand is
kept (``JsonForm``).

The only module that imports structlog, and only where its console form is asked for: with it comes
rich, a fifth of what a process of the engine loads. Its process-wide configuration is neither read
nor written.

Must not know: the words, what their fields mean, where lines go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from mailstrom.clock import wall_ms
from mailstrom.logstream import PIPE_BUF
from mailstrom.printable import printable

TEXT_LIMIT = 500
"""Most characters of one text."""
LONGEST_LIST = 50
"""Most items of one list."""
_SHORT_LIMIT, _SHORT_LIST = 60, 8  # where a line would be too long


def _safe(value: object, text_limit: int, list_limit: int) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return printable(str(value), text_limit)  # a plain one of an enum's member
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes):
        items = list(value)
        kept = [_safe(item, text_limit, list_limit) for item in items[:list_limit]]
        return kept if len(items) <= list_limit else [*kept, f"… {len(items) - list_limit} more"]
    return printable(str(value), text_limit)


def arranged(fields: Mapping[str, Any], text_limit: int, list_limit: int) -> dict[str, object]:
    """Fields as they may be told: foreign text made safe, texts and lists no longer than so."""
    return {key: _safe(value, text_limit, list_limit) for key, value in fields.items()}


class _Clock:
    """ISO 8601 UTC with milliseconds; what is the same for a moment is kept."""

    def __init__(self) -> None:
        self._second: tuple[int, str] = (-1, "")
        self._ms: tuple[int, str] = (-1, "")

    def now(self) -> str:
        now_ms = wall_ms()
        at_ms, text = self._ms
        if at_ms != now_ms:
            second, ms = divmod(now_ms, 1000)
            at, day = self._second
            if at != second:
                day = datetime.fromtimestamp(second, UTC).isoformat()[:-6]
                self._second = (second, day)
            text = f"{day}.{ms:03d}Z"
            self._ms = (now_ms, text)
        return text


def given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without the fields that have no value: they must not hide bound ones either."""
    return {key: value for key, value in fields.items() if value is not None}


def _fitted(render: Callable[[dict[str, object]], bytes], told: Mapping[str, Any]) -> bytes:
    """The line, made safe and short enough piece by piece."""
    line = render(arranged(told, TEXT_LIMIT, LONGEST_LIST))
    if len(line) >= PIPE_BUF:
        line = render(arranged(told, _SHORT_LIMIT, _SHORT_LIST))
    return line


_encode = msgspec.json.Encoder(enc_hook=str).encode


class _Template(NamedTuple):
    """A word's line under the fields bound now.

    Args:
        bound: these.
        shared: those of them that the word may tell itself.
        head: from behind the time up to the word's own fields.
        shape: these, one after another; those without a value are left out.
    """

    bound: Mapping[str, Any]
    shared: tuple[str, ...]
    head: bytes
    shape: type[msgspec.Struct]


Form = Callable[[str, str, dict[str, Any], Mapping[str, Any]], bytes]
"""Makes a line of a level's name, a word, its fields (also without a value) and those bound."""


class JsonForm:
    """Makes a JSON line: as it is where it is short and plain ASCII, else safe piece by piece."""

    def __init__(self) -> None:
        self._clock = _Clock()
        self._templates: dict[str, _Template] = {}

    def __call__(
        self, method: str, word: str, fields: dict[str, Any], bound: Mapping[str, Any]
    ) -> bytes:
        """See ``Form``."""
        ts = self._clock.now()
        template = self._templates.get(word)
        if template is None or template.bound is not bound:
            self._templates[word] = template = _template(word, method, fields, bound)
        for key in template.shared:
            if fields[key] is None:
                fields[key] = bound[key]
        try:
            told = _encode(template.shape(**fields))
        except UnicodeEncodeError:  # a lone surrogate somewhere
            told = b"\\"
        more = b"," if len(told) > 2 else b""
        line = b'{"ts":"%b%b%b%b' % (ts.encode(), template.head, more, told[1:])
        if len(line) < PIPE_BUF and line.isascii() and b"\\" not in line and b"\x7f" not in line:
            return line
        lead = {"ts": ts, "level": method, "event": word}
        return _fitted(lambda safe: _encode(lead | safe), {**bound, **given(fields)})


def _template(
    word: str, method: str, fields: Mapping[str, Any], bound: Mapping[str, Any]
) -> _Template:
    alone = {key: value for key, value in bound.items() if key not in fields}
    lead = _encode({"level": method, "event": word, **alone})
    return _Template(
        bound=bound,
        shared=tuple(key for key in bound if key in fields),
        head=b'",' + lead[1:-1],
        shape=msgspec.defstruct(word, [(key, Any, None) for key in fields], omit_defaults=True),
    )


class ConsoleForm:
    """Makes a line in structlog's console form, which escapes nothing itself."""

    def __init__(self, colors: bool) -> None:
        import structlog

        self._clock = _Clock()
        self._render = structlog.dev.ConsoleRenderer(
            colors=colors, timestamp_key="ts", sort_keys=False
        )

    def __call__(
        self, method: str, word: str, fields: dict[str, Any], bound: Mapping[str, Any]
    ) -> bytes:
        """See ``Form``."""
        lead = {"ts": self._clock.now(), "level": method, "event": word}

        def render(safe: dict[str, object]) -> bytes:
            return str(self._render(None, method, lead | safe)).encode()

        return _fitted(render, {**bound, **given(fields)})
