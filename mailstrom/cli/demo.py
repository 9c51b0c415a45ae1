"""``mailstrom demo``: the whole engine against local servers, with a live display."""

from __future__ import annotations

import click


@click.command("demo")
@click.option(
    "-n",
    "messages",
    type=click.IntRange(1, 100_000),
    default=200,
    show_default=True,
    metavar="N",
    help="How many messages.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--keep", is_flag=True, help="Leave spool, configuration and log behind.")
def command(messages: int, as_json: bool, keep: bool) -> int:
    """Send N messages through a real supervisor and two workers to local servers.

    Needs no network and no root; everything lives in a temporary directory. Exits 1 unless every
    message is accounted for and ended as planned.
    """
    from mailstrom.demo.run import demo

    return demo(messages, as_json, keep=keep)
