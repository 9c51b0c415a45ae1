"""``mailstrom version``."""

from __future__ import annotations

import click

from mailstrom import __version__


@click.command("version")
def command() -> None:
    """Print the version."""
    click.echo(f"mailstrom {__version__}")
