"""``mailstrom config show|check``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mailstrom.cli.exits import Exit
from mailstrom.cli.output import fold, print_json, print_table, terminal
from mailstrom.cli.spool import json_option, spool_options
from mailstrom.printable import printable

if TYPE_CHECKING:
    from mailstrom.config.listing import Setting

COLUMNS = ("key", "origin", "value")


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

    effective = load(file or config, store=store)
    settings = describe(effective)
    if as_json:
        for setting in settings:
            print_json(setting.to_dict())
    elif terminal():
        _tell(settings, effective.origin)
    else:
        print_table(COLUMNS, [(one.key, one.origin, one.value) for one in settings])


def _tell(settings: list[Setting], file: str | None) -> None:
    """For a person: the file is named once, and a path of any length is never broken."""
    if file is not None:
        click.echo(f"file: {printable(file, 2000)}")
    rows = [
        (one.key, "file" if one.origin == file else one.origin, printable(one.value, 2000))
        for one in settings
    ]
    key, origin = (max(len(row[place]) for row in (COLUMNS, *rows)) for place in (0, 1))
    for name, source, value in (COLUMNS, *rows):
        fold(f"{name:<{key}}  {source:<{origin}}  ", value)


@command.command("check")
@click.argument("file", required=False)
@spool_options
@json_option
def check(file: str | None, config: str | None, store: str | None, as_json: bool) -> int:
    """Say whether FILE, or the configuration in force, is usable. Exit 78 if not.

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
