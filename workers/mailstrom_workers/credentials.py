"""What a server may do with credentials that it was shown: repeat them, and ask for them by LOGIN.

Contract: pure. A server's words that hold any piece of the password, as it is or as AUTH sent it
(RFC 4616 for PLAIN; LOGIN and XOAUTH2 as they are found in the field), are kept back as a whole: to
cut out the piece would tell where it stood, and a piece that was cut short, split over lines, or
changed in its case would slip through. The reply's codes stay; they say what is wrong.

Must not know: sockets, aiosmtplib, what a failure means.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
from typing import Literal

from mailstrom.smtp.reply import Reply

KEPT_BACK = "(the server's words repeat a piece of the credentials and are not told)"

_PIECE = 4
_LONG_PASSWORD = 64
_LONG_PIECE = 8
"""Characters that give a secret away; of a token so few tell nothing, and any text holds some."""

Prompt = Literal["username", "password"]

_STATUS = re.compile(r"^[245]\.[0-9]{1,3}\.[0-9]{1,3}(?:\s+|$)", re.MULTILINE)
_PROMPTS: dict[str, Prompt] = {"user": "username", "login": "username", "pass": "password"}


def discreet(code: int, words: str, username: str, password: str) -> str:
    """A server's words where they may be told, else the enhanced code and a sentence.

    Args:
        code: of the reply; anything where there was none.
        words: its lines, joined by LF.
        username, password: what the server was shown, or might have been.
    """
    if not _betrays(words, username, password):
        return words
    reply = Reply.of(code, words.split("\n"))
    return f"{reply.enhanced} {KEPT_BACK}" if reply.enhanced else KEPT_BACK


def prompt(words: str) -> Prompt | None:
    """What a 334 of LOGIN asks for; None where that cannot be told.

    Args:
        words: base64, as it should be, or the plain words.
    """
    texts = [words]
    with contextlib.suppress(binascii.Error, ValueError):
        texts.insert(0, base64.b64decode(words, validate=True).decode("utf-8", "replace"))
    for text in map(str.casefold, texts):
        places = {text.index(word): meant for word, meant in _PROMPTS.items() if word in text}
        if places:
            return places[min(places)]  # "Password of user joe:" asks for the password
    return None


def _betrays(words: str, username: str, password: str) -> bool:
    """Whether any piece of a form of the password is in the words, over lines and spaces."""
    joined = _joined(_STATUS.sub("", words))
    size = _PIECE if len(password) <= _LONG_PASSWORD else _LONG_PIECE
    for form in _forms(username, password):
        secret = _joined(form)
        length = min(size, len(secret))
        places = range(len(secret) - length + 1) if length else ()
        if any(secret[place : place + length] in joined for place in places):
            return True
    return False


def _forms(username: str, password: str) -> list[str]:
    """The password as it may come back."""
    sent = (
        password,
        f"\0{username}\0{password}",
        f"user={username}\x01auth=Bearer {password}\x01\x01",
    )
    return [password, *(base64.b64encode(one.encode()).decode().rstrip("=") for one in sent)]


def _joined(text: str) -> str:
    return "".join(text.split()).casefold()
