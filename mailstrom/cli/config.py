"""``mailstrom config show|check``."""

from __future__ import annotations

import click

from mailstrom.cli.exits import Exit
from mailstrom.cli.output import print_json, print_table
from mailstrom.cli.spool import json_option, spool_options


@click.group("config")
def command() -> None:
    """Show or check the configuration."""


@command.command("show")
@click.argument("file", required=False)
@spool_options
@json_option
def show(file: str | None, config: str | None, store: str | None, as_json: bool) -> None:
    """Every setting in force, and where it came from."""
    from mailstrom.config import describe, load

    settings = describe(load(file or config, store=store))
    if as_json:
        for setting in settings:
            print_json(setting._asdict())
    else:
        print_table(("key", "value", "origin"), settings)


@command.command("check")
@click.argument("file", required=False)
@spool_options
def check(file: str | None, config: str | None, store: str | None) -> int:
    """Say whether FILE, or the configuration in force, is usable; exit 78 if not."""
    from mailstrom.config import load

    effective = load(file or config, store=store)
    click.echo(f"{effective.origin or 'no configuration file'}: ok")
    return Exit.OK
