"""Ways to smuggle a message or a command past an SMTP server, as data: what is sent, what answers.

Each is sent behind EHLO's reply, in any pieces. Whatever a server makes of it, nobody with ``EVIL``
in his name may come out of it as a sender or recipient: his commands stand within content, within
another command, or where none may stand.
"""

from __future__ import annotations

from typing import NamedTuple

EVIL = "evil@evil.test"
_MAIL = b"MAIL FROM:<a@x.test>\r\n"
_RCPT = b"RCPT TO:<b@y.test>\r\n"
_ENVELOPE = _MAIL + _RCPT
_COMMANDS = b"MAIL FROM:<evil@evil.test>\r\nRCPT TO:<evil@evil.test>\r\nDATA\r\nevil"
_END = b"\r\n.\r\nQUIT\r\n"


class Attack(NamedTuple):
    """One way.

    Args:
        name: what is tried.
        sent: the octets, behind the reply to EHLO.
        replies: the codes that answer; the last also ends the session if that is ``closed``.
        messages: how many contents are accepted.
        fixed: the same codes where a CR or LF alone in content is fixed; empty: as ``replies``.
        needs: what must be offered: ``chunking``, ``starttls``, ``auth``.
        closed: the server ends the session by itself.
    """

    name: str
    sent: bytes
    replies: tuple[int, ...]
    messages: int = 0
    fixed: tuple[int, ...] = ()
    needs: str = ""
    closed: bool = False


def _content(name: str, end: bytes, *, clean: bool = False) -> Attack:
    """What some server somewhere takes for the end of content, and commands behind it."""
    sent = _ENVELOPE + b"DATA\r\nSubject: x\r\n\r\nx" + end + _COMMANDS + _END
    taken = (250, 250, 354, 250, 221)
    if clean:
        return Attack(f"end of content: {name}", sent, taken, 1)
    return Attack(f"end of content: {name}", sent, (250, 250, 354, 554, 221), 0, taken)


def _line(name: str, line: bytes, *replies: int) -> Attack:
    """One command line with another within it."""
    return Attack(f"command line: {name}", line + b"\r\nNOOP\r\n", (*replies, 250))


def _bdat(name: str, sent: bytes, *replies: int, messages: int = 0, closed: bool = False) -> Attack:
    return Attack(f"BDAT: {name}", sent, replies, messages, needs="chunking", closed=closed)


_TEN = b"MAIL FROM:<evil@evil.test>\r\n"

