"""SMTP commands: rendered for a client, parsed for a server.

Contract: no value given to a renderer can end a command, start another or add a parameter; what
could is refused with ValueError before a byte exists. Grammar: RFC 5321 sections 4.1.1 and 4.1.2,
SIZE RFC 1870, 8BITMIME RFC 6152, SMTPUTF8 RFC 6531. Dot-atoms are read a little wider than the
grammar (``a..b@example.org`` exists in the field); everything that frames a path is exact.

Must not know: which command is allowed when (dialogues), what an address is worth.
"""

from __future__ import annotations

import re

from msgspec import Struct

from mailstrom.smtp.reply import visible

DATA = b"DATA\r\n"
RSET = b"RSET\r\n"
QUIT = b"QUIT\r\n"
NOOP = b"NOOP\r\n"
STARTTLS = b"STARTTLS\r\n"

# C0, DEL, C1, U+2028, U+2029 and lone surrogates never belong in a path.
_CONTROL = r"\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff"
_ATOM = rf'[^{_CONTROL} <>()\[\]\\,;:@"]+'
_QUOTED = rf'"(?:[^{_CONTROL}"\\]|\\[\x20-\x7e])*"'
_LITERAL = r"\[[\x21-\x5a\x5e-\x7e]+\]"
_MAILBOX = re.compile(rf"(?:{_ATOM}|{_QUOTED})@(?:{_ATOM}|{_LITERAL})")
_BARE = re.compile(rf"{_ATOM}|{_QUOTED}")  # a local part alone
_COMMON = re.compile(rf"((?i:FROM|TO)):<({_ATOM}@{_ATOM})>")  # as nearly all write it
_ROUTE = re.compile(rf"@{_ATOM}(?:,@{_ATOM})*:")
_NAME = re.compile(r"[\x21-\x7e]+")
_PARAMETER = re.compile(rf"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([^{_CONTROL} =]+))?")
_PARAMETERS = re.compile(rf"(?: {_PARAMETER.pattern})+")
_VERB = re.compile(rb"([A-Za-z0-9]+)(?: |\Z)")
_CONTROLS = re.compile(f"[{_CONTROL}]")


class BadCommand(ValueError):
    """A peer's command breaks the grammar; the session may go on (501 or 500).

    Args:
        rule: short stable name of the broken rule.
        text: what is wrong, safe to be sent back.
    """

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule
        self.text = text


class Command(Struct, frozen=True, gc=False, kw_only=True):
    """A command line taken apart: upper-case verb, argument without outer spaces."""

    verb: str
    argument: str


def _greeting(verb: str, name: str) -> bytes:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{verb} name {name!r} must be printable ASCII without spaces: a host name or [literal]"
        )
    return f"{verb} {name}\r\n".encode("ascii")


def ehlo(name: str) -> bytes:
    """``EHLO name`` (RFC 5321 section 4.1.1.1). Raises ValueError for a name that is no word."""
    return _greeting("EHLO", name)


def helo(name: str) -> bytes:
    """``HELO name``, for peers that refuse EHLO. Raises ValueError as ``ehlo``."""
    return _greeting("HELO", name)


def _path(address: str, null: bool, smtputf8: bool) -> str:
    if not _MAILBOX.fullmatch(address) and not (
        not address if null else address.lower() == "postmaster"
    ):
        raise ValueError(
            f"address {address!r} is no local@domain path (RFC 5321 section 4.1.2); quote the "
            "local part or correct it before it is enqueued"
        )
    if not smtputf8 and not address.isascii():
        raise ValueError(f"address {address!r} needs SMTPUTF8 (RFC 6531); the envelope lacks it")
    return address


def _more(text: str) -> str:
    if text and not _PARAMETERS.fullmatch(text):
        raise ValueError(f"parameters {text!r} are no list of KEYWORD=value, a space before each")
    return text


def mail(
    sender: str,
    *,
    size: int | None = None,
    body: str | None = None,
    smtputf8: bool = False,
    more: str = "",
) -> bytes:
    """``MAIL FROM:<sender>`` with its parameters.

    Args:
        sender: address, or ``""`` for the null reverse-path.
        size: octets of the content (RFC 1870), or None to leave SIZE out.
        body: ``"7BIT"`` or ``"8BITMIME"``, or None to leave BODY out.
        smtputf8: adds SMTPUTF8 and allows UTF-8 in the path.
        more: other parameters, a space before each.

    Raises:
        ValueError: a value that is not exactly one path or parameter.
    """
    out = f"MAIL FROM:<{_path(sender, True, smtputf8)}>"
    if size is not None:
        if size < 0:
            raise ValueError(f"SIZE {size} is negative; give the content's octets or None")
        out += f" SIZE={size}"
    if body is not None:
        if body not in ("7BIT", "8BITMIME"):
            raise ValueError(f"BODY {body!r} must be 7BIT or 8BITMIME (RFC 6152)")
        out += f" BODY={body}"
    if smtputf8:
        out += " SMTPUTF8"
    return (out + _more(more) + "\r\n").encode()


