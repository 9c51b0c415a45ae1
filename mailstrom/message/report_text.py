"""The first part of a delivery report: what happened to whom, for a person.

Plain English, short: who did not get it, what the other server said in its own words, what to do.
Recipients with the same story share a paragraph; of very many the first are named, for the second
part names all. Foreign words stand indented in a paragraph of their own, on one line before they
are wrapped, made printable: they cannot pass for ours.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime

from mailstrom.message.report_facts import Fate, Original
from mailstrom.printable import printable
from mailstrom.types import Reason

MOST_STORIES = 20
MOST_NAMED = 100
"""Addresses in all paragraphs together; each paragraph names one at least."""
MOST_WORDS = 500
"""Characters of a reply."""

_WIDTH = 72
_OPENING = {
    "failed": "could not be delivered to {whom}, and will not be tried again there.",
    "delayed": "could not be delivered to {whom} yet. Nothing is lost: it is still being tried,"
    " and you need do nothing.",
    "relayed": "was handed to the next mail server for {whom}. That server does not report what"
    " becomes of it.",
    "delivered": "was delivered to {whom}.",
}
_STORIES: dict[str, tuple[str, str]] = {
    "null_mx": (
        "The domain {domain} says that it accepts no mail at all.",
        "Check the address; they can only be reached in another way.",
    ),
    "no_domain": (
        "There is no mail domain {domain}.",
        "Check the part of the address behind the @: it may be misspelt, or given up.",
    ),
    "loop": (
        "The mail would come back to this server for ever: it is itself named as the mail host of"
        " {domain}.",
        "Tell those who run this server, or the domain.",
    ),
    "policy": (
        "You asked that it go only to mail servers that prove who they are, keep it encrypted and"
        " ask the same of those behind them (REQUIRETLS). The next one does not.",
        "Send it without that demand, or tell those who run the other server.",
    ),
    "damaged": (
        "The message was damaged where it was stored on this server, so it was not sent.",
        "Please send it again.",
    ),
    "suppressed": (
        "This server sends no mail to this address.",
        "Those who run this server can say why.",
    ),
    "in_doubt": (
        "The connection was lost after the whole message had been sent, so it may have arrived.",
        "Ask whether it did before you send it again.",
    ),
}
"""What happened and what to do about a failure that is not another server's reply."""

_SMALLER = "Send it smaller: without large attachments, or with a link to them."
_ADDRESS = "Check the address: it may be misspelt, or no longer in use."
_ADVICE = (
    (("5.1.1", "5.1.3", "5.1.6", "5.1.10", "5.1.0", "5.1.2"), _ADDRESS),
    (("5.2.2",), "Their mailbox is full: try again later, or reach them in another way."),
    (("5.2.1",), "Their mailbox is switched off: reach them in another way."),
    (("5.2.3", "5.3.4"), _SMALLER),
    (("5.7.",), "A rule of their mail system refused it. Those who run that system can say more."),
)
_ELSE = "The words are those of their mail system; those who run it can say more."


