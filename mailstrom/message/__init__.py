"""RFC 5322 messages out of whatever the caller hands in.

``compose`` turns an ``EmailMessage``, a legacy ``Message`` or bytes into the octets that go on the
wire plus the envelope; ``parse_address`` is the one gate for addresses; ``fingerprint`` hashes what
a message means. The room knows neither DNS, SMTP nor the spool, and it never asks the standard
library to serialise: headers and MIME trees are rendered here (see ``header`` and ``body``).
"""

from __future__ import annotations

from mailstrom.message.address import Address, parse_address
from mailstrom.message.compose import Prepared, compose
from mailstrom.message.fingerprint import fingerprint

__all__ = ["Address", "Prepared", "compose", "fingerprint", "parse_address"]
