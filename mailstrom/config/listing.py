"""The effective configuration as rows: to show, and to see and keep what a reload cannot change."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

from msgspec.structs import replace

from mailstrom.config import schema
from mailstrom.config.durations import duration
from mailstrom.config.settings import Config, Table

_Table = TypeVar("_Table", bound=Table)


class Setting(NamedTuple):
    """One key with its effective value.

    Args:
        key: dotted, as ``delivery.port``.
        value: as TOML has it; empty where nothing is set.
        origin: file name, environment variable, option, or ``default``.
        plain: the value for JSON: null, true, a number (sizes are bytes), a list; durations and
            paths are text.
    """

    key: str
    value: str
    origin: str
    plain: object

    def to_dict(self) -> dict[str, object]:
        """Key, plain value and origin, for JSON."""
        return {"key": self.key, "value": self.plain, "origin": self.origin}


def describe(config: Config) -> list[Setting]:
    """Every key of ``config`` in the order of the documentation; secrets are only file names."""
    return [
        Setting(
            key, schema.toml(value, unit), config.sources.get(key, "default"), _plain(value, unit)
        )
        for key, value, unit in _rows(config, "")
    ]


def restart_needed(running: Config, wanted: Config) -> list[str]:
    """The keys that are read at the start only and differ, dotted, in the documentation's order."""
    before = dict(_restarting(running, ""))
    return [key for key, value in _restarting(wanted, "") if before.get(key) != value]


def with_start_kept(running: _Table, wanted: _Table) -> _Table:
    """What is wanted, but for keys that are read at the start only: those as they are running.

    The sources of a whole configuration are those of the values that it has then.
    """
    kept: dict[str, Any] = {}
    if isinstance(running, Config) and isinstance(wanted, Config):
        at_start = {key for key, _ in _restarting(wanted, "")}
        kept["sources"] = {
            **{key: origin for key, origin in wanted.sources.items() if key not in at_start},
            **{key: origin for key, origin in running.sources.items() if key in at_start},
        }
    for key in schema.keys(type(wanted)):
        before, value = getattr(running, key.name), getattr(wanted, key.name)
        if isinstance(value, Table):
            kept[key.name] = with_start_kept(before, value)
        elif key.restart:
            kept[key.name] = before
    return replace(wanted, **kept)


def _restarting(table: Table, prefix: str) -> Iterator[tuple[str, object]]:
    for key in schema.keys(type(table)):
        value = getattr(table, key.name)
        if isinstance(value, Table):
            yield from _restarting(value, f"{prefix}{key.name}.")
        elif key.restart:
            yield f"{prefix}{key.name}", value


def _plain(value: object, unit: str | None) -> object:
    if isinstance(value, tuple | list):
        return [_plain(item, unit) for item in value]
    if unit == "duration" and isinstance(value, int | float):
        return duration(value)
    return str(value) if isinstance(value, str) else value  # a plain str of an enum's member


def _rows(table: Table, prefix: str) -> Iterator[tuple[str, object, str | None]]:
    for key in schema.keys(type(table)):
        value = getattr(table, key.name)
        dotted = f"{prefix}{key.name}"
        if isinstance(value, Table):
            yield from _rows(value, f"{dotted}.")
        elif isinstance(value, dict):
            for name, inner in value.items():
                yield from _rows(inner, f"{dotted}.{name}.")
        else:
            yield dotted, value, key.unit
