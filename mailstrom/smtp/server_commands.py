"""EHLO, MAIL and RCPT read against what a server offers.

Contract: an argument and the offer in, an event with its default reply out; a parameter that was
not offered is 555, an unreadable one 501 (RFC 5321 sections 4.1.1.11 and 3.3), more octets than
SIZE allows 552 (RFC 1870), UTF-8 in an address without SMTPUTF8 553 (RFC 6531 section 3.5).

Must not know: which command is allowed when, what a session has seen before.
"""

from __future__ import annotations

import re

from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.commands import BadCommand, parse_path
from mailstrom.smtp.reply import Reply, visible
from mailstrom.smtp.server_events import Hello, MailFrom, RcptTo, Refused

_HELLO_NAME = re.compile(r"[\x21-\x7e]{1,255}")
_SIZE = re.compile(r"[0-9]{1,20}")
_BODIES = {"7BIT": False, "8BITMIME": True}  # RFC 6152; the value: octets above 127 may come


def refuse(verb: str, rule: str, code: int, enhanced: str, text: str) -> Refused:
    """A line that the server refuses, with its reply."""
    return Refused(verb=verb, rule=rule, default=Reply(code, enhanced, (text,)))


def read_hello(verb: str, argument: str, offer: Capabilities) -> Hello | Refused:
    """EHLO or HELO; the default reply renders the offer (RFC 5321 section 4.1.1.1)."""
    if not _HELLO_NAME.fullmatch(argument):
        return refuse(verb, "hello-name", 501, "5.5.4", f"{verb} needs one host name")
    extended = verb == "EHLO"
    lines = offer.render() if extended else (offer.name,)
    return Hello(name=argument, extended=extended, default=Reply(250, None, lines))


def read_mail(argument: str, offer: Capabilities, *, extended: bool) -> MailFrom | Refused:
    """MAIL; ``extended``: the client said EHLO, only then extensions may be used."""
    try:
        address, params = parse_path(argument, "FROM")
    except BadCommand as error:
        return refuse("MAIL", error.rule, 501, "5.5.4", error.text)
    offered = _mail_keywords(offer) if extended and params else frozenset()
    for key in params:
        if key not in offered:
            text = f"parameter not offered: {visible(key)}"
            return refuse("MAIL", "parameter", 555, "5.5.4", text)
    given = params.get("SIZE")
    body = (params.get("BODY") or "").upper() if "BODY" in params else "7BIT"
    smtputf8 = "SMTPUTF8" in params
    bad_size = "SIZE" in params and not _SIZE.fullmatch(given or "")
    if bad_size or body not in _BODIES or params.get("SMTPUTF8") is not None:
        return refuse("MAIL", "parameter-value", 501, "5.5.4", "unreadable parameter value")
    if not smtputf8 and not address.isascii():
        return refuse("MAIL", "smtputf8", 553, "5.6.7", "a UTF-8 address needs SMTPUTF8")
    size = int(given) if given else None
    if size is not None and offer.size and size > offer.size:
        text = f"message of {size} octets exceeds the limit of {offer.size}"
        return refuse("MAIL", "oversize", 552, "5.3.4", text)
    return MailFrom(
        address=address,
        size=size,
        eightbit=_BODIES[body],
        smtputf8=smtputf8,
        params=params,
        default=Reply(250, "2.1.0", ("sender ok",)),
    )


def _mail_keywords(offer: Capabilities) -> frozenset[str]:
    keywords = {
        "SIZE": offer.size is not None,
        "BODY": offer.eightbitmime,
        "SMTPUTF8": offer.smtputf8,
        "AUTH": bool(offer.auth),  # RFC 4954 section 5; read and not trusted
    }
    return frozenset(keyword for keyword, offered in keywords.items() if offered)


def read_rcpt(argument: str, *, smtputf8: bool) -> RcptTo | Refused:
    """RCPT; ``smtputf8``: the transaction's MAIL said SMTPUTF8."""
    try:
        address, params = parse_path(argument, "TO")
    except BadCommand as error:
        return refuse("RCPT", error.rule, 501, "5.5.4", error.text)
    if params:
        text = f"parameter not offered: {visible(next(iter(params)))}"
        return refuse("RCPT", "parameter", 555, "5.5.4", text)
    if not smtputf8 and not address.isascii():
        text = "a UTF-8 address needs SMTPUTF8 in MAIL"
        return refuse("RCPT", "smtputf8", 553, "5.6.7", text)
    return RcptTo(address=address, params=params, default=Reply(250, "2.1.5", ("recipient ok",)))
