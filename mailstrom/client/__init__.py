"""The thin client: inserts and reads rows. No asyncio, no DNS, no SMTP, no log.

``Mailstrom`` is loaded when it is first named: ``mailstrom-sendmail`` finds the spool without it.
"""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from mailstrom.client.api import Mailstrom

__all__ = ["Mailstrom"]


def __getattr__(name: str) -> object:
    if name != "Mailstrom":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mailstrom.client.api import Mailstrom

    globals()[name] = Mailstrom
    return Mailstrom
