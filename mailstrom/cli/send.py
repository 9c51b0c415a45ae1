"""``mailstrom send``: one RFC 5322 message from a file or standard input into the spool.

Prints the id alone, and only after the message is durable. ``--wait`` then stays until every
recipient has a final status; its value is given with ``=`` only, so that a file may follow it.
"""

from __future__ import annotations

import os
import re
from datetime import datetime
from itertools import pairwise
from typing import IO, TYPE_CHECKING

import click

from mailstrom.cli.complete import stream_words
from mailstrom.cli.exits import Exit
from mailstrom.cli.output import print_json
from mailstrom.cli.spool import json_option, opened, spool_options
from mailstrom.cli.streams import Untold, telling
from mailstrom.cli.times import future, parse_span
from mailstrom.client.look import reply
from mailstrom.errors import MailstromError
from mailstrom.printable import printable
from mailstrom.storage.client import NOTIFY
from mailstrom.types import MessageStatus, OnDoubt, Priority, Status

if TYPE_CHECKING:
    from mailstrom.client import Mailstrom

_LIMIT = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(ms|s|m|h|d)?")
_STREAM = re.compile(r"[A-Za-z0-9_-]{1,64}")


def limit(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    """Float seconds of a number with or without a unit."""
    if text is None:
        return None
    match = _LIMIT.fullmatch(text)
    span = None if match is None else parse_span(text if match[2] else f"{text}s")
    if not span:
        raise click.BadParameter(
            f"{text!r} is no time limit: write seconds or a duration, as --wait=30 or --wait=5m"
        )
    return span.total_seconds()


def stream_name(ctx: click.Context, param: click.Parameter, text: str) -> str:
    """The name of a stream, of the form that ``[stream.NAME]`` has."""
    if not _STREAM.fullmatch(text):
        raise click.BadParameter(
            f"{text!r} is no name of a stream: write letters, digits, hyphens, underscores"
        )
    return text


def pairs(
    ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]
) -> dict[str, str] | None:
    """KEY=VALUE words as a dict; every value stays text."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"{text!r} is no pair: write KEY=VALUE")
        if key in found:
            raise click.BadParameter(f"the key {key!r} is given twice")
        found[key] = value
    return found or None


def words(ctx: click.Context, param: click.Parameter, text: str | None) -> str | list[str] | None:
    """``never``, or words with commas in between."""
    if text is None or text == "never":
        return text
    found = text.split(",")
    unknown = [word for word in found if word not in NOTIFY]
    if unknown:
        raise click.BadParameter(
            f"{unknown[0]!r} is none of {', '.join(sorted(NOTIFY))}; write some of them with commas"
            " in between, or never"
        )
    return found


class SendCommand(click.Command):
    """Lets ``--wait`` stand alone before a file name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Gives a bare ``--wait`` its meaning before click would take the next word for it."""
        end = args.index("--") if "--" in args else len(args)
        for word, following in pairwise(args[:end]):
            if word == "--wait" and _LIMIT.fullmatch(following) and not os.path.exists(following):
                raise click.UsageError(
                    f"there is no file {following!r}; to wait so long write --wait={following}", ctx
                )
        head = ["--wait-forever" if word == "--wait" else word for word in args[:end]]
        return super().parse_args(ctx, head + args[end:])


@click.command("send", cls=SendCommand)
@click.argument("file", type=click.File("rb"), default="-", metavar="[FILE|-]")
@click.option("-f", "--sender", metavar="SENDER", help='Envelope sender; "" is the null sender.')
@click.option("--to", "to", multiple=True, metavar="ADDR", help="Envelope recipient; repeatable.")
@click.option("--at", "at", callback=future, metavar="T", help="Not before: ISO time, or 30m.")
@click.option("--expires", callback=future, metavar="T", help="Give up at: ISO time, or 2d.")
@click.option("--tag", "tags", multiple=True, metavar="T", help="A tag; repeatable.")
@click.option(
    "--meta",
    "--metadata",
    "metadata",
    multiple=True,
    callback=pairs,
    metavar="KEY=VALUE",
    help="Text kept with the message; repeatable.",
)
@click.option("--key", metavar="K", help="Idempotency key: the same mail twice is sent once.")
@click.option(
    "--stream",
    default="default",
    callback=stream_name,
    shell_complete=stream_words,
    metavar="S",
    help="The stream whose policy it takes, and under which it is counted.",
)
@click.option(
    "--priority",
    type=click.Choice([priority.value for priority in Priority]),
    help="Order of claims at a site; else the stream's.",
)
@click.option("--require-tls", is_flag=True, help="Never send it in plaintext.")
@click.option(
    "--on-doubt",
    type=click.Choice([word.value for word in OnDoubt]),
    help="Where nobody can know whether it was delivered; else the stream's.",
)
@click.option(
    "--notify",
    callback=words,
    metavar="WORDS",
    help="Tell the sender by mail: failure,delay,success; or never.",
)
@click.option(
    "--wait", callback=limit, metavar="[=SECONDS]", help="Stay until it is final; exit 1 if failed."
)
@click.option("--wait-forever", is_flag=True, hidden=True)
@spool_options
@json_option
def command(
    file: IO[bytes],
    sender: str | None,
    to: tuple[str, ...],
    at: datetime | None,
    expires: datetime | None,
    tags: tuple[str, ...],
    metadata: dict[str, str] | None,
    key: str | None,
    stream: str,
    priority: str | None,
    require_tls: bool,
    on_doubt: str | None,
    notify: str | list[str] | None,
    wait: float | None,
    wait_forever: bool,
    config: str | None,
    store: str | None,
    as_json: bool,
) -> int:
    """Put the RFC 5322 message in FILE (default: standard input) into the spool; print its id.

    Sender and recipients are taken from the header where no option names them; Bcc is read and
    removed.
    """
    if file.isatty():
        click.echo(
            "mailstrom: reading the message from standard input; Ctrl-D ends it, Ctrl-C drops it",
            err=True,
        )
    try:
        content = file.read()
    except OSError as error:
        raise click.UsageError(
            f"the message cannot be read ({error.strerror}): name another file"
        ) from error
    if not content.strip():
        raise click.UsageError("the message is empty: name a file or pipe a message in")
    with opened(config, store, create=True) as client:
        id = client.send(
            content,
            sender=sender,
            recipients=list(to) or None,
            send_at=at,
            expires_at=expires,
            priority=priority,
            stream=stream,
            tags=tags,
            metadata=metadata,
            idempotency_key=key,
            require_tls=require_tls,
            on_doubt=on_doubt,
            notify=notify,
        )
        waiting = wait_forever or wait is not None
        with telling(f"the message is accepted as {id}"):
            if not as_json:
                click.echo(id)
            elif not waiting:
                print_json(client.status(id).to_dict())
        if waiting:
            return _await(client, id, None if wait_forever else wait, as_json)
    return Exit.OK


def _await(client: Mailstrom, id: str, limit: float | None, as_json: bool) -> int:
    accepted = f"the message is accepted as {id}"
    try:
        status = client.wait(id, limit)
    except MailstromError as error:  # SpoolBusy is a TimeoutError too, and not this one
        raise Untold(accepted, str(error)) from error
    except TimeoutError:
        if as_json:
            with telling(accepted):
                print_json(client.status(id).to_dict())
        click.echo(f"mailstrom: {id} is accepted but not final in {limit or 0:g} s", err=True)
        return Exit.TEMPORARY
    if as_json:
        with telling(accepted):
            print_json(status.to_dict())
    return Exit.OK if status.succeeded else _failed(status)


def _failed(status: MessageStatus) -> int:
    for recipient in status.recipients.values():
        if recipient.status is not Status.DELIVERED:
            words = reply(recipient.reply_code, recipient.enhanced_code, recipient.reply_text)
            text = f"{recipient.address}: {recipient.status} ({recipient.reason}) {words}"
            click.echo(f"mailstrom: {printable(text, 1000).rstrip()}", err=True)
    return Exit.FAILED