def bdat(octets: int) -> bytes:
    """``BDAT octets LAST`` (RFC 3030 section 2); the octets follow at once."""
    return b"BDAT %d LAST\r\n" % octets


def rcpt(address: str, *, smtputf8: bool = False, more: str = "") -> bytes:
    """``RCPT TO:<address>``; ``postmaster`` alone is allowed (RFC 5321 section 4.1.1.3).

    Args:
        address: the recipient.
        smtputf8: allows UTF-8 in the path.
        more: parameters, a space before each.

    Raises:
        ValueError: not exactly one path, UTF-8 without ``smtputf8``, or no parameters.
    """
    return f"RCPT TO:<{_path(address, False, smtputf8)}>{_more(more)}\r\n".encode()


def parse_command(line: bytes) -> Command:
    """Takes a command line apart.

    Args:
        line: one line without its CRLF.

    Raises:
        BadCommand: ``"syntax"`` (no verb), ``"not-utf8"``, ``"control"``.
    """
    found = _VERB.match(line)
    if found is None:
        raise BadCommand("syntax", "no command verb at the start of the line")
    try:
        argument = line[found.end() :].decode("utf-8").strip(" ")
    except UnicodeDecodeError:
        raise BadCommand("not-utf8", "the command is not UTF-8 (RFC 6531)") from None
    if not argument.isprintable() and _CONTROLS.search(argument):
        raise BadCommand("control", "the command holds control characters")
    return Command(verb=found[1].decode("ascii").upper(), argument=argument)


def _address(path: str, *, sender: bool, bare: bool) -> tuple[str, int]:
    """The address of a path that starts at ``<``, and the index behind its ``>``."""
    route = _ROUTE.match(path, 1)
    start = 1 if route is None else route.end()  # source routes are ignored: RFC 5321 appendix C
    found = _MAILBOX.match(path, start)
    if found is not None:
        address, end = found[0], found.end()
    elif sender and path.startswith("<>"):
        address, end = "", 1
    elif not sender and path[1:12].lower() == "postmaster>":
        address, end = path[1:11], 11
    elif bare and (local := _BARE.match(path, 1)) is not None:
        address, end = local[0], local.end()
    else:
        raise BadCommand("path-syntax", f"no address in {visible(path[:80])}")
    if path[end : end + 1] != ">":
        raise BadCommand("path-syntax", f"the path must end with > in {visible(path[:80])}")
    return address, end + 1


def parse_path(
    argument: str, keyword: str = "", *, bare: bool = False
) -> tuple[str, dict[str, str | None]]:
    """The address and parameters of a MAIL or RCPT argument (RFC 5321 section 4.1.2).

    Args:
        argument: ``FROM:<path> [KEY[=VALUE]]...`` or ``TO:...``; a space behind the colon is
            tolerated, source routes are dropped.
        keyword: ``"FROM"`` or ``"TO"`` to insist on one; ``""`` takes either.
        bare: a local part alone is an address, too; ``postmaster`` is one behind TO in any case
            (RFC 5321 section 4.5.1).

    Returns:
        The address (``""`` for the null reverse-path; quoting as sent) and the parameters by
        upper-case keyword, None for one without a value.

    Raises:
        BadCommand: ``"path-syntax"``, ``"parameter-syntax"``, ``"duplicate-parameter"``.
    """
    common = _COMMON.match(argument)
    if common is not None and (not keyword or common[1].upper() == keyword):
        end = common.end()
        return common[2], _parameters(argument[end:]) if len(argument) > end else {}
    head, colon, tail = argument.partition(":")
    given = head.strip(" ").upper()
    if not colon or given not in ("FROM", "TO") or (keyword and given != keyword.upper()):
        raise BadCommand("path-syntax", f"expected {keyword or 'FROM or TO'}:<address>")
    tail = tail.lstrip(" ")
    if not tail.startswith("<"):
        raise BadCommand("path-syntax", "the address must stand in angle brackets")
    address, end = _address(tail, sender=given == "FROM", bare=bare)
    return address, _parameters(tail[end:])


def _parameters(rest: str) -> dict[str, str | None]:
    """What stands behind a path, by upper-case keyword."""
    if rest and not rest.startswith(" "):
        raise BadCommand("path-syntax", "a space must stand between path and parameters")
    params: dict[str, str | None] = {}
    for word in rest.split():
        found = _PARAMETER.fullmatch(word)
        if found is None:
            raise BadCommand("parameter-syntax", f"no KEYWORD=value: {visible(word[:80])}")
        key = found[1].upper()
        if key in params:
            raise BadCommand("duplicate-parameter", f"{key} is given twice")
        params[key] = found[2]
    return params
