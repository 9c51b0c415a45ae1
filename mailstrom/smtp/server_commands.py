"""EHLO, MAIL and RCPT read against what a server offers.

Contract: an argument and the offer in, an event with its default reply out; what is no path is 501,
UTF-8 in an address without SMTPUTF8 553 (RFC 6531 section 3.5). Parameters are
``server_parameters``'.

Must not know: which command is allowed when, what a session has seen before.
"""

from __future__ import annotations

import re

from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.commands import BadCommand, parse_path
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.server_events import Hello, MailFrom, RcptTo, Refused, refuse
from mailstrom.smtp.server_parameters import (
    Clock,
    Fields,
    read_mail_parameters,
    read_rcpt_parameters,
)

_HELLO_NAME = re.compile(r"[\x21-\x7e]{1,255}")
_SENDER_OK = Reply(250, "2.1.0", ("sender ok",))
_RECIPIENT_OK = Reply(250, "2.1.5", ("recipient ok",))
NOTHING_OFFERED = Capabilities()
"""To a client that said HELO."""


def read_hello(verb: str, argument: str, lines: tuple[str, ...]) -> Hello | Refused:
    """EHLO or HELO.

    Args:
        verb: which of them.
        argument: what stands behind it.
        lines: the reply's: the server's name, to EHLO what it offers (RFC 5321 section 4.1.1.1).
    """
    if not _HELLO_NAME.fullmatch(argument):
        return refuse(verb, "hello-name", 501, "5.5.4", f"{verb} needs one host name")
    return Hello(name=argument, extended=verb == "EHLO", default=Reply(250, None, lines))


def read_mail(
    argument: str, offer: Capabilities, clock: Clock | None = None, *, bare: bool = False
) -> MailFrom | Refused:
    """MAIL.

    Args:
        argument: what stands behind the verb.
        offer: what may be used: ``NOTHING_OFFERED`` where the client said HELO.
        clock: the time in seconds since 1970.
        bare: a local part alone is an address.
    """
    try:
        address, params = parse_path(argument, "FROM", bare=bare)
    except BadCommand as error:
        return refuse("MAIL", error.rule, 501, "5.5.4", error.text)
    if not params and address.isascii():
        return MailFrom(address=address, default=_SENDER_OK)
    fields: Fields | Refused = read_mail_parameters(params, offer, clock)
    if isinstance(fields, Refused):
        return fields
    if not address.isascii() and not fields.get("smtputf8"):
        return refuse("MAIL", "smtputf8", 553, "5.6.7", "a UTF-8 address needs SMTPUTF8")
    return MailFrom(address=address, params=params, default=_SENDER_OK, **fields)


def read_rcpt(
    argument: str, offer: Capabilities, *, smtputf8: bool, bare: bool = False
) -> RcptTo | Refused:
    """RCPT.

    Args:
        argument: what stands behind the verb.
        offer: what may be used: ``NOTHING_OFFERED`` where the client said HELO.
        smtputf8: the transaction's MAIL said SMTPUTF8.
        bare: a local part alone is an address; ``postmaster`` is one in any case.
    """
    try:
        address, params = parse_path(argument, "TO", bare=bare)
    except BadCommand as error:
        return refuse("RCPT", error.rule, 501, "5.5.4", error.text)
    if not params and address.isascii():
        return RcptTo(address=address, default=_RECIPIENT_OK)
    fields: Fields | Refused = read_rcpt_parameters(params, offer)
    if isinstance(fields, Refused):
        return fields
    if not smtputf8 and not argument.isascii():  # in ORCPT it would need it, too (RFC 6533)
        text = "a UTF-8 address needs SMTPUTF8 in MAIL"
        return refuse("RCPT", "smtputf8", 553, "5.6.7", text)
    return RcptTo(address=address, params=params, default=_RECIPIENT_OK, **fields)
