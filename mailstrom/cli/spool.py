"""Options that name a spool, and the client opened from them.

The client is bound here as ``Mailstrom`` through one function, so that commands never build it on
their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

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
    "--json", "as_json", is_flag=True, help="One JSON object a line instead of a table."
)


def spool_options(function: F) -> F:
    """Adds ``--config`` and ``--store``."""
    return config_option(store_option(function))


def client_class() -> type[Mailstrom]:
    """The client, imported at the first need."""
    from mailstrom.client import Mailstrom

    return Mailstrom


@contextmanager
def opened(config: str | None, store: str | None) -> Iterator[Mailstrom]:
    """The client for the spool that the options name; closed at the end of the block."""
    client = client_class()(store, config=config)
    try:
        yield client
    finally:
        client.close()
