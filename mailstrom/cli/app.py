"""The tree of commands, and how a command's end becomes an exit code.

A command's module is imported when it is run or when its help is shown. Errors that a user can
cause end as one sentence on standard error and a code of ``exits``; anything else is a bug and
shows its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

import click

from mailstrom import __version__
from mailstrom.cli import streams
from mailstrom.cli.exits import Exit, exit_of
from mailstrom.cli.ids import Several
from mailstrom.printable import printable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# name -> module, one line of help: the list shows without importing any command
COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("mailstrom.cli.serve", "Run the engine: supervisor, delivery workers, janitor."),
    "send": ("mailstrom.cli.send", "Put a message into the spool and print its id."),
    "status": ("mailstrom.cli.status", "Show where a message and its recipients stand."),
    "show": ("mailstrom.cli.show", "Tell everything about a message, and what comes next."),
    "why": ("mailstrom.cli.why", "Tell why mail was not sent yet, and what would change it."),
    "resolve": ("mailstrom.cli.resolve", "Decide about recipients that are held in doubt."),
    "queue": ("mailstrom.cli.queue", "List, count, hold, release, retry or cancel recipients."),
    "destinations": ("mailstrom.cli.destinations", "Show sites, what waits there, and why."),
    "report": ("mailstrom.cli.report", "Sum up outcomes, domains, and how long it took."),
    "tail": ("mailstrom.cli.tail", "Print events as they come."),
    "doctor": ("mailstrom.cli.doctor", "Look at everything mail needs here; say what to do."),
    "sql": ("mailstrom.cli.sql", "Ask the public views in SQL, read only."),
    "store": ("mailstrom.cli.store", "Create, check, copy or clean a spool."),
    "user": ("mailstrom.cli.user", "Add, remove or check who may log in at the listener."),
    "config": ("mailstrom.cli.config", "Show or check the configuration."),
    "demo": ("mailstrom.cli.demo", "See the whole engine work against local servers."),
    "completion": ("mailstrom.cli.completion", "Print a script for completion in a shell."),
    "version": ("mailstrom.cli.version", "Print the version."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The object ``command`` of the command's module."""
        if cmd_name not in COMMANDS:
            return None
        command = import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names and their lines of help from the table; then the group's own options."""
        from click.shell_completion import CompletionItem

        names = [
            CompletionItem(name, help=entry[1])
            for name, entry in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in ``--help``, from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry[1]) for name, entry in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 1 not found or failed, 64 usage, 65 bad message,"
    " 73 spool cannot be created, opened or written, 74 done but not told, 75 try again,"
    " 78 configuration.",
)
@click.version_option(__version__, prog_name="mailstrom", message="%(prog)s %(version)s")
def root() -> None:
    """Mailstrom takes email, delivers it, and shows what happened."""


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
        argv: None for those of this process, whose standard streams are then made whole.
    """
    if argv is None:
        streams.complete()
    try:
        code = _run(argv)
        streams.flush()
    except streams.ReaderLeft:  # it has seen enough (``| head``), which is no failure
        streams.give_up()
        return Exit.OK
    except (streams.OutputFailed, streams.Untold) as error:
        click.echo(f"mailstrom: {printable(str(error), 2000)}", err=True)
        streams.give_up()
        return Exit.OUTPUT
    return code


def _run(argv: Sequence[str] | None) -> int:
    try:
        result = root.main(
            args=None if argv is None else list(argv), prog_name="mailstrom", standalone_mode=False
        )
    except click.UsageError as error:
        _show(error)
        return Exit.USAGE
    except click.ClickException as error:
        _show(error)
        return Exit.FAILED
    except click.Abort:
        click.echo("mailstrom: stopped; nothing further was changed", err=True)
        return Exit.FAILED
    except Exception as error:
        code = exit_of(error)
        if code is None:
            raise
        for line in str(error).splitlines() or [type(error).__name__]:
            click.echo(f"mailstrom: {printable(line, 2000)}", err=True)
        return code
    return int(result) if isinstance(result, int) else Exit.OK


_HELP: type[click.UsageError] | tuple[()] = getattr(click.exceptions, "NoArgsIsHelpError", ())
"""A group without a command shows its help by this; click before 8.2 by itself."""


def _show(error: click.ClickException) -> None:
    """What click says of an argument, which may be anybody's text, as it may go to a terminal."""
    if isinstance(error, _HELP):  # all of it is our own
        error.show()
        return
    text = error.format_message()
    # Only lists of choices have lines of their own; in all else a line end is the argument's.
    listed = isinstance(error, (click.MissingParameter, Several))
    lines = text.split("\n") if listed else [text]
    safe = "\n".join(printable(line.expandtabs(4), 2000) for line in lines)
    if isinstance(error, click.UsageError):
        click.UsageError(safe, error.ctx).show()
    else:
        click.ClickException(safe).show()
