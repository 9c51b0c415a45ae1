"""``mailstrom serve``: the same as ``python -m mailstrom.supervisor``."""

from __future__ import annotations

import click

from mailstrom.cli.spool import spool_options


@click.command("serve")
@spool_options
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Delivery workers; else [delivery] workers.",
)
def command(config: str | None, store: str | None, workers: int | None) -> int:
    """Run the engine in the foreground until TERM.

    TERM or INT finishes what is on the wire and exits 0; a second one stops at once and exits 1.
    HUP reads the configuration again. Logs go to standard output.
    """
    from mailstrom.config import load
    from mailstrom.supervisor.run import serve

    return serve(load(config, store=store), workers)
