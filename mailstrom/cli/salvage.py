"""``mailstrom store salvage``: a new spool of what is whole in a damaged one.

What counts as whole, and what a crash leaves, ``mailstrom.storage.sqlite.salvage`` says; here
is only what is printed. Foreign text is made safe before it reaches a terminal.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict

import click

from mailstrom.cli.exits import Exit
from mailstrom.cli.output import print_json
from mailstrom.cli.spool import in_a_file
from mailstrom.cli.streams import telling
from mailstrom.clock import wall_ms
from mailstrom.errors import ConfigError
from mailstrom.printable import printable

_LONGEST_LINE = 2000  # characters


def run(source: str, target: str, *, dry_run: bool, as_json: bool) -> int:
    """Salvage and say what came of it; the exit code."""
    from mailstrom.storage import canonical
    from mailstrom.storage.sqlite.salvage import salvage
    from mailstrom.storage.sqlite.salvage_report import lines

    for name in (source, target):
        if not in_a_file(name):
            raise ConfigError(f"{name}: only a spool in a file can be salvaged")
    source, target = canonical(source), canonical(target)
    salvaged = salvage(source, target, wall_ms(), dry_run=dry_run)
    made = "nothing was made" if dry_run else f"the new spool is {target}"
    with telling(made if salvaged.sound else f"{made}; not all of {source} could be salvaged"):
        if as_json:
            told = {"source": source, "target": None if dry_run else target, "dry_run": dry_run}
            print_json({**told, **asdict(salvaged)})
        else:
            for line in lines(salvaged):
                click.echo(printable(line, _LONGEST_LINE))
            if not dry_run:
                click.echo(target)
    if not (as_json or dry_run):
        click.echo(
            "put it in the place of the damaged one, and nothing in it is sent before the second:\n"
            f"mailstrom store restore {shlex.quote(target)} {shlex.quote(source)}\n"
            f"mailstrom store adopt {shlex.quote(source)}",
            err=True,
        )
    return Exit.OK if salvaged.sound else Exit.FAILED
