"""The thin client: inserts and reads rows. No asyncio, no DNS, no SMTP, no log."""

from __future__ import annotations

from mailstrom.client.api import Mailstrom

__all__ = ["Mailstrom"]
