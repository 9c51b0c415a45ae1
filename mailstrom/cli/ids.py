"""Message ids as a person writes them: whole, or a unique end of at least six characters.

Ids begin with the time, so that neighbours look alike in front; their ends differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from mailstrom.errors import MessageNotFound

if TYPE_CHECKING:
    from mailstrom.client import Mailstrom

WHOLE = 36  # characters of an id
LEAST = 6  # characters of an end
LISTED = 10  # candidates that an ambiguity names

# an id that is there as it was written goes before ids that end so
ENDING = (
    "select id from messages where id = ?1"
    " union all select id from messages where length(id) > length(?1)"
    " and substr(id, -length(?1)) = ?1 and not exists (select 1 from messages where id = ?1)"
    " limit ?2"
)


class Several(click.UsageError):
    """What was named may be one of several.

    Args:
        text: what is wrong and what to write; a sentence of one line.
        names: what it may be, shown a line each.
    """

    def __init__(self, text: str, names: Sequence[str]) -> None:
        super().__init__("\n".join([text, *(f"  {name}" for name in names)]))


def full_id(client: Mailstrom, text: str) -> str:
    """The id that a text stands for.

    Raises:
        MessageNotFound: no message has it, or ends so.
        Several: more than one do.
    """
    if len(text) >= WHOLE:
        return text  # the client says whether there is one
    if not text or not text.isprintable() or not text.isascii():
        raise MessageNotFound(f"no message {text!r} in {client.path}")
    found = [row.id for row in client.query(ENDING, (text, LISTED + 1))]
    if found and found[0] == text:
        return text
    if len(text) < LEAST:
        raise MessageNotFound(
            f"no message {text!r} in {client.path}; an id's end has at least {LEAST} characters"
        )
    if not found:
        raise MessageNotFound(f"no message whose id ends in {text!r} in {client.path}")
    if len(found) > 1:
        more = ["..."] if len(found) > LISTED else []
        raise Several(
            f"{text!r} is the end of several ids; write more of it:",
            [*(str(id) for id in found[:LISTED]), *more],
        )
    return str(found[0])


def full_ids(client: Mailstrom, texts: Sequence[str]) -> tuple[str, ...]:
    """As ``full_id`` for each, without repetition."""
    return tuple(dict.fromkeys(full_id(client, text) for text in texts))