def report_text(original: Original, fates: Sequence[Fate], *, subject: str, hostname: str) -> str:
    """The text, in lines that end with CRLF.

    Args:
        original: the message.
        fates: its recipients.
        subject: its subject on one printable line; empty where it has none or it may not be told.
        hostname: who reports.
    """
    lines = [f"This is the mail system of {hostname}.", ""]
    stories: dict[tuple[str, ...], list[str]] = {}
    for action in dict.fromkeys(fate.action for fate in fates):
        count = sum(fate.action == action for fate in fates)
        whom = "one recipient" if count == 1 else f"{count:,} recipients"
        lines += _wrapped("Your message " + _OPENING[action].format(whom=whom))
        lines.append("")
    for fate in fates:
        stories.setdefault(_story(original, fate), []).append(fate.address)
    room = MOST_NAMED
    for number, (story, addresses) in enumerate(stories.items()):
        if number == MOST_STORIES:
            rest = sum(map(len, list(stories.values())[number:]))
            lines += _wrapped(f"And {rest:,} more: the attached report tells of each of them.")
            lines.append("")
            break
        named = addresses[: max(1, room)]
        room -= len(named)
        lines += (f"<{printable(address, 400)}>" for address in named)
        if len(named) < len(addresses):
            lines.append(f"and {len(addresses) - len(named):,} more, named in the attached report")
        what, words, advice = story
        lines += _wrapped(what, "    ")
        if words:
            lines += _wrapped(words, "        ")
        if advice:
            lines += _wrapped(advice, "    ")
        lines.append("")
    lines.append("The message:")
    if subject:
        lines += _wrapped(f"Subject: {subject}", "    ", "        ")
    lines.append(f"    Accepted: {_time(original.arrived_ms)}")
    lines.append(f"    Number here: {printable(original.id, 100)}")
    return "".join(f"{line}\r\n" for line in lines)


def _story(original: Original, fate: Fate) -> tuple[str, str, str]:
    """What happened, the foreign words, and what to do."""
    words = _words(fate)
    host = printable(fate.host, 255) if fate.host else ""
    if fate.action in ("relayed", "delivered"):
        return (f"{host or 'The next server'} took it at {_time(fate.tried_ms)}:", words, "")
    if fate.action == "delayed":
        until = "" if fate.until_ms is None else f"It is tried until {_time(fate.until_ms)}."
        return _last_try(host, fate, words), words, until
    if fate.reason == Reason.EXPIRED:
        since, advice = _time(original.arrived_ms), "Send it again if it still matters."
        if fate.tried_ms is None and not words:
            return f"It waited here since {since}, and could not be tried in time.", "", advice
        tried = f"It was tried since {since}, in vain. "
        return tried + _last_try(host, fate, words), words, advice
    if fate.reply_code is not None and fate.reason != Reason.IN_DOUBT:
        advice = _SMALLER if fate.reason == Reason.TOO_LARGE else _advice(fate)
        return f"{host or 'Their mail server'} refused it in these words:", words, advice
    domain = printable(fate.address.rpartition("@")[2], 255)
    told = _STORIES.get(fate.reason or "")
    if told is not None and not (words and domain.startswith("[")):  # a literal is no domain
        return told[0].format(domain=domain), "", told[1]
    advice = _SMALLER if fate.reason == Reason.TOO_LARGE else ""
    where = f"{host} cannot take it" if host else "It cannot be sent there"
    return (f"{where}:" if words else f"{where}."), words, advice


def _last_try(host: str, fate: Fate, words: str) -> str:
    """How the last try ended."""
    if fate.tried_ms is None and not words:
        return "It was not tried yet."
    when = "" if fate.tried_ms is None else f" ({_time(fate.tried_ms)})"
    if fate.reply_code is not None:
        return f"The last answer of {host or 'their mail server'}{when}:"
    at = f" at {host}" if host else ""
    return (
        f"The last try{at}{when} ended so:"
        if words
        else f"The last try{at}{when} did not reach it."
    )


def _words(fate: Fate) -> str:
    """The reply as it was, or our own sentence in its place."""
    said = (fate.reply_code, fate.enhanced_code, fate.reply_text)
    text = " ".join(str(one) for one in said if one)
    if fate.reply_code is None:
        text = fate.reply_text or ""
    return printable(text, MOST_WORDS).strip()


def _advice(fate: Fate) -> str:
    code = fate.enhanced_code or ""
    for codes, advice in _ADVICE:
        if any(code == one or (one.endswith(".") and code.startswith(one)) for one in codes):
            return advice
    return _ELSE


def _wrapped(text: str, lead: str = "", further: str | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=lead,
        subsequent_indent=lead if further is None else further,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _time(ms: int | None) -> str:
    if ms is None:
        return "an unknown time"
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
