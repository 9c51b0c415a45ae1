"""One mailbox address: the strict grammar of RFC 5321 section 4.1.2 with RFC 6531 local parts.

Rules: dot-atom or quoted local part of at most 64 octets; a domain of LDH labels (at most 63 octets
each, 255 in all), lower-cased, U-labels turned into A-labels by IDNA2008; or an address literal
of RFC 5321 section 4.1.3, normalised. No comments, no routes, no obsolete forms, no white space
outside quotes. The local part is kept as given: only its own site may interpret it. Knows nothing
of headers beyond the name it is told for its error messages.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache

from mailstrom.errors import InvalidAddress
from mailstrom.value import value

LOCAL_OCTETS = 64
DOMAIN_OCTETS = 255
LABEL_OCTETS = 63

_ATEXT = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~\-"
_LABEL = r"[A-Za-z0-9]++(?:-++[A-Za-z0-9]++)*+"
_DOT_ATOM = rf"[{_ATEXT}]++(?:\.[{_ATEXT}]++)*+"

# Possessive quantifiers: one pass, no backtracking, whatever the input.
_PLAIN = re.compile(rf"({_DOT_ATOM})@({_LABEL}(?:\.{_LABEL})*+)").fullmatch
_LDH = re.compile(_LABEL).fullmatch
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]").search
_ENCODED_WORD = re.compile(r"=\?[^?]+\?[bBqQ]\?").search


# Compiled at first use: nearly all addresses are plain, and each program pays for its start.
@cache
def _dot_atom_utf8() -> Callable[[str], re.Match[str] | None]:
    utf8 = rf"[{_ATEXT}\u0080-\U0010ffff]++"
    return re.compile(rf"{utf8}(?:\.{utf8})*+").fullmatch


@cache
def _quoted() -> Callable[[str], re.Match[str] | None]:
    return re.compile(r'"(?:[ !#-\[\]-~\u0080-\U0010ffff]|\\[ -~])*+"').fullmatch


@value
class Address:
    """A mailbox that passed ``parse_address``.

    Args:
        local: the local part as given, quotes included.
        domain: lower-case A-label domain, or an address literal with its brackets.
    """

    local: str
    domain: str

    @property
    def key(self) -> str:
        """Identity of the mailbox: local part as given @ normalised domain."""
        return f"{self.local}@{self.domain}"

    @property
    def smtputf8(self) -> bool:
        """Whether this address can only travel with SMTPUTF8 (RFC 6531)."""
        return not self.local.isascii()


def parse_address(text: str, *, header: str | None = None) -> Address:
    """Check one addr-spec and normalise its domain.

    Args:
        text: ``local@domain`` without display name, angle brackets or surrounding white space.
        header: name of the header or argument the text came from, for the error.

    Returns:
        The address.

    Raises:
        InvalidAddress: with ``.rule`` saying what is broken (RFC 5321 section 4.1.2, 5890, 6531).
    """
    plain = plain_parts(text) if isinstance(text, str) else None
    if plain is not None:
        return Address(local=plain[0], domain=plain[1])
    return _parse_slowly(text, header)


def plain_parts(text: str) -> tuple[str, str] | None:
    """Local part and normalised domain of an address as nearly all are; None: ask further.

    Args:
        text: as for ``parse_address``; what is taken here reads the same in an address list.
    """
    match = _PLAIN(text)
    if match is not None:
        local, domain = match.groups()
        if len(local) <= LOCAL_OCTETS and len(domain) <= LABEL_OCTETS and "=?" not in local:
            return local, domain.lower()
    return None


def parse_domain(text: str, *, header: str | None = None, value: object = None) -> str:
    """Normalise a domain or address literal.

    Args:
        text: a domain name, U-labels allowed, or ``[192.0.2.1]`` / ``[IPv6:...]``.
        header: name of the header or argument, for the error.
        value: what to show in the error; ``text`` by default.

    Returns:
        The lower-case A-label domain, or the literal in canonical form.

    Raises:
        InvalidAddress: the text is neither (RFC 5321 sections 4.1.2 and 4.1.3, RFC 5891).
    """
    value = text if value is None else value
    if not text:
        raise _refusal("has no domain", "write local@domain", header, value, "domain-empty")
    if text.startswith("["):
        return _literal(text, header, value)
    if len(text) > DOMAIN_OCTETS:
        raise _refusal_long_domain(header, value)
    if not text.isascii():
        text = _a_labels(text, header, value)
    domain = text.lower()
    if len(domain) > DOMAIN_OCTETS:
        raise _refusal_long_domain(header, value)
    for label in domain.split("."):
        if _LDH(label) is not None and len(label) <= LABEL_OCTETS:
            continue
        raise _refusal_label(label, header, value)
    return domain


def _refusal_long_domain(header: str | None, value: object) -> InvalidAddress:
    return _refusal(
        f"has a domain of more than {DOMAIN_OCTETS} octets",
        "check the address for missing separators",
        header,
        value,
        "domain-too-long",
    )


def quote_local(local: str) -> str:
    """Wire form of an unquoted local part: itself if a dot-atom, else a quoted string.

    Args:
        local: the local part as a person reads it, without quoting.

    Returns:
        The dot-atom or quoted string of RFC 5321 section 4.1.2; not checked for controls.
    """
    if _dot_atom_utf8()(local) is not None:
        return local
    return '"' + local.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _parse_slowly(text: str, header: str | None) -> Address:
    if not isinstance(text, str):
        raise _refusal(
            f"is a {type(text).__name__}, not a str",
            "pass 'local@domain' as text",
            header,
            text,
            "address-type",
        )
    if not text:
        raise _refusal("is empty", "write local@domain", header, text, "address-empty")
    if _CONTROL(text) is not None:
        raise _refusal(
            "contains a control character or line break",
            "remove it; addresses are one line of printable text",
            header,
            text,
            "address-control",
        )
    at = text.find("@", _end_of_quoted(text)) if text.startswith('"') else text.rfind("@")
    if at < 0:
        raise _refusal("has no @", "write local@domain", header, text, "address-no-at")
    local, domain = text[:at], text[at + 1 :]
    _check_local(local, header, text)
    if not domain.startswith("["):
        for char, rule in ((" ", "address-space"), ("<", "address-angle"), (">", "address-angle")):
            if char in domain:
                raise _refusal(
                    f"contains {char!r} in its domain",
                    "pass the bare local@domain",
                    header,
                    text,
                    rule,
                )
    return Address(local=local, domain=parse_domain(domain, header=header, value=text))


def _end_of_quoted(text: str) -> int:
    """Offset behind the closing quote of the quoted string at the start of ``text``."""
    offset = 1
    while offset < len(text):
        if text[offset] == "\\":
            offset += 2
        elif text[offset] == '"':
            return offset + 1
        else:
            offset += 1
    return len(text)


def _check_local(local: str, header: str | None, text: str) -> None:
    if not local:
        raise _refusal("has no local part", "write local@domain", header, text, "local-empty")
    if len(local.encode("utf-8", "surrogatepass")) > LOCAL_OCTETS:
        raise _refusal(
            f"has a local part of more than {LOCAL_OCTETS} octets",
            "RFC 5321 section 4.5.3.1.1 allows no more",
            header,
            text,
            "local-too-long",
        )
    if not local.isascii() and any(unicodedata.category(c)[0] == "Z" for c in local if c > "\x7f"):
        raise _refusal("contains a non-ASCII space", "remove it", header, text, "address-space")
    if local.startswith('"'):
        if _quoted()(local) is None:
            raise _refusal(
                "has a malformed quoted local part",
                'escape " and \\ with \\ and close the quotes right before the @',
                header,
                text,
                "local-quoting",
            )
        return
    if _dot_atom_utf8()(local) is None:
        for rule, what, fault in (
            ("address-space", "contains a space outside quotes", " " in local),
            ("address-angle", "contains < or >", "<" in local or ">" in local),
            ("local-dot", "has a misplaced dot", local.startswith(".") or local.endswith(".")),
            ("local-dot", "has two dots in a row", ".." in local),
            ("local-character", "has a character that needs quotes", True),
        ):
            if fault:
                raise _refusal(
                    what, "pass the bare local@domain, quoted if need be", header, text, rule
                )
    if _ENCODED_WORD(local) is not None:
        # RFC 2047 section 5 forbids encoded-words in addresses, and some readers decode them: what
        # the address is would depend on who reads it.
        raise _refusal(
            "has an encoded-word as local part",
            "decode it first; RFC 2047 section 5 allows none in an address",
            header,
            text,
            "local-encoded-word",
        )


def _refusal_label(label: str, header: str | None, value: object) -> InvalidAddress:
    if not label:
        what, rule = "has an empty label in its domain", "domain-label-empty"
    elif len(label) > LABEL_OCTETS:
        what, rule = f"has a label of more than {LABEL_OCTETS} octets", "domain-label-too-long"
    elif re.search(r"[^a-z0-9-]", label):
        what, rule = f"has a forbidden character in the label {label!r}", "domain-character"
    else:
        what, rule = f"has a hyphen at an end of the label {label!r}", "domain-label-hyphen"
    return _refusal(
        what, "write a DNS host name of letters, digits and hyphens", header, value, rule
    )


def _a_labels(domain: str, header: str | None, value: object) -> str:
    # Loaded only here: most mail never sees a U-label, and import time is a promise.
    import idna

    try:
        folded = unicodedata.normalize("NFC", domain.lower())
        return idna.encode(folded).decode("ascii")
    except (idna.IDNAError, UnicodeError) as error:
        reason = str(error)
    raise _refusal(
        f"has a domain that IDNA2008 does not allow ({reason})",
        "check the spelling, or pass the A-label form (xn--...)",
        header,
        value,
        "domain-idna",
    )


def _literal(text: str, header: str | None, value: object) -> str:
    import ipaddress

    body = text[1:-1] if text.endswith("]") else ""
    try:
        if body[:5].lower() == "ipv6:" and "%" not in body:
            return f"[IPv6:{ipaddress.IPv6Address(body[5:])}]"
        return f"[{ipaddress.IPv4Address(body)}]"
    except ValueError:
        pass
    raise _refusal(
        "has a malformed address literal",
        "write [192.0.2.1] or [IPv6:2001:db8::1]",
        header,
        value,
        "domain-literal",
    )


def _refusal(what: str, fix: str, header: str | None, value: object, rule: str) -> InvalidAddress:
    where = f"address in {header}" if header else "address"
    shown = repr(value)[:120]
    return InvalidAddress(f"{where} {what}: {shown}; {fix}", header=header, value=value, rule=rule)
