"""What the settings' types say about themselves: keys, units, accepted values, sentences.

Read by the loader (how to convert, what to suggest), by ``config show`` and by the generator of
the reference page, so that none of them repeats a key.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import msgspec

from mailstrom.config.durations import duration
from mailstrom.config.settings import Config, Table
from mailstrom.config.sizes import size

_LIMITS = ("ge", "le", "min_length", "max_length")

INTERNAL = frozenset({"origin", "sources"})  # attributes of Config that are no keys


class Key(NamedTuple):
    """One key of a table.

    Args:
        name: as in TOML.
        hint: its full type, with annotations.
        table: the struct type where the key is a table, else None.
        unit: ``"duration"``, ``"size"``, ``"path"`` or None.
        sentence: its documentation; empty for tables.
        default: as the struct has it; ``msgspec.NODEFAULT`` where it is computed.
        restart: whether the engine reads it at its start only, and not again on HUP.
    """

    name: str
    hint: Any
    table: type[Table] | None
    unit: str | None
    sentence: str
    default: object
    restart: bool


def _metas(hint: object) -> Iterator[msgspec.Meta]:
    if get_origin(hint) is Annotated:
        inner, *metas = get_args(hint)
        yield from (meta for meta in metas if isinstance(meta, msgspec.Meta))
        yield from _metas(inner)
    else:
        for part in get_args(hint):
            yield from _metas(part)


def _table(hint: object) -> type[Table] | None:
    if isinstance(hint, type) and issubclass(hint, Table):
        return hint
    return None


@cache
def keys(table: type[Table]) -> tuple[Key, ...]:
    """The keys of a table, in the order of the documentation."""
    hints = get_type_hints(table, include_extras=True)
    found = []
    for item in msgspec.structs.fields(table):
        if table is Config and item.name in INTERNAL:
            continue
        hint = hints[item.name]
        metas = list(_metas(hint))
        default = item.default
        if default is msgspec.NODEFAULT and item.default_factory is not msgspec.NODEFAULT:
            default = item.default_factory()
        found.append(
            Key(
                name=item.name,
                hint=hint,
                table=_table(hint),
                unit=next((m.extra["unit"] for m in metas if m.extra and "unit" in m.extra), None),
                sentence=next((m.description for m in metas if m.description), ""),
                default=default,
                restart=any(m.extra and m.extra.get("restart") for m in metas),
            )
        )
    return tuple(found)


def streams(key: Key) -> type[Table] | None:
    """The struct of ``[stream.NAME]`` where ``key`` is such a table of tables, else None."""
    return _table(get_args(key.hint)[1]) if get_origin(key.hint) is dict else None


def accepts(hint: Any, unit: str | None = None) -> str:
    """What a key takes, in words: ``"mx" or "relay"``, ``integer from 1 to 65535``."""
    return " or ".join(dict.fromkeys(_words(hint, unit, {})))


def fits_listed(hint: Any, raw: object) -> bool:
    """Whether the key takes a list of texts, and ``raw`` is one text without its brackets."""
    inner = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return isinstance(raw, str) and get_origin(inner) is tuple and get_args(inner)[0] is str


def _words(hint: Any, unit: str | None, bounds: dict[str, Any]) -> Iterator[str]:
    origin = get_origin(hint)
    if origin is Annotated:
        inner, *metas = get_args(hint)
        for meta in metas:
            limits = {limit: getattr(meta, limit, None) for limit in _LIMITS}
            bounds = bounds | {k: v for k, v in limits.items() if v is not None}
        yield from _words(inner, unit, bounds)
    elif origin in (Union, types.UnionType):
        for part in get_args(hint):
            if part is not type(None):
                yield from _words(part, unit, bounds)
    elif origin is Literal:
        yield from (f'"{value}"' for value in get_args(hint))
    elif origin is tuple:
        count = _span({"ge": bounds.get("min_length"), "le": bounds.get("max_length")}, str)
        entries = f" ({count.strip()} entries)" if count else ""
        yield f"a list of {accepts(get_args(hint)[0], unit)}{entries}"
    elif isinstance(hint, type) and issubclass(hint, StrEnum):
        yield from (f'"{member.value}"' for member in hint)
    elif unit == "duration":
        yield f"duration{_span(bounds, duration)}"
    elif unit == "size":
        yield f"bytes or size{_span(bounds, size)}"
    elif unit == "path":
        yield "path"
    else:
        words = {bool: "true or false", int: "integer", float: "number", str: "text"}[hint]
        if hint is str and bounds.get("min_length"):
            words += f" that is not empty{_most(bounds)}"
        yield words + _span(bounds, str)


def _most(bounds: dict[str, Any]) -> str:
    most = bounds.get("max_length")
    return "" if most is None else f", up to {most} characters"


def _span(bounds: dict[str, Any], show: Any) -> str:
    low, high = bounds.get("ge"), bounds.get("le")
    if low is None and high is None:
        return ""
    if high is None:
        return f" from {show(low)}"
    return f" up to {show(high)}" if low is None else f" from {show(low)} to {show(high)}"


def toml(value: object, unit: str | None = None) -> str:
    """A value as TOML has it; empty for None (TOML has no null)."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(toml(item, unit) for item in value) + "]"
    if unit == "duration" and isinstance(value, int | float):
        return f'"{duration(value)}"'
    if unit == "size" and isinstance(value, int):
        return f'"{size(value)}"'
    if isinstance(value, int | float):
        return str(value)
    return msgspec.json.encode(str(value)).decode()
