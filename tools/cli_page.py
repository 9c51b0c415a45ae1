"""docs/reference/cli.md: every command with its help, from the tree of commands itself.

What is told is what ``--help`` tells; a fence shows the usage, a table the options. Knows click and
the tree, no spool.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

import click
from pieces import NOTE, cells

from mailstrom.cli.app import root

SPOOL = frozenset({"config", "store", "as_json"})  # told once, for all commands
FILTERS = frozenset(
    {
        "ids",
        "status",
        "reason",
        "domain",
        "recipient",
        "sender",
        "tag",
        "stream",
        "until",
        "since",
        "everything",
    }
)  # told once, for all that take every one of them


def command_line() -> Iterator[str]:
    """docs/reference/cli.md."""
    context = click.Context(root, info_name="mailstrom", **root.context_settings)
    yield from ("# Command line", "", NOTE, "", *_prose(root.help))
    yield (
        "What every command of a spool takes: `--store SPOOL` and `--config FILE` say which (else"
        " `MAILSTROM_STORE` and `MAILSTROM_CONFIG`, then the [configuration](configuration.md))."
        " `--json` prints one object a line instead of a table; times are ISO 8601, UTC. Where a"
        " time is asked for, a duration will do: `90s`, `30m`, `4h`, `2d`. Tables fit the terminal;"
        " where standard output is none they are never cut, and nothing is coloured. What remote"
        " servers said is shown with control characters escaped. See [exit codes](exit-codes.md)."
    )
    yield ""
    yield (
        "Message ids may be written by their end: at least six characters that only one id ends"
        " with. If several do, they are named and nothing happens (exit 64)."
    )
    yield ""
    for name in root.list_commands(context):
        command = root.get_command(context, name)
        assert command is not None
        yield from _command(context, name, command, "##")


def _command(
    parent: click.Context, name: str, command: click.Command, heading: str
) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield from (f"{heading} `{context.command_path}`", "", "```text", usage, "```", "")
    yield from _prose(command.help)
    filtered = _filtered(command)
    yield from _options(command, SPOOL | FILTERS if filtered else SPOOL)
    if filtered:
        yield from ("And the [filters](#mailstrom-queue).", "")
    if isinstance(command, click.Group):
        inner_commands = [command.get_command(context, n) for n in command.list_commands(context)]
        taking = [found for found in inner_commands if found is not None and _filtered(found)]
        if taking:
            rest = frozenset(p.name for p in taking[0].params) - FILTERS
            yield from _options(taking[0], rest)
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            yield from _command(context, inner, found, heading + "#")


def _prose(text: str | None) -> Iterator[str]:
    cleaned = re.sub(r"``([^`]+)``", r"`\1`", text or "").replace("\b\n", "").strip()
    for paragraph in re.split(r"\n\s*\n", cleaned):
        yield from (" ".join(paragraph.split()), "")


def _filtered(command: click.Command) -> bool:
    return {parameter.name for parameter in command.params} >= FILTERS


def _options(command: click.Command, told: Collection[str | None]) -> Iterator[str]:
    """The table of a command's options but those told elsewhere."""
    rows = []
    for parameter in command.params:
        if not isinstance(parameter, click.Option) or parameter.hidden:
            continue
        if parameter.name in told:
            continue
        words = ", ".join(f"`{word}`" for word in (*parameter.opts, *parameter.secondary_opts))
        value = "" if parameter.is_flag else _value(parameter)
        rows.append(cells(words + value, _meaning(parameter)))
    if rows:
        yield from (cells("option", "meaning"), cells("---", "---"), *rows, "")


def _value(parameter: click.Option) -> str:
    if isinstance(parameter.type, click.Choice) and parameter.metavar is None:
        return " " + ", ".join(f"`{choice}`" for choice in parameter.type.choices)
    metavar = parameter.metavar or parameter.type.name.upper()
    return f" `{metavar}`"


def _meaning(parameter: click.Option) -> str:
    text = " ".join((parameter.help or "").split())
    if parameter.multiple and "repeatable" not in text:
        text = f"{text} Repeatable.".strip()
    if parameter.show_default and parameter.default is not None:
        text += f" Default: `{parameter.default}`."
    return text
