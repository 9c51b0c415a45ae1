"""The effective configuration as rows, for ``mailstrom config show``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mailstrom.config import schema
from mailstrom.config.settings import Config, Table


class Setting(NamedTuple):
    """One key with its effective value.

    Args:
        key: dotted, as ``delivery.port``.
        value: as TOML has it; empty where nothing is set.
        origin: file name, environment variable, option, or ``default``.
    """

    key: str
    value: str
    origin: str


def describe(config: Config) -> list[Setting]:
    """Every key of ``config`` in the order of the documentation; secrets are only file names."""
    return [
        Setting(key, value, config.sources.get(key, "default")) for key, value in _rows(config, "")
    ]


def _rows(table: Table, prefix: str) -> Iterator[tuple[str, str]]:
    for key in schema.keys(type(table)):
        value = getattr(table, key.name)
        dotted = f"{prefix}{key.name}"
        if isinstance(value, Table):
            yield from _rows(value, f"{dotted}.")
        elif isinstance(value, dict):
            for name, inner in value.items():
                yield from _rows(inner, f"{dotted}.{name}.")
        else:
            yield dotted, schema.toml(value, key.unit)
