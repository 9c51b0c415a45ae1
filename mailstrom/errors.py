"""Every exception that Mailstrom raises on purpose.

One root, so that an application may catch ``MailstromError`` and know it came from here. Errors
that a caller can cause carry the pieces (header, value, rule) apart from the sentence, and each
sentence says what is wrong, where, and what to do.
"""

from __future__ import annotations


class MailstromError(Exception):
    """Root of all errors raised by Mailstrom."""


class InvalidMessage(MailstromError, ValueError):
    """The message cannot be sent as given; nothing was written.

    Args:
        text: the sentence for a person.
        header: name of the header or argument at fault, or None.
        value: the offending value, shortened to 200 characters.
        rule: short stable name of the broken rule, for example ``"header-injection"``.
        position: offset in octets into the message given as bytes, where there is one.
    """

    def __init__(
        self,
        text: str,
        *,
        header: str | None = None,
        value: object = None,
        rule: str = "invalid-message",
        position: int | None = None,
    ) -> None:
        super().__init__(text)
        self.header = header
        self.value = value if value is None else _shown(value)
        self.rule = rule
        self.position = position
        self.ids: list[str] = []  # send_many: what was accepted before this message


def _shown(value: object) -> str:
    try:
        return repr(value)[:200]
    except Exception:  # a foreign class; or an integer of more digits than Python writes
        return f"<{type(value).__name__}>"


class InvalidAddress(InvalidMessage):
    """An address breaks RFC 5321/5322/6531 syntax; nothing was written."""

    def __init__(
        self,
        text: str,
        *,
        header: str | None = None,
        value: object = None,
        rule: str = "invalid-address",
        position: int | None = None,
    ) -> None:
        super().__init__(text, header=header, value=value, rule=rule, position=position)


class IdempotencyConflict(MailstromError):
    """The idempotency key was used before for a different message."""


class MessageNotFound(MailstromError, KeyError):
    """No message has this id in the spool (never accepted here, or purged)."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else "message not found"


class ConfigError(MailstromError):
    """The configuration is unusable; says the file, the key and what to write instead."""


class OutcomeUnknown(MailstromError):
    """A commit or sync failed in a way that leaves open whether the message is stored.

    ``key`` is the message id: ``status(key)`` answers it once the spool works again.
    """

    def __init__(self, text: str, *, key: str) -> None:
        super().__init__(text)
        self.key = key


class SpoolError(MailstromError):
    """Root of errors of the spool itself."""


class SpoolBusy(SpoolError, TimeoutError):
    """Another writer held the spool longer than the timeout; nothing was written."""


class SpoolFull(SpoolError, OSError):
    """The disk, or what the spool may take of it, is full; nothing was written.

    Also where a process that reads keeps the write-ahead log at its limit; the text names it.
    """


class SpoolReadOnly(SpoolError):
    """The spool or its directory cannot be written by this user."""


class SpoolCorrupt(SpoolError):
    """SQLite found the file damaged; nothing was changed."""


class SpoolReplaced(SpoolError):
    """The spool's files were replaced under a running process; nothing was stored."""


class NotASpool(SpoolError):
    """The file exists and is not a Mailstrom spool; nothing was changed."""


class SchemaMismatch(SpoolError):
    """The spool's schema is newer than this Mailstrom understands; nothing was changed."""
