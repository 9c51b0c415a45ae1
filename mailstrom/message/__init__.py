"""RFC 5322 messages out of whatever the caller hands in.

``compose`` turns an ``EmailMessage``, a legacy ``Message`` or bytes into the octets that go on the
wire plus the envelope; ``parse`` reads bytes by the letter of the standards; ``parse_address`` is
the one gate for addresses; ``fingerprint`` hashes what a message means; ``RULES`` says what each
refusal means. The room knows neither DNS, SMTP nor the spool, and it never asks the standard
library to serialise: headers and MIME trees are rendered here (see ``header`` and ``body``). What
sending does not need is loaded when it is first named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailstrom.message.address import Address, parse_address
from mailstrom.message.compose import Prepared, compose
from mailstrom.message.fingerprint import fingerprint

if TYPE_CHECKING:
    from mailstrom.message.address_list import Group, Mailbox
    from mailstrom.message.parsed import Parsed, ParsedField, Received, Resent
    from mailstrom.message.reader import parse
    from mailstrom.message.rules import RULES, Rule

__all__ = [
    "RULES",
    "Address",
    "Group",
    "Mailbox",
    "Parsed",
    "ParsedField",
    "Prepared",
    "Received",
    "Resent",
    "Rule",
    "compose",
    "fingerprint",
    "parse",
    "parse_address",
]

_LAZY = {
    "RULES": "rules",
    "Rule": "rules",
    "Group": "address_list",
    "Mailbox": "address_list",
    "parse": "reader",
    **dict.fromkeys(("Parsed", "ParsedField", "Received", "Resent"), "parsed"),
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found: object = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = found
    return found
