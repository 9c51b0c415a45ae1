"""The parameters of MAIL and RCPT, read against what a server offers, into typed fields.

Contract: a keyword that was not offered is 555 5.5.4 (RFC 5321 section 4.1.1.11), a value that its
document does not allow 501 5.5.4, more octets than SIZE allows 552 5.3.4. Known are SIZE (RFC
1870), BODY (6152), SMTPUTF8 (6531), AUTH (4954: kept, not trusted), RET, ENVID, NOTIFY and ORCPT
(3461, 6533), HOLDFOR and HOLDUNTIL (4865), MT-PRIORITY (6710), REQUIRETLS (8689). Each may be given
once, HOLDFOR and HOLDUNTIL only one of them. A time to be held until that is past holds nothing;
beyond what was offered it is a value that cannot be (501, RFC 4865 section 4).

``room`` says how much longer a command may be for what is offered (RFC 5321 section 4.5.3.1.4).

Must not know: which command is allowed when, what a shell does with what was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.dsn import BadValue, decode_envid, decode_orcpt, decode_xtext, read_notify
from mailstrom.smtp.reply import visible
from mailstrom.smtp.server_events import Refused, refuse

Given = Mapping[str, str | None]
Clock = Callable[[], float]

_SIZE = re.compile(r"[0-9]{1,20}")
_SECONDS = re.compile(r"[0-9]{1,9}")
_DATE_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?"
    r"(?:Z|[+-][0-9]{2}:[0-9]{2})",
    re.IGNORECASE,
)
_FRACTION = re.compile(r"\.[0-9]+")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
_PRIORITY = re.compile(r"-?[1-9]|0")
_BODIES = {"7BIT": False, "8BITMIME": True}  # the value: octets above 127 may come
_MOST_AUTH = 500


def room(offer: Capabilities) -> tuple[int, int]:
    """Octets by which a MAIL and a RCPT may be longer for what their parameters can take.

    SIZE 26, BODY 17, SMTPUTF8 10 (to RCPT, too), AUTH 500, RET and ENVID 116, HOLDUNTIL 46,
    MT-PRIORITY 15, REQUIRETLS 11; NOTIFY and ORCPT 536.
    """
    mail = 26 * (offer.size is not None) + 17 * offer.eightbitmime + 10 * offer.smtputf8
    mail += _MOST_AUTH * bool(offer.auth) + 116 * offer.dsn
    mail += 46 * (offer.future_release is not None)
    mail += 15 * (offer.mt_priority is not None) + 11 * offer.requiretls
    return mail, 10 * offer.smtputf8 + 536 * offer.dsn


class _NotOffered(Exception):
    """The keyword is none of this server's."""


Fields = dict[str, Any]
_Reader = Callable[[str, Capabilities, Fields], None]
"""Reads one value ("" for none) into the fields of the event."""


def _flag(offered: bool, value: str) -> None:
    if not offered:
        raise _NotOffered
    if value:
        raise BadValue("it takes no value")


def _size(value: str, offer: Capabilities, fields: Fields) -> None:
    if offer.size is None:
        raise _NotOffered
    if not _SIZE.fullmatch(value):
        raise BadValue("it is a number")
    fields["size"] = int(value)


def _body(value: str, offer: Capabilities, fields: Fields) -> None:
    if not offer.eightbitmime:
        raise _NotOffered
    eightbit = _BODIES.get(value.upper())
    if eightbit is None:
        raise BadValue("it is 7BIT or 8BITMIME")
    fields["eightbit"] = eightbit


def _smtputf8(value: str, offer: Capabilities, fields: Fields) -> None:
    _flag(offer.smtputf8, value)
    fields["smtputf8"] = True


def _requiretls(value: str, offer: Capabilities, fields: Fields) -> None:
    _flag(offer.requiretls, value)
    fields["requiretls"] = True


def _auth(value: str, offer: Capabilities, fields: Fields) -> None:
    if not offer.auth:
        raise _NotOffered
    if not 0 < len(value) <= _MOST_AUTH:
        raise BadValue("it is an address or <>")
    fields["auth"] = decode_xtext(value)


def _ret(value: str, offer: Capabilities, fields: Fields) -> None:
    if not offer.dsn:
        raise _NotOffered
    fields["ret"] = value.lower()
    if fields["ret"] not in ("full", "hdrs"):
        raise BadValue("it is FULL or HDRS")


def _envid(value: str, offer: Capabilities, fields: Fields) -> None:
    if not offer.dsn:
        raise _NotOffered
    fields["envid"] = decode_envid(value)


