"""``mailstrom completion bash|zsh|fish``: the script that makes a shell complete our words."""

from __future__ import annotations

import click

VARIABLE = "_MAILSTROM_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS), metavar="|".join(SHELLS))
def command(shell: str) -> None:
    """Print the script that completes commands, options and words in a shell.

    For bash put eval "$(mailstrom completion bash)" into ~/.bashrc; for zsh the same with zsh into
    ~/.zshrc, behind compinit; for fish write it to ~/.config/fish/completions/mailstrom.fish.
    """
    from click.shell_completion import get_completion_class

    from mailstrom.cli.app import root

    found = get_completion_class(shell)
    assert found is not None
    complete = found(root, {}, "mailstrom", VARIABLE)
    # not source(): bash's would start a bash to ask its version
    click.echo(complete.source_template % complete.source_vars())
