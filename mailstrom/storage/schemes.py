"""Which kind of store a name means: a path, ``sqlite:PATH``, ``memory:NAME``, or ``scheme:rest``.

A name has a scheme where its first part, before any slash, is a word followed by a colon (RFC 3986
section 3.1). So a file whose name looks like that is written ``./a:b.db`` or as an absolute path.
Ours are in a table; any other scheme is an entry point of the group ``mailstrom.stores``, looked
for when such a name is used and never before: a plain path pays for none of this.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

from mailstrom.errors import ConfigError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from mailstrom.storage.provider import StoreProvider

FILES = "sqlite"
"""The scheme of a plain path, which may also be written with it: ``sqlite:///path``."""

_OURS = {
    FILES: ("mailstrom.storage.sqlite.provider", "files"),
    "memory": ("mailstrom.storage.sqlite.provider", "memory"),
}
_NEEDED = (
    "shared", "canonical", "prepare", "open_client", "open_worker", "run_directory",
)  # fmt: skip
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_found: dict[str, StoreProvider] = {}


def scheme_of(name: str) -> str:
    """The scheme of a spool's name in lower case; ``sqlite`` for a path."""
    found = _SCHEME.match(name)
    return found[1].lower() if found else FILES


def path_of(name: str) -> str:
    """The path of a name whose scheme is ``sqlite``: with the scheme and ``//`` taken away."""
    if _SCHEME.match(name):
        return name[len(FILES) + 1 :].removeprefix("//")
    return name


def require_known(name: str) -> str:
    """The scheme of a name, once it is sure that a store of that scheme is installed.

    Imports no store.

    Raises:
        ConfigError: there is none; names those that there are.
    """
    scheme = scheme_of(name)
    if scheme not in _OURS and scheme not in _found:
        _entry_point(name, scheme)
    return scheme


def provider_of(name: str) -> StoreProvider:
    """What makes and opens the spools of a name's scheme.

    Raises:
        ConfigError: no such store is installed, or its module cannot be used.
    """
    scheme = scheme_of(name)
    provider = _found.get(scheme)
    if provider is None:
        if scheme in _OURS:
            from importlib import import_module

            module, attribute = _OURS[scheme]
            provider = cast("StoreProvider", getattr(import_module(module), attribute))
        else:
            provider = _loaded(_entry_point(name, scheme))
        _found[scheme] = provider
    return provider


def _entry_point(name: str, scheme: str) -> EntryPoint:
    from importlib.metadata import entry_points

    from mailstrom.storage.provider import ENTRY_POINTS

    every = entry_points(group=ENTRY_POINTS)
    named = {entry.value: entry for entry in every if entry.name == scheme}
    if len(named) == 1:
        return named.popitem()[1]
    if named:
        raise ConfigError(
            f"{name!r}: several installed packages bring a store named {scheme!r}"
            f" ({', '.join(sorted(named))}); remove all but one"
        )
    known = ", ".join(sorted({*_OURS, *(entry.name for entry in every)}))
    raise ConfigError(
        f"{name!r} is no path, and no store named {scheme!r} is installed (there are: {known};"
        f" more come with packages that have an entry point in the group {ENTRY_POINTS!r});"
        " write a path or sqlite:///path, and ./NAME for a file with a colon in its name"
    )


def _loaded(entry: EntryPoint) -> StoreProvider:
    try:
        provider = entry.load()
    except Exception as error:  # whatever a stranger's module does when it is imported
        raise ConfigError(
            f"the store {entry.name!r} ({entry.value}) cannot be loaded:"
            f" {type(error).__name__}: {error}; mend or remove its package"
        ) from error
    missing = [name for name in _NEEDED if not hasattr(provider, name)]
    if missing:
        raise ConfigError(
            f"the store {entry.name!r} ({entry.value}) has no {', '.join(missing)};"
            " see mailstrom.storage.provider.StoreProvider"
        )
    return cast("StoreProvider", provider)
