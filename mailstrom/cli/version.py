"""``mailstrom version``."""

from __future__ import annotations

import click

from mailstrom import __version__
from mailstrom.cli.output import print_json
from mailstrom.cli.spool import json_option


@click.command("version")
@json_option
def command(as_json: bool) -> None:
    """Print the version."""
    if as_json:
        print_json({"version": __version__})
    else:
        click.echo(f"mailstrom {__version__}")
