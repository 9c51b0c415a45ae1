"""Mailstrom: hand over an email, have it delivered, see what happened.

Importing this package is free: names load on first use, so that ``python -m mailstrom.supervisor``
can guard its path before anything else is imported.
"""

from __future__ import annotations

TYPE_CHECKING = False  # true for type checkers; importing typing here would be too early

if TYPE_CHECKING:
    from mailstrom.aio import AsyncMailstrom as AsyncMailstrom
    from mailstrom.causes import (
        Cause as Cause,
    )
    from mailstrom.causes import (
        Waiting as Waiting,
    )
    from mailstrom.client import Mailstrom as Mailstrom
    from mailstrom.errors import (
        ConfigError as ConfigError,
    )
    from mailstrom.errors import (
        IdempotencyConflict as IdempotencyConflict,
    )
    from mailstrom.errors import (
        InvalidAddress as InvalidAddress,
    )
    from mailstrom.errors import (
        InvalidMessage as InvalidMessage,
    )
    from mailstrom.errors import (
        MailstromError as MailstromError,
    )
    from mailstrom.errors import (
        MessageNotFound as MessageNotFound,
    )
    from mailstrom.errors import (
        NotASpool as NotASpool,
    )
    from mailstrom.errors import (
        OutcomeUnknown as OutcomeUnknown,
    )
    from mailstrom.errors import (
        SchemaMismatch as SchemaMismatch,
    )
    from mailstrom.errors import (
        SpoolBusy as SpoolBusy,
    )
    from mailstrom.errors import (
        SpoolCorrupt as SpoolCorrupt,
    )
    from mailstrom.errors import (
        SpoolError as SpoolError,
    )
    from mailstrom.errors import (
        SpoolFull as SpoolFull,
    )
    from mailstrom.errors import (
        SpoolReadOnly as SpoolReadOnly,
    )
    from mailstrom.errors import (
        SpoolReplaced as SpoolReplaced,
    )
    from mailstrom.types import (
        Change as Change,
    )
    from mailstrom.types import (
        EngineState as EngineState,
    )
    from mailstrom.types import (
        Event as Event,
    )
    from mailstrom.types import (
        MessageStatus as MessageStatus,
    )
    from mailstrom.types import (
        OnDoubt as OnDoubt,
    )
    from mailstrom.types import (
        Priority as Priority,
    )
    from mailstrom.types import (
        QueueStats as QueueStats,
    )
    from mailstrom.types import (
        Reason as Reason,
    )
    from mailstrom.types import (
        RecipientStatus as RecipientStatus,
    )
    from mailstrom.types import (
        Status as Status,
    )
    from mailstrom.types import (
        Suppression as Suppression,
    )
    from mailstrom.types import (
        WorkerStatus as WorkerStatus,
    )
else:
    _HOME = {"AsyncMailstrom": "mailstrom.aio", "Mailstrom": "mailstrom.client"}
    _HOME |= {"Cause": "mailstrom.causes", "Waiting": "mailstrom.causes"}
    _HOME |= dict.fromkeys(
        (
            "MailstromError", "InvalidMessage", "InvalidAddress", "IdempotencyConflict",
            "MessageNotFound", "ConfigError", "OutcomeUnknown", "SpoolError", "SpoolBusy",
            "SpoolFull", "SpoolReadOnly", "SpoolReplaced", "SpoolCorrupt", "NotASpool",
            "SchemaMismatch",
        ),
        "mailstrom.errors",
    )  # fmt: skip
    _HOME |= dict.fromkeys(
        (
            "Change", "EngineState", "Event", "MessageStatus", "OnDoubt", "Priority", "QueueStats",
            "Reason", "RecipientStatus", "Status", "Suppression", "WorkerStatus",
        ),
        "mailstrom.types",
    )  # fmt: skip
    __all__ = sorted(_HOME)

    def __getattr__(name):
        if name in _HOME:
            from importlib import import_module

            value = getattr(import_module(_HOME[name]), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module 'mailstrom' has no attribute {name!r}")


__version__ = "0.2.0"
