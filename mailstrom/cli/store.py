"""``mailstrom store init|check``."""

from __future__ import annotations

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
def init(path: str | None, config: str | None, store: str | None) -> None:
    """Create the spool PATH; one that is there stays as it is."""
    from mailstrom.config import load

    place = path or load(config, store=store).store
    client_class().create(place).close()
    click.echo(place)


@command.command("check")
@click.argument("path", required=False)
@spool_options
@json_option
def check(path: str | None, config: str | None, store: str | None, as_json: bool) -> int:
    """Look for damage; one line per finding, exit 1 if there is any."""
    with opened(config, path or store) as client:
        findings = client.check()
    for finding in findings:
        if as_json:
            print_json({"finding": finding})
        else:
            click.echo(finding)
    if not findings and not as_json:
        click.echo("ok")
    return Exit.FAILED if findings else Exit.OK
