"""Messages that are the end of whoever has them on the wire.

Settings: ``{"exit": MARK, "memory": MARK}``, both optional. Content with the first mark ends the
delivery worker as a crash in a C library would (``os._exit`` with status 71); with the second, it
raises ``MemoryError`` in the lane. Both happen after the message was opened.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from torture_hooks import after_import

STATUS = 71


def arm(settings: dict[str, Any]) -> None:
    """Poison ``mailstrom_workers.feed.Feed._outgoing``."""
    fatal = str(settings.get("exit", "")).encode()
    huge = str(settings.get("memory", "")).encode()

    def poison(module: ModuleType) -> None:
        real = module.Feed._outgoing

        def outgoing(self: Any, transaction: Any) -> Any:
            body = transaction.recipients[0].body or b""
            if fatal and fatal in body:
                os._exit(STATUS)
            if huge and huge in body:
                raise MemoryError("injected: no memory for this message")
            return real(self, transaction)

        module.Feed._outgoing = outgoing

    after_import("mailstrom_workers.feed", poison)
