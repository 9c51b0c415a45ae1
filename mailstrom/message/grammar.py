"""Lexical pieces of RFC 5322 section 3.2 on unfolded text: white space, comments, quoted strings.

Pure functions from (text, offset) to an offset, linear in time. Comments nest to a bound; whatever
does not close is refused by name. Obsolete forms are left to the callers, who refuse them.
"""

from __future__ import annotations

import re

from mailstrom.errors import InvalidMessage

COMMENT_DEPTH = 32
# Octets of one text within a field: a parameter's value, a display name. RFC 5322 bounds lines, not
# what is folded into many; servers take a field of about 100,000 octets, Postfix cuts it there.
TEXT_LIMIT = 65_536

_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*+)"')
_COMMENT_STEP = re.compile(r"(?:[^()\\]|\\.)*+")
# Printable ASCII round one @; stricter readers exist, but what others made is not ours to rewrite.
_MESSAGE_ID = re.compile(r'<(?:"(?:[^"\\]|\\.)*+"|[!-;=?A-~]++)@[!-;=?A-~]++>')

# ASCII controls but TAB, C1 controls, and the separators that some readers take for line breaks.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]")
LINE_BREAK = re.compile("[\r\n\0]")


def skip_cfws(text: str, at: int, header: str) -> int:
    """Offset behind comments and white space (RFC 5322 section 3.2.2).

    Args:
        text: unfolded header value.
        at: where to start.
        header: header name for the error.

    Raises:
        InvalidMessage: rule ``"comment"``: a comment does not close or nests too deep.
    """
    end = len(text)
    while at < end:
        char = text[at]
        if char in " \t":
            at += 1
        elif char == "(":
            at = _skip_comment(text, at, header)
        else:
            break
    return at


def _skip_comment(text: str, at: int, header: str) -> int:
    depth = 0
    while at < len(text):
        char = text[at]
        if char == "(":
            depth += 1
            at += 1
        elif char == ")":
            depth -= 1
            at += 1
        if depth == 0:
            return at
        if depth > COMMENT_DEPTH:
            break
        match = _COMMENT_STEP.match(text, at)
        step = at if match is None else match.end()
        if step == at and text[at : at + 1] not in ("(", ")"):
            break
        at = step
    raise refusal(
        header, "has a comment that does not close", "balance the parentheses", text, "comment"
    )


def quoted_string(text: str, at: int) -> tuple[str, int] | None:
    """The quoted string at ``at``: its unescaped content and the offset behind it, or None."""
    match = _QUOTED.match(text, at)
    if match is None:
        return None
    content = match[1]
    if "\\" in content:
        # pair by pair; a search for each would take a second for a megabyte of them
        content = "\\".join(part.replace("\\", "") for part in content.split("\\\\"))
    return content, match.end()


def message_ids(text: str, *, header: str) -> list[str] | None:
    """Identifiers of section 3.6.4, comments and white space round them left out.

    Args:
        text: unfolded header value.
        header: header name for the error inside.

    Returns:
        The identifiers with their angle brackets, or None: something else stands there, too.
    """
    if _MESSAGE_ID.fullmatch(text) is not None:  # what nearly all fields hold
        return [text]
    found: list[str] = []
    try:
        at = skip_cfws(text, 0, header)
        while at < len(text):
            match = _MESSAGE_ID.match(text, at)
            if match is None:
                return None
            found.append(match[0])
            at = skip_cfws(text, match.end(), header)
    except InvalidMessage:  # a comment that does not close
        return None
    return found


def longer_than(text: str, octets: int) -> bool:
    """Whether a text is longer in UTF-8."""
    if len(text) * 4 <= octets:
        return False
    return len(text) > octets or len(text.encode("utf-8", "surrogatepass")) > octets


def quote(text: str) -> str:
    """Quoted string of RFC 5322 section 3.2.4 for printable ASCII text."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def refusal(header: str, what: str, fix: str, value: object, rule: str) -> InvalidMessage:
    """InvalidMessage in the house's form: what, where, and what to do."""
    shown = repr(value)[:120]
    return InvalidMessage(
        f"header {header} {what}: {shown}; {fix}", header=header, value=value, rule=rule
    )
