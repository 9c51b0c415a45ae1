"""The mixed mail that honest servers are given: two dozen kinds, all drawn from one seed.

Contract. ``mixed(domain, seed, long)`` returns the same letters each time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from email.message import EmailMessage

from tests.hostile.honest_letters import Desk, Letter

LARGE = 3 << 20
LARGE_KIND = "base64 of 3 MiB"
FIFTY = 50
MANY = 200

Writer = Callable[[Desk], Letter]
_MIME = "Subject: news\r\nMIME-Version: 1.0\r\nContent-Type: "
_UTF8 = _MIME + "text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit"


def _lines(desk: Desk, pieces: Sequence[str], end: str = "\r\n") -> bytes:
    """Lines drawn of these pieces."""
    dice = desk.dice
    lines = (
        "".join(dice.choices(pieces, k=dice.randint(1, 4))) for _ in range(dice.randint(2, 40))
    )
    return end.join(lines).encode() + end.encode()


def _seven(desk: Desk) -> Letter:
    return desk.letter(
        _lines(desk, ["Good morning. ", "a=b ", "<x> ", "\t", "%d%s "], "\n\r\n"[1:])
    )


def _eight(desk: Desk) -> Letter:
    return desk.letter(_lines(desk, ["grüße ", "ж", "漢字 ", "😀", ".", "é "]), fields=_UTF8)


def _utf8_fields(desk: Desk) -> Letter:
    fields = f"Subject: Grüße 漢字 {desk.written}\r\nX-Name: Жук <ж@x.test>"
    return desk.letter(b"Good morning.\r\n", fields=fields)


def _utf8_local(desk: Desk) -> Letter:
    return desk.letter(b"Good morning.\r\n", to=("grün",))


def _998(desk: Desk) -> Letter:
    first = desk.dice.choice(".xF")
    line = (first + "0123456789" * 100)[:998]
    fields = "Subject: " + "s" * (998 - len("Subject: "))
    return desk.letter(f"{line}\r\n{line}\r\n.\r\n{line}\r\n".encode(), fields=fields)


def _only_dots(desk: Desk) -> Letter:
    dice = desk.dice
    lines = ["." * dice.choice((1, 1, 2, 3, 998)) for _ in range(dice.randint(1, 30))]
    return desk.letter(("\r\n".join(lines) + "\r\n" * dice.randint(0, 2)).encode())


def _leading_dots(desk: Desk) -> Letter:
    return desk.letter("".join(f".{'.' * n} line {n}\r\n" for n in range(40)).encode())


def _from_lines(desk: Desk) -> Letter:
    return desk.letter(
        b"From a@b.test Fri Jan  2 03:04:05 2026\r\n\r\nFrom here on\r\n>From me\r\n"
    )


def _unended(desk: Desk) -> Letter:
    """The last part, and in half of them the message, ends without a line end."""
    body = b"--b\r\n\r\none\r\n--b\r\nContent-Type: text/html\r\n\r\n<p>two\r\n--b--"
    whole = desk.written % 2 == 0
    fields = _MIME + ("multipart/mixed; boundary=b" if whole else "text/plain")
    return desk.letter(body if whole else b"no end of line", fields=fields)


def _large(desk: Desk) -> Letter:
    attached = desk.dice.randbytes(LARGE)
    message = EmailMessage()
    message["Subject"] = "large"
    message.set_content("see below\n")
    message.add_attachment(attached, maintype="application", subtype="octet-stream")
    return desk.composed(message, attached)


def _empty(desk: Desk) -> Letter:
    return desk.letter(b"")


def _one_octet(desk: Desk) -> Letter:
    return desk.letter(desk.dice.choice((b".", b"x", b" ")))


def _nested(desk: Desk) -> Letter:
    depth = desk.dice.randint(3, 12)
    opened = "".join(
        f"Content-Type: multipart/mixed; boundary=b{n}\r\n\r\npreamble\r\n--b{n}\r\n"
        for n in range(1, depth)
    )
    closed = "".join(f"\r\n--b{n}--\r\nepilogue" for n in range(depth - 1, -1, -1))
    body = f"--b0\r\n{opened}Content-Type: text/plain\r\n\r\n.deep\r\n.\r\n{closed}\r\n"
    return desk.letter(body.encode(), fields=_MIME + "multipart/mixed; boundary=b0")


def _flowed(desk: Desk) -> Letter:
    fields = _MIME + "text/plain; format=flowed; delsp=yes"
    return desk.letter(b"one \r\n  two \r\n>> three \r\n-- \r\nFrom me \r\n", fields=fields)


def _trailing(desk: Desk) -> Letter:
    return desk.letter(_lines(desk, ["x", " ", "\t", "  ", ". "]) + b"   \r\n\t\r\n")


_TRAPS = (
    b"\r\n\r\n\r\n", b"x\r\n\r\n\r\n", b".\r\nMAIL FROM:<x@evil.test>\r\nRCPT TO:<y@evil.test>\r\n",
    b"\r\n.\r\nQUIT\r\n", b".\r\n\r\n.\r\nRSET\r\n.", b"a=0D=0Ab=0D\r\n=0A.=0D=0A\r\n",
    b"BDAT 10 LAST\r\n", b"..\r\n.\r\n..", b"\x1b[31m\x07\x0b\x0c\x7f\r\n",
    b"x" * 8190 + b"\r\n.\r\n",
)  # fmt: skip


def _trap(desk: Desk) -> Letter:
    body = desk.dice.choice(_TRAPS)
    if len(body) > 998:  # a dot where a reader's block may end
        body = (
            b"".join(b"%s\r\n" % (b"y" * 62) for _ in range(desk.dice.randint(1, 300))) + b".\r\n"
        )
    return desk.letter(body)


def _many(desk: Desk) -> Letter:
    return desk.letter(b"to all\r\n", to=[f"u{number}" for number in range(MANY)])


def _null(desk: Desk) -> Letter:
    return desk.letter(b"an answer\r\n", sender="")


def _long_local(desk: Desk) -> Letter:
    local = ("l.o-n_g+" * 8)[:63] + "g"
    return desk.letter(b"to you\r\n", to=(local,), sender=f"{local}@sender.test")


def _quoted(desk: Desk) -> Letter:
    local = ('"a b"', '"a..b"', '"a\\"b"', '"a,b"')[desk.written % 4]
    return desk.letter(b"to you\r\n", to=(local,))


def _quoted_at(desk: Desk) -> Letter:
    return desk.letter(b"to you\r\n", to=('"a@b"',))


def _quoted_sender(desk: Desk) -> Letter:
    """A sender whose local part is quoted."""
    return desk.letter(b"from me\r\n", sender='"a b"@sender.test')


def _secured(desk: Desk) -> Letter:
    return desk.letter(b"between us\r\n", require_tls=True)


def _one_of_fifty(desk: Desk) -> Letter:
    return desk.letter(f"number {desk.written}\r\n.\r\n".encode() * desk.dice.randint(1, 50))


_WORDS = (
    "Good", "morning", "ä", "漢字", "😀", "e\u0301", "=?utf-8?q?a?=", ";", ",", '"', "\\", "<x>",
    "\t", "a" * 90, "ש",
)  # fmt: skip


def _random(desk: Desk) -> Letter:
    """As an application builds mail: words of many scripts, alternatives, attachments."""
    dice = desk.dice

    def words(most: int) -> str:
        return " ".join(dice.choices(_WORDS, k=dice.randint(1, most)))

    message = EmailMessage()
    message["Subject"] = words(20)
    message["X-Note"] = words(60)
    text = "".join("." * dice.randint(0, 2) + words(30) + "\n" for _ in range(dice.randint(0, 20)))
    message.set_content(text, cte=dice.choice(("8bit", "quoted-printable", "base64")))
    if dice.random() < 0.5:
        message.add_alternative(f"<p>{words(40)}</p>\n", subtype="html", cte="quoted-printable")
    attached = None
    if dice.random() < 0.5:
        attached = dice.randbytes(dice.randint(0, 20_000))
        message.add_attachment(
            attached, maintype="application", subtype="octet-stream", filename=words(3)
        )
    return desk.composed(message, attached)


KINDS: dict[str, tuple[Writer, int, int]] = {
    # how many in the short form, in the long one
    "7-bit text": (_seven, 1, 4),
    "8-bit text": (_eight, 1, 4),
    "UTF-8 header fields": (_utf8_fields, 1, 3),
    "UTF-8 local part": (_utf8_local, 0, 2),
    "lines of 998 octets": (_998, 1, 4),
    "lines of only dots": (_only_dots, 1, 4),
    "leading dots": (_leading_dots, 0, 3),
    "From at the start of lines": (_from_lines, 1, 3),
    "no line end at the end of a part": (_unended, 1, 4),
    LARGE_KIND: (_large, 1, 2),
    "empty body": (_empty, 1, 3),
    "body of one octet": (_one_octet, 0, 3),
    "nested multipart": (_nested, 0, 3),
    "format=flowed": (_flowed, 0, 3),
    "trailing white space": (_trailing, 0, 3),
    "CR LF traps": (_trap, 1, 8),
    "null sender": (_null, 1, 3),
    "long local parts": (_long_local, 0, 3),
    "quoted local parts": (_quoted, 0, 4),
    "an @ in a quoted local part": (_quoted_at, 0, 1),
    "quoted local part of the sender": (_quoted_sender, 0, 1),
    "TLS required of the host": (_secured, 1, 3),
    "built of random pieces": (_random, 1, 40),
    "200 recipients": (_many, 0, 1),
    "fifty on one connection": (_one_of_fifty, 0, FIFTY),
}


def mixed(domain: str, seed: int, *, long: bool) -> dict[str, list[Letter]]:
    """Letters by kind, none of kinds that the short form leaves out."""
    found: dict[str, list[Letter]] = {}
    for kind, (write, short, full) in KINDS.items():
        word = "".join(filter(str.isalnum, kind)).encode("ascii", "ignore").decode()
        desk = Desk(word, domain, random.Random(f"{seed} {kind}"))
        count = full if long else short
        if count:
            found[kind] = [write(desk) for _ in range(count)]
    return found