def _holdfor(value: str, offer: Capabilities, fields: Fields) -> None:
    if offer.future_release is None:
        raise _NotOffered
    if not _SECONDS.fullmatch(value):
        raise BadValue("it is a number of seconds")
    fields["hold_for"] = int(value)
    if fields["hold_for"] > offer.future_release:
        raise BadValue(f"at most {offer.future_release} seconds are offered")


def _holduntil(value: str, offer: Capabilities, fields: Fields) -> None:
    if offer.future_release is None:
        raise _NotOffered
    fields["hold_until_ms"] = _epoch_ms(value)


def _epoch_ms(text: str) -> int:
    if not _DATE_TIME.fullmatch(text):
        raise BadValue("it is a date and time of RFC 3339 with its offset")
    second = text[17:19]
    found = _FRACTION.search(text)
    fraction = "" if found is None else found[0]
    # datetime knows neither a leap second nor more than six digits of one
    whole = f"{text[:17]}{'59' if second == '60' else second}{text[19 + len(fraction) :]}"
    try:
        at = datetime.fromisoformat(whole.upper())
    except ValueError:
        raise BadValue("there is no such date and time") from None
    ms = (at - _EPOCH) // _MS + int(float(fraction or 0) * 1000)
    return ms + 1000 if second == "60" else ms


def _mt_priority(value: str, offer: Capabilities, fields: Fields) -> None:
    if offer.mt_priority is None:
        raise _NotOffered
    if not _PRIORITY.fullmatch(value):
        raise BadValue("it is a number from -9 to 9")
    fields["mt_priority"] = int(value)


def _notify(value: str, offer: Capabilities, fields: Fields) -> None:
    if not offer.dsn:
        raise _NotOffered
    fields["notify"] = read_notify(value)


def _orcpt(value: str, offer: Capabilities, fields: Fields) -> None:
    if not offer.dsn:
        raise _NotOffered
    fields["orcpt"] = decode_orcpt(value)


_OF_MAIL: dict[str, _Reader] = {
    "SIZE": _size,
    "BODY": _body,
    "SMTPUTF8": _smtputf8,
    "AUTH": _auth,
    "RET": _ret,
    "ENVID": _envid,
    "HOLDFOR": _holdfor,
    "HOLDUNTIL": _holduntil,
    "MT-PRIORITY": _mt_priority,
    "REQUIRETLS": _requiretls,
}
_OF_RCPT: dict[str, _Reader] = {"NOTIFY": _notify, "ORCPT": _orcpt}


def _read(
    verb: str, readers: Mapping[str, _Reader], given: Given, offer: Capabilities
) -> Fields | Refused:
    fields: Fields = {}
    for keyword, value in given.items():
        try:
            readers[keyword](value or "", offer, fields)
        except (KeyError, _NotOffered):
            text = f"parameter not offered: {visible(keyword)}"
            return refuse(verb, "parameter", 555, "5.5.4", text)
        except BadValue as error:
            text = f"unreadable value of {keyword}: {error}"
            return refuse(verb, "parameter-value", 501, "5.5.4", text)
    return fields


def read_mail_parameters(
    given: Given, offer: Capabilities, clock: Clock | None = None
) -> Fields | Refused:
    """What the parameters of a MAIL ask for, by the names of ``MailFrom``.

    Args:
        given: by upper-case keyword, None for one without a value.
        offer: what the server offers at this moment.
        clock: the time in seconds since 1970; asked where HOLDUNTIL was given.
    """
    fields = _read("MAIL", _OF_MAIL, given, offer)
    if isinstance(fields, Refused):
        return fields
    size, until = fields.get("size"), fields.get("hold_until_ms")
    if until is not None:
        if "hold_for" in fields:
            text = "HOLDFOR and HOLDUNTIL exclude each other"
            return refuse("MAIL", "parameter-value", 501, "5.5.4", text)
        if clock is not None and until > (clock() + (offer.future_release or 0)) * 1000:
            text = f"HOLDUNTIL: at most {offer.future_release} seconds from now are offered"
            return refuse("MAIL", "parameter-value", 501, "5.5.4", text)
    if size is not None and offer.size and size > offer.size:
        text = f"message of {size} octets exceeds the limit of {offer.size}"
        return refuse("MAIL", "oversize", 552, "5.3.4", text)
    return fields


def read_rcpt_parameters(given: Given, offer: Capabilities) -> Fields | Refused:
    """What the parameters of a RCPT ask for, by the names of ``RcptTo``."""
    return _read("RCPT", _OF_RCPT, given, offer)
