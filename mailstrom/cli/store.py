"""``mailstrom store init|check|backup|restore|salvage|adopt|purge``: the spool as a whole."""

from __future__ import annotations

import os
from datetime import timedelta

import click

from mailstrom.cli.change import ask, recipients
from mailstrom.cli.exits import Exit
from mailstrom.cli.output import print_json
from mailstrom.cli.spool import client_class, in_a_file, json_option, opened, spool_options
from mailstrom.cli.streams import telling
from mailstrom.cli.times import age


@click.group("store")
def command() -> None:
    """Create, check, copy and clean a spool."""


@command.command("init")
@click.argument("path", required=False)
@spool_options
@json_option
def init(path: str | None, config: str | None, store: str | None, as_json: bool) -> None:
    """Create the spool PATH; one that is there stays as it is."""
    from mailstrom.config import load
    from mailstrom.storage import require_shared
    from mailstrom.storage.schemes import path_of

    place = path or load(config, store=store).store
    require_shared(place)
    created = not os.path.exists(path_of(place)) if in_a_file(place) else None
    client_class().create(place).close()
    with telling(f"the spool is {place}"):
        if as_json:
            print_json({"store": place, "created": created})
        else:
            click.echo(place)


@command.command("check")
@click.argument("path", required=False)
@spool_options
@json_option
def check(path: str | None, config: str | None, store: str | None, as_json: bool) -> int:
    """Look for damage; one line per finding, exit 1 if there is any.

    A line that begins with 'note:' is no damage: an engine process died, and what it had claimed
    waits for the janitor; or a process keeps the write-ahead log from being emptied.
    """
    with opened(config, path or store) as client:
        findings = client.check()
        notes = client.pinned() + client.orphans()
    if as_json:
        print_json({"ok": not findings, "findings": findings, "notes": notes})
    else:
        for line in [*(findings or ["ok"]), *(f"note: {note}" for note in notes)]:
            click.echo(line)
    return Exit.FAILED if findings else Exit.OK


@command.command("backup")
@click.argument("target")
@spool_options
@json_option
def backup(target: str, config: str | None, store: str | None, as_json: bool) -> None:
    """Copy the spool to TARGET, consistent, while it is in use.

    TARGET must not exist. The copy is marked: an engine leaves what waits in it alone until
    'mailstrom store adopt', since the spool it was copied from goes on delivering.
    """
    with opened(config, store) as client:
        client.backup(target)
        source = client.path
    target = os.path.abspath(target)
    with telling(f"the copy is {target}"):
        if as_json:
            print_json({"store": source, "target": target})
        else:
            click.echo(target)


@command.command("restore")
@click.argument("copy")
@click.argument("path", required=False)
@spool_options
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def restore(
    copy: str, path: str | None, config: str | None, store: str | None, yes: bool, as_json: bool
) -> int:
    """Put COPY in the place of the spool PATH. Nobody may have that open.

    COPY stays. What was at PATH is kept beside it as PATH.replaced-TIME, with its -wal. Nothing is
    delivered from the new spool until 'mailstrom store adopt'. Interrupted, say it again.
    """
    from mailstrom.cli.restore import run

    return run(copy, path or store, config, yes=yes, as_json=as_json)


@command.command("salvage")
@click.argument("source")
@click.argument("target")
@click.option("--dry-run", is_flag=True, help="Say what would come of it, leave nothing.")
@json_option
def salvage(source: str, target: str, dry_run: bool, as_json: bool) -> int:
    """Make a sound spool TARGET of what is whole in the damaged SOURCE.

    SOURCE must be stopped, and is not changed; TARGET must not exist. Damaged messages are listed,
    and recipients that are left out. TARGET is marked as a copy: nothing is delivered from it until
    'mailstrom store adopt'. Exit 1 if anything is damaged or cannot be read.
    """
    from mailstrom.cli.salvage import run

    return run(source, target, dry_run=dry_run, as_json=as_json)


@command.command("adopt")
@click.argument("path", required=False)
@spool_options
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def adopt(path: str | None, config: str | None, store: str | None, yes: bool, as_json: bool) -> int:
    """Let an engine deliver what waits in a copy of a spool.

    'mailstrom store backup' makes copies; what 'restore' put in place, and 'salvage' made, is one,
    too. What the spool it was copied from has sent since is sent again: adopt a copy only where
    that spool is gone. Exit 1 if PATH is no copy, or was adopted before.
    """
    with opened(config, path or store) as client:
        stats = client.stats()
        adopted = False
        if stats.copied:
            if not yes:
                waiting = sum(stats.waiting.values())
                ask(
                    f"{recipients(waiting)} wait{'s' if waiting == 1 else ''} in {client.path}."
                    " What the spool it was copied from has sent since will be sent again. Adopt"
                    " it?",
                    dry_run=False,
                )
            adopted = client.adopt()
        place = client.path
    with telling(f"adopted {place}" if adopted else "nothing was changed"):
        if as_json:
            print_json({"store": place, "adopted": adopted})
        elif adopted:
            click.echo(f"adopted {place}")
    if not adopted:
        click.echo(f"mailstrom: {place} is no copy, or was adopted before", err=True)
    return Exit.OK if adopted else Exit.FAILED


@command.command("purge")
@click.argument("path", required=False)
@click.option(
    "--older-than",
    metavar="AGE",
    callback=age,
    help="Finished so long ago: 30d; else the spool's own retention.",
)
@click.option("--dry-run", is_flag=True, help="Say what would go, delete nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@spool_options
@json_option
def purge(
    path: str | None,
    older_than: timedelta | None,
    dry_run: bool,
    yes: bool,
    config: str | None,
    store: str | None,
    as_json: bool,
) -> int:
    """Delete finished messages with all about them. Events and sessions as old go, too.

    What waits is never touched. The engine does the same by itself, by the spool's retention.
    """
    from mailstrom.cli.purge import run

    return run(path or store, config, older_than, dry_run=dry_run, yes=yes, as_json=as_json)