ATTACKS: tuple[Attack, ...] = (
    _content("LF . LF", b"\n.\n"),
    _content("LF . CRLF", b"\n.\r\n"),
    _content("CRLF . LF", b"\r\n.\n"),
    _content("CR . CR", b"\r.\r"),
    _content("CR . CRLF", b"\r.\r\n"),
    _content("CRLF . CR", b"\r\n.\r"),
    _content("LF . CR", b"\n.\r"),
    _content("CR . LF", b"\r.\n"),
    _content("LF CR . LF CR", b"\n\r.\n\r"),
    _content("CR CRLF . CR CRLF", b"\r\r\n.\r\r\n"),
    _content("LF CRLF . LF CRLF", b"\n\r\n.\n\r\n"),
    _content("CRLF . CR CRLF", b"\r\n.\r\r\n"),
    _content("CRLF NUL . CRLF", b"\r\n\0.\r\n", clean=True),
    _content("CRLF . NUL CRLF", b"\r\n.\0\r\n", clean=True),
    _content("CR NUL LF . CR NUL LF", b"\r\0\n.\r\0\n"),
    _content("CRLF . space CRLF", b"\r\n. \r\n", clean=True),
    _content("CRLF space . CRLF", b"\r\n .\r\n", clean=True),
    _content("CRLF . tab CRLF", b"\r\n.\t\r\n", clean=True),
    _content("CRLF .. CRLF", b"\r\n..\r\n", clean=True),
    _content("CRLF . vertical tab", b"\r\n.\x0b", clean=True),
    _content("NEL . NEL", b"\x85.\x85", clean=True),
    _content("NEL in UTF-8", b"\xc2\x85.\xc2\x85", clean=True),
    _content("line separator", b"\xe2\x80\xa8.\xe2\x80\xa8", clean=True),
    _content("full stop of full width", b"\r\n\xef\xbc\x8e\r\n", clean=True),
    _content("CR and LF with the eighth bit", b"\x8d\x8a.\x8d\x8a", clean=True),
    _content("none at all: commands in content", b"\r\n", clean=True),
    Attack(
        "end of content: at once, then junk",
        _ENVELOPE + b"DATA\r\n.\r\n\0\r\n\xff\r\nNOOP\nNOOP\r\nx" + b"\r\nQUIT\r\n",
        (250, 250, 354, 250, 500, 500, 500, 500, 221),
        1,
    ),
    Attack(
        "DATA behind refused recipients: content is no content",
        _MAIL + b"RCPT TO:<b@y.test> X=1\r\nDATA\r\nSubject: x\r\n.\r\nQUIT\r\n",
        (250, 555, 503, 500, 500, 221),
    ),
    _bdat(
        "CRLF . CRLF within",
        _ENVELOPE + b"BDAT 38 LAST\r\nx\r\n.\r\nMAIL FROM:<evil@evil.test>\r\nx.\r\nQUIT\r\n",
        250, 250, 250, 221, messages=1,
    ),
    _bdat(
        "a dot line over the border of chunks",
        _ENVELOPE + b"BDAT 4\r\nx\r\n.BDAT 30\r\n\r\n" + _TEN + b"BDAT 0 LAST\r\nQUIT\r\n",
        250, 250, 250, 250, 250, 221, messages=1,
    ),
    _bdat(
        "a line end over the border of chunks",
        _ENVELOPE + b"BDAT 2\r\nx\rBDAT 3 LAST\r\n\nx\nQUIT\r\n",
        250, 250, 250, 554, 221,
    )._replace(fixed=(250, 250, 250, 250, 221)),
    _bdat(
        "then DATA",
        _ENVELOPE + b"BDAT 3\r\nx\r\nDATA\r\n" + b"BDAT 28 LAST\r\n" + _TEN + b"QUIT\r\n",
        250, 250, 250, 503, 250, 221, messages=1,
    ),
    _bdat(
        "within DATA",
        _ENVELOPE + b"DATA\r\nBDAT 28 LAST\r\n" + _TEN + _END,
        250, 250, 354, 250, 221, messages=1,
    ),
    _bdat("refused, its octets commands", b"BDAT 28 LAST\r\n" + _TEN + b"QUIT\r\n", 503, 221),
    _bdat(
        "refused behind refused recipients",
        _MAIL + b"RCPT TO:<> \r\nBDAT 28 LAST\r\n" + _TEN + b"QUIT\r\n",
        250, 501, 503, 221,
    ),
    *(
        _bdat(
            f"size {size.decode()!r}",
            _ENVELOPE + b"BDAT " + size + b"\r\n" + _TEN,
            250, 250, 501, closed=True,
        )
        for size in (b"", b"LAST", b"-1 LAST", b"+5 LAST", b"0x1c LAST", b"28 FIRST", b"28LAST",
                     b"28,28 LAST", b"1e1 LAST", b"9" * 21 + b" LAST", b"\xd9\xa2\xd9\xa8 LAST")
    ),
    _bdat("size of 20 digits", _ENVELOPE + b"BDAT " + b"9" * 20 + b"\r\n" + _TEN, 250, 250),
    _line("CR in MAIL", b"MAIL FROM:<a@x.test>\rRCPT TO:<evil@evil.test>", 500),
    _line("LF in MAIL", b"MAIL FROM:<a@x.test>\nRCPT TO:<evil@evil.test>", 500),
    _line("CR in the path", b"MAIL FROM:<a@x.test\r>", 500),
    _line("LF behind a verb", b"NOOP\nMAIL FROM:<evil@evil.test>", 500),
    _line("NUL in MAIL", b"MAIL FROM:<a@x.test>\0MAIL FROM:<evil@evil.test>", 500),
    _line("NUL in the path", b"MAIL FROM:<a\0@x.test>", 500),
    _line("NUL before the verb", b"\0MAIL FROM:<evil@evil.test>", 500),
    _line("a space before the verb", b" MAIL FROM:<evil@evil.test>", 500),
    _line("tab behind the verb", b"MAIL\tFROM:<evil@evil.test>", 500),
    _line("escape sequence", b"MAIL FROM:<a@x.test> \x1b[2J", 500),
    _line("no UTF-8", b"MAIL FROM:<\xff@x.test>", 500),
    _line("overlong UTF-8", b"MAIL FROM:<a@x.test>\xc0\x8dRCPT", 500),
    _line("line separator", b"MAIL FROM:<a@x.test>\xe2\x80\xa8RCPT TO:<evil@evil.test>", 500),
    _line("UTF-8 without SMTPUTF8", b"MAIL FROM:<\xc3\xa9@x.test>", 553),
    _line("path left open", b"MAIL FROM:<a@x.test", 501),
    _line("path in path", b"MAIL FROM:<<evil@evil.test>>", 501),
    _line("two paths", b"MAIL FROM:<a@x.test><evil@evil.test>", 501),
    _line("no space behind the path", b"MAIL FROM:<a@x.test>SIZE=1", 501),
    _line("a bracket in quotes, left open", b'MAIL FROM:<"a>@x.test>', 501),
    _line("quoted LF", b'MAIL FROM:<"a\n"@x.test>', 500),
    _line("a parameter twice", b"MAIL FROM:<a@x.test> SIZE=1 SIZE=2", 501),
    _line("a number without end", b"MAIL FROM:<a@x.test> SIZE=" + b"9" * 400, 501),
    _line("octets beyond 512", b"NOOP " + b"x" * 508 + b" MAIL FROM:<evil@evil.test>", 500),
    _line("a million octets", b"NOOP " + b"x" * 1_000_000 + b"MAIL FROM:<evil@evil.test>", 500),
    _line("XTEXT of CRLF", b"MAIL FROM:<a@x.test> ENVID=x+0D+0AMAIL", 501),
    Attack(
        "STARTTLS: commands behind it",
        b"STARTTLS\r\nMAIL FROM:<evil@evil.test>\r\n",
        (554,), needs="starttls", closed=True,
    ),
    Attack(
        "STARTTLS: half a command behind it",
        b"STARTTLS\r\nM",
        (554,), needs="starttls", closed=True,
    ),
    Attack(
        "STARTTLS: with an argument",
        b"STARTTLS x\r\nNOOP\r\n",
        (501, 250), needs="starttls",
    ),
    Attack(
        "STARTTLS: within a transaction",
        _ENVELOPE + b"STARTTLS\r\nQUIT\r\n",
        (250, 250, 503, 221), needs="starttls",
    ),
    Attack(
        "AUTH: a command for an answer",
        b"AUTH PLAIN\r\nMAIL FROM:<evil@evil.test>\r\nNOOP\r\n",
        (334, 501, 250), needs="auth",
    ),
    Attack(
        "AUTH: LF in an answer",
        b"AUTH LOGIN\r\nYQ==\nMAIL FROM:<evil@evil.test>\r\nNOOP\r\n",
        (334, 500, 250), needs="auth",
    ),
    Attack(
        "AUTH: an answer without end",
        b"AUTH PLAIN\r\n" + b"A" * 1_000_000 + b"\r\nNOOP\r\n",
        (334, 500, 250), needs="auth",
    ),
    Attack(
        "AUTH: NUL, and no base64",
        b"AUTH PLAIN \0\r\nAUTH PLAIN ====\r\nAUTH PLAIN\r\n\0\r\nNOOP\r\n",
        (500, 501, 334, 501, 250), needs="auth",
    ),
    Attack(
        "AUTH: fields too many",
        b"AUTH PLAIN YQBiAGMAZA==\r\nNOOP\r\n",
        (501, 250), needs="auth",
    ),
    Attack(
        "HTTP: a request with commands for a body",
        b"POST / HTTP/1.1\r\nHost: mx.test:25\r\n\r\n" + _TEN + b"QUIT\r\n",
        (421,), closed=True,
    ),
    Attack(
        "errors without end",
        b"XYZZY\r\n" * 30 + _TEN,
        (*(500,) * 20, 421), closed=True,
    ),
)  # fmt: skip
