"""``mailstrom config show|check``."""

from __future__ import annotations

import click

from mailstrom.cli.exits import Exit
from mailstrom.cli.output import print_json, print_table
from mailstrom.cli.spool import json_option, spool_options
from mailstrom.printable import printable


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

    config_in_force = load(file or config, store=store)
    if as_json:
        for setting in describe(config_in_force):
            print_json(setting.to_dict())
    else:
        rows = [setting[:3] for setting in describe(config_in_force)]
        print_table(("key", "value", "origin"), rows, fold=True)


@command.command("check")
@click.argument("file", required=False)
@spool_options
@json_option
def check(file: str | None, config: str | None, store: str | None, as_json: bool) -> int:
    """Say whether FILE, or the configuration in force, is usable; exit 78 if not.

    What is usable and still unwise, as a password file that others may read, is said in a warning.
    """
    from mailstrom.config import load, warnings
    from mailstrom.errors import ConfigError

    try:
        effective = load(file or config, store=store)
    except ConfigError as error:
        if not as_json:
            raise
        print_json({"ok": False, "errors": str(error).splitlines(), "warnings": []})
        return Exit.CONFIG
    unwise = warnings(effective)
    if as_json:
        print_json({"ok": True, "file": effective.origin, "errors": [], "warnings": unwise})
        return Exit.OK
    for sentence in unwise:
        click.echo(f"mailstrom: warning: {printable(sentence, 2000)}", err=True)
    click.echo(f"{effective.origin or 'no configuration file'}: ok")
    return Exit.OK
