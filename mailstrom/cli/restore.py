"""``mailstrom store restore``: a copy put in the place of a spool that nobody uses.

The spool that is replaced may be damaged or gone, so it is never opened here; the copy is looked
at before the question and read as a whole after it. What the restore promises at each crash is
``mailstrom.storage.sqlite.restore``'s to say and to keep.
"""

from __future__ import annotations

import os
import shlex

import click

from mailstrom.cli.change import ask
from mailstrom.cli.exits import Exit
from mailstrom.cli.output import print_json
from mailstrom.cli.spool import in_a_file, place
from mailstrom.cli.streams import telling
from mailstrom.clock import wall_ms
from mailstrom.errors import ConfigError
from mailstrom.types import iso_ms


def run(copy: str, path: str | None, config: str | None, *, yes: bool, as_json: bool) -> int:
    """Look, ask, restore, say; the exit code."""
    from mailstrom.storage import canonical
    from mailstrom.storage.sqlite.restore import look, restore

    named = place(config, path)
    if not in_a_file(named):
        raise ConfigError(f"{named}: only a spool in a file can be restored from a copy")
    target = canonical(named)
    copy = os.path.abspath(copy)
    made_ms = look(copy)
    if not yes:
        made = "" if made_ms is None else f" (made {iso_ms(made_ms)})"
        ask(
            f"Put the copy {copy}{made} in the place of {target}? What is there now is kept beside"
            " it under another name.",
            dry_run=False,
        )
    kept = restore(copy, target, wall_ms())
    former = "" if kept is None else f"the former spool is {kept}"
    with telling("; ".join(part for part in (f"restored {target}", former) if part)):
        if as_json:
            print_json({"store": target, "copy": copy, "kept": kept})
        else:
            click.echo(f"restored {target}")
            if former:
                click.echo(former)
    if not as_json:
        click.echo(
            "nothing in it is sent before: mailstrom store adopt " + shlex.quote(target), err=True
        )
    return Exit.OK
