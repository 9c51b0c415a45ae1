"""Whether a reply is to content, or to another command, as far as its words tell.

Contract: where a reply came twice, or not at all, what stands in the place of a consent to content
may answer a MAIL or RCPT. An enhanced code tells: it speaks of an address there (RFC 3463 section
3.2). Where there is none the words do, if the server has different ones: those that MAIL and RCPT
got in this session, and content never did, are not believed. Of a refusal only the code tells.

Must not know: places, what follows from it.
"""

from __future__ import annotations

from mailstrom.smtp.reply import Reply

_MOST = 64  # a server may name the recipient in each of its replies
_OF_AN_ADDRESS = "2.1."
_AGAINST_AN_ADDRESS = ("4.1.", "5.1.")


class Wording:
    """The words in which one server consents, of one session.

    Attributes:
        apart: its last consent to content came in words that no other command had got.
    """

    __slots__ = ("_of_mail", "_to_content", "_to_envelope", "apart")

    def __init__(self) -> None:
        self._to_envelope: set[tuple[str, ...]] = set()  # to MAIL and RCPT
        self._to_content: set[tuple[str, ...]] = set()
        self._of_mail: set[str] = set()  # enhanced codes that MAIL got
        self.apart = False

    def to_mail(self, reply: Reply) -> None:
        """A consent to MAIL."""
        if reply.enhanced is None:
            self.to_envelope(reply)
        elif len(self._of_mail) < _MOST:
            self._of_mail.add(reply.enhanced)

    def to_envelope(self, reply: Reply) -> None:
        """A consent to MAIL or RCPT, without an enhanced code."""
        _remember(self._to_envelope, reply)

    def to_content(self, reply: Reply) -> None:
        """A consent to content, without an enhanced code."""
        self.apart = reply.lines not in self._to_envelope
        _remember(self._to_content, reply)

    def known(self, reply: Reply) -> bool:
        """Whether MAIL or RCPT got these words, and no enhanced code tells more."""
        return reply.enhanced is None and reply.lines in self._to_envelope

    def of_an_envelope(self, reply: Reply, proved: bool, *, marked: bool) -> bool:
        """Whether a consent in the place of one to content answers a MAIL or RCPT.

        Args:
            reply: the consent.
            proved: the server is known to have words of its own for content like this.
            marked: a 354 marked the place: only the MAIL behind can have been answered in it. Some
                servers say 2.1.5 of content, which is none of MAIL's.
        """
        if reply.enhanced is not None:
            if not reply.enhanced.startswith(_OF_AN_ADDRESS):
                return False
            return not marked or reply.enhanced in self._of_mail
        if reply.lines not in self._to_envelope or reply.lines in self._to_content:
            return False
        return self.apart or proved


def refuses_address(reply: Reply) -> bool:
    """Whether a refusal speaks of an address by its enhanced code: it may answer a RCPT."""
    return reply.enhanced is not None and reply.enhanced.startswith(_AGAINST_AN_ADDRESS)


def repeats(reply: Reply, before: Reply | None) -> bool:
    """Whether these are the words of a refusal before: one reply may have come again and again."""
    return before is not None and reply.code == before.code and reply.lines == before.lines


def _remember(words: set[tuple[str, ...]], reply: Reply) -> None:
    if len(words) < _MOST:
        words.add(reply.lines)
