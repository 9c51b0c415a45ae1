"""``mailstrom store init|check``."""

from __future__ import annotations

import os

import click

from mailstrom.cli.exits import Exit
from mailstrom.cli.output import print_json
from mailstrom.cli.spool import client_class, json_option, opened, spool_options


@click.group("store")
def command() -> None:
    """Create or check a spool."""


@command.command("init")
@click.argument("path", required=False)
@spool_options
@json_option
def init(path: str | None, config: str | None, store: str | None, as_json: bool) -> None:
    """Create the spool PATH; one that is there stays as it is."""
    from mailstrom.config import load

    place = path or load(config, store=store).store
    created = not os.path.exists(place)
    client_class().create(place).close()
    if as_json:
        print_json({"store": place, "created": created})
    else:
        click.echo(place)


@command.command("check")
@click.argument("path", required=False)
@spool_options
@json_option
def check(path: str | None, config: str | None, store: str | None, as_json: bool) -> int:
    """Look for damage; one line per finding, exit 1 if there is any."""
    with opened(config, path or store) as client:
        findings = client.check()
    if as_json:
        print_json({"ok": not findings, "findings": findings})
    else:
        for finding in findings or ["ok"]:
            click.echo(finding)
    return Exit.FAILED if findings else Exit.OK
