"""What shell completion offers beyond fixed words; cheap, and silent about trouble.

Never opens a spool: a key press must not wait for a disk.
"""

from __future__ import annotations

import os

import click

from mailstrom.words import EVENT_WORDS


def stream_words(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of the configured streams, and ``default``."""
    from mailstrom.client.locate import configuration_file
    from mailstrom.errors import ConfigError
    from mailstrom.tomlfile import tables

    names = {"default"}
    try:
        file = configuration_file(ctx.params.get("config"), os.environ)
        if file is not None:
            table = tables(file).get("stream")
            names.update(table if isinstance(table, dict) else ())
    except ConfigError:
        pass  # the command itself will say it
    return sorted(name for name in names if name.startswith(incomplete))


def event_types(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Event words, and their parts before the dot."""
    names = {*EVENT_WORDS, *(word.partition(".")[0] for word in EVENT_WORDS)}
    return sorted(name for name in names if name.startswith(incomplete))
