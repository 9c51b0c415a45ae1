"""Options that name a spool, and the client opened from them.

The client is bound here as ``Mailstrom`` through one function, so that commands never build it on
their own. A command that only asks never makes the spool it asks: a mistyped path would look like
an empty queue.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mailstrom.errors import MailstromError
from mailstrom.reach import require_entered

if TYPE_CHECKING:
    from mailstrom.client import Mailstrom

F = TypeVar("F", bound=Callable[..., Any])

config_option = click.option(
    "--config", metavar="FILE", help="Configuration file; else MAILSTROM_CONFIG, then /etc."
)
store_option = click.option(
    "--store", metavar="SPOOL", help="The spool; else MAILSTROM_STORE, then the configuration."
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="JSON instead of a table: one object a line."
)


def spool_options(function: F) -> F:
    """Adds ``--config`` and ``--store``."""
    return config_option(store_option(function))


def client_class() -> type[Mailstrom]:
    """The client, imported at the first need."""
    from mailstrom.client import Mailstrom

    return Mailstrom


def place(config: str | None, store: str | None) -> str:
    """Absolute path of the spool that the options name; nothing is made."""
    from mailstrom.client import locate

    named = store or os.environ.get("MAILSTROM_STORE")
    if not named and locate.configuration_file(config, os.environ) is None:
        require_entered(locate.SYSTEM_FILE)
        return locate.default_store(os.environ)
    return locate.locate_store(store, config, os.environ)


def in_a_file(name: str) -> bool:
    """Whether a spool's name is a path; whether one of another scheme is there, its store knows."""
    from mailstrom.storage.schemes import FILES, scheme_of

    return scheme_of(name) == FILES


def _written(path: str) -> bool:
    """Whether there is a spool, or what is to be looked at; an empty file alone is no spool yet."""
    return os.path.exists(path) and (os.path.getsize(path) > 0 or os.path.exists(f"{path}-wal"))


def require_spool(config: str | None, store: str | None, *, create: bool = False) -> None:
    """Makes sure that the spool outlives this process, and is there already.

    Args:
        create: it need not be there.

    Raises:
        MailstromError: it is not there.
        ConfigError: the configuration file is unusable, or only one process can see the spool.
    """
    from mailstrom.storage import require_shared

    path = place(config, store)
    require_shared(path)
    if not create and in_a_file(path) and not _written(path):
        raise MailstromError(
            f"no spool at {path}; create it with 'mailstrom store init {shlex.quote(path)}'"
        )


@contextmanager
def opened(config: str | None, store: str | None, *, create: bool = False) -> Iterator[Mailstrom]:
    """The client for the spool that the options name; closed at the end of the block.

    Args:
        create: make the spool if it is missing; else that is an error.
    """
    require_spool(config, store, create=create)
    client = client_class()(store, config=config)
    try:
        yield client
    finally:
        client.close()


def say_if_copied(client: Mailstrom) -> None:
    """One sentence on standard error where nothing goes out because the spool is a copy."""
    if client.stats().copied:
        click.echo(
            "mailstrom: this spool is a copy: nothing in it is sent before 'mailstrom store adopt'",
            err=True,
        )
