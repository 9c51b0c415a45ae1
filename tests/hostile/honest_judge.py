"""Judges mail that went through an honest server: each copy once, byte for byte as it was sent.

Contract. Pure: what was handed in, what Mailstrom says goes on the wire, and what the far end has.
``differences`` is empty where nothing is lost, doubled, changed or misaddressed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from email.parser import BytesParser
from email.policy import default

from tests.hostile.honest_letters import Letter
from tests.support.postfix import Received


def arrived(letter: Letter, received: Iterable[Received]) -> list[Received]:
    """What a far end has of a letter."""
    return [one for one in received if one.message_id == letter.message_id]


def filed(received: Iterable[Received]) -> dict[str, list[Received]]:
    """Everything a far end has, by Message-ID: looked at once, however many letters there are."""
    found: dict[str, list[Received]] = {}
    for one in received:
        found.setdefault(one.message_id, []).append(one)
    return found


def missing(letter: Letter, received: Iterable[Received]) -> Counter[str]:
    """Recipients of a letter for whom nothing is there yet."""
    there = (name for one in arrived(letter, received) for name in one.recipients)
    return Counter(letter.recipients) - Counter(there)


def differences(letter: Letter, raw: bytes, received: Iterable[Received]) -> tuple[str, ...]:
    """What is wrong with what arrived, a sentence each.

    Args:
        letter: as it was handed in, all of its recipients said to have it.
        raw: what went on the wire, by ``Mailstrom.raw``.
        received: everything the far end has, without what it adds in front.
    """
    found: list[str] = []
    copies = arrived(letter, received)
    there = Counter(name for one in copies for name in one.recipients)
    wanted = Counter(letter.recipients)
    if lost := wanted - there:
        found.append(f"lost for {_some(lost)}")
    if more := there - wanted:
        found.append(f"one more for {_some(more)}")
    found += [f"from {one.sender!r}" for one in copies if one.sender != letter.sender]
    found += [
        _changed("changed on the way", raw, one.content) for one in copies if one.content != raw
    ]
    if letter.wire is not None and raw != letter.wire:
        found.append(_changed("changed when it was accepted", letter.wire, raw))
    if letter.attached is not None and letter.attached not in map(_attached, _once(copies)):
        found.append("the attachment is another one")
    return tuple(f"{letter.message_id}: {text}" for text in dict.fromkeys(found))


def _once(copies: list[Received]) -> list[bytes]:
    return list({one.content for one in copies})


def _attached(content: bytes) -> bytes | None:
    message = BytesParser(policy=default).parsebytes(content)
    for part in message.walk():
        if part.get_content_type() == "application/octet-stream":
            payload = part.get_payload(decode=True)
            return payload if isinstance(payload, bytes) else None
    return None


def _some(names: Counter[str]) -> str:
    first = ", ".join(list(names)[:3])
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"


def _changed(what: str, wanted: bytes, seen: bytes) -> str:
    pairs = zip(wanted, seen, strict=False)
    at = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(wanted), len(seen)))
    near = slice(max(0, at - 20), at + 40)
    return f"{what} at octet {at}: {wanted[near]!r} became {seen[near]!r}"
