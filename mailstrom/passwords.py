"""Password hashes: made with scrypt, checked with scrypt or Argon2id, in the PHC string format.

``$scrypt$ln=14,r=8,p=5$SALT$HASH`` and ``$argon2id$v=19$m=65536,t=3,p=4$SALT$HASH``, in base64
without padding, as other programs write them too. Costs that a line may ask for are bounded: it is
computed for whoever knocks. A password is compared in its NFC form (RFC 8265 section 4.2).

Must not know: users, files, who asks.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import unicodedata
from typing import Any, NamedTuple

LONGEST_PASSWORD = 1024
"""Characters; more is nobody's."""

# 16 MiB and five passes over them: what OWASP asks for at least of scrypt.
_LN, _R, _P = 14, 8, 5
_SALT_OCTETS, _HASH_OCTETS = 16, 32
_MOST_MEMORY = 64 << 20
_MOST_PASSES = 32
_B64 = r"[A-Za-z0-9+/]{8,128}"
_SCRYPT = re.compile(rf"\$scrypt\$ln=(\d{{1,2}}),r=(\d{{1,2}}),p=(\d{{1,2}})\$({_B64})\$({_B64})")
_ARGON2 = re.compile(
    rf"\$argon2id\$v=19\$m=(\d{{1,6}}),t=(\d{{1,2}}),p=(\d{{1,2}})\${_B64}\${_B64}"
)


class _Scrypt(NamedTuple):
    ln: int
    r: int
    p: int
    salt: bytes
    hash: bytes


def hash_password(password: str) -> str:
    """A line's hash for a new password, with a salt of its own."""
    salt = os.urandom(_SALT_OCTETS)
    hashed = _scrypt(password, _Scrypt(_LN, _R, _P, salt, bytes(_HASH_OCTETS)))
    return f"$scrypt$ln={_LN},r={_R},p={_P}${_unpadded(salt)}${_unpadded(hashed)}"


def require_hash(text: str) -> None:
    """Raise unless ``text`` is a hash that ``matches`` can check.

    Raises:
        ValueError: says what it should be.
    """
    if _SCRYPT.fullmatch(text):
        _parsed(text)
    elif argon2 := _ARGON2.fullmatch(text):
        memory, passes, lanes = (int(number) for number in argon2.groups())
        if memory << 10 > _MOST_MEMORY or not 1 <= passes <= _MOST_PASSES or not lanes:
            raise ValueError(_COSTLY)
        _argon2id()
    else:
        raise ValueError("no hash of scrypt or Argon2id; 'mailstrom user add' writes one")


def matches(password: str, text: str) -> bool:
    """Whether a password belongs to a hash; takes as long where it does not.

    Raises:
        ValueError: the hash is none that is known here.
    """
    if len(password) > LONGEST_PASSWORD:
        return False
    if text.startswith("$scrypt$"):
        known = _parsed(text)
        return hmac.compare_digest(known.hash, _scrypt(password, known))
    require_hash(text)
    from cryptography.exceptions import InvalidKey

    try:
        _argon2id().verify_phc_encoded(_octets(password), text)
    except InvalidKey:
        return False
    return True


_COSTLY = (
    f"a hash that takes more than {_MOST_MEMORY >> 20} MiB or {_MOST_PASSES} passes;"
    " 'mailstrom user add' writes another"
)


def _parsed(text: str) -> _Scrypt:
    match = _SCRYPT.fullmatch(text)
    if match is None:
        raise ValueError("no hash of scrypt or Argon2id; 'mailstrom user add' writes one")
    ln, r, p = (int(number) for number in match.groups()[:3])
    if not (1 <= ln <= 24 and r >= 1 and 1 <= p <= _MOST_PASSES and 128 * r << ln <= _MOST_MEMORY):
        raise ValueError(_COSTLY)
    try:
        salt, hashed = (
            base64.b64decode(part + "=" * (-len(part) % 4)) for part in match.groups()[3:]
        )
    except binascii.Error:
        raise ValueError("a hash that is no base64; 'mailstrom user add' writes another") from None
    return _Scrypt(ln, r, p, salt, hashed)


def _scrypt(password: str, cost: _Scrypt) -> bytes:
    return hashlib.scrypt(
        _octets(password),
        salt=cost.salt,
        n=1 << cost.ln,
        r=cost.r,
        p=cost.p,
        maxmem=2 * _MOST_MEMORY,
        dklen=len(cost.hash),
    )


def _octets(password: str) -> bytes:
    return unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")


def _argon2id() -> Any:
    """The class that checks Argon2id.

    Raises:
        ValueError: the installed libraries do not have it.
    """
    try:
        from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

        Argon2id.verify_phc_encoded  # noqa: B018 -- a later version's than the class
    except (ImportError, AttributeError):
        raise ValueError(
            "a hash of Argon2id, for which the installed 'cryptography' is too old: install a"
            " newer one, or write the line by 'mailstrom user add'"
        ) from None
    return Argon2id


def _unpadded(octets: bytes) -> str:
    return base64.b64encode(octets).rstrip(b"=").decode()
