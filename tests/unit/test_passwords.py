"""Hashes of passwords: ours, those of other programs, and those that would cost too much."""

from __future__ import annotations

import base64
import hashlib

import pytest

from mailstrom.passwords import LONGEST_PASSWORD, hash_password, matches, require_hash


def _scrypt(password: bytes, *, ln: int = 4, r: int = 8, p: int = 1) -> str:
    salt = b"0123456789abcdef"
    hashed = hashlib.scrypt(password, salt=salt, n=1 << ln, r=r, p=p, dklen=32)
    shown = (base64.b64encode(octets).decode().rstrip("=") for octets in (salt, hashed))
    return f"$scrypt$ln={ln},r={r},p={p}$" + "$".join(shown)


def test_what_is_made_matches_its_password_alone_and_is_made_anew_each_time() -> None:
    first, second = hash_password("grüße"), hash_password("grüße")

    assert first != second
    require_hash(first)
    assert matches("grüße", first)
    assert matches("grüße", second)
    assert not matches("grusse", first)
    assert not matches("", first)


def test_both_ways_to_write_a_letter_are_one_password() -> None:
    assert matches("gru\u0308n", hash_password("gr\u00fcn"))


def test_a_hash_of_another_program_is_understood() -> None:
    assert matches("secret", _scrypt(b"secret"))
    assert not matches("Secret", _scrypt(b"secret"))


def test_argon2id_of_another_program_is_understood() -> None:
    argon2 = pytest.importorskip("cryptography.hazmat.primitives.kdf.argon2")
    made = argon2.Argon2id(salt=b"0" * 16, length=32, iterations=1, lanes=1, memory_cost=64)
    text = made.derive_phc_encoded(b"secret")

    require_hash(text)
    assert matches("secret", text)
    assert not matches("Secret", text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "secret",
        "$2b$12$abcdefghijklmnopqrstuv",
        "$scrypt$ln=14,r=8$c2FsdHNhbHQ$aGFzaGhhc2g",
        "$scrypt$ln=20,r=8,p=1$c2FsdHNhbHQ$aGFzaGhhc2g",  # a gibibyte
        "$scrypt$ln=14,r=8,p=99$c2FsdHNhbHQ$aGFzaGhhc2g",
        "$scrypt$ln=0,r=8,p=1$c2FsdHNhbHQ$aGFzaGhhc2g",
        "$argon2id$v=19$m=999999,t=3,p=4$c2FsdHNhbHQ$aGFzaGhhc2g",
        "$argon2i$v=19$m=64,t=3,p=4$c2FsdHNhbHQ$aGFzaGhhc2g",
        "$scrypt$ln=14,r=8,p=1$c2FsdHNhbHQ$aGFzaGhhc2g\n",
    ],
)
def test_what_is_no_hash_or_costs_too_much_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="hash"):
        require_hash(text)
    with pytest.raises(ValueError, match="hash"):
        matches("secret", text)


def test_a_password_of_any_length_costs_nothing() -> None:
    assert not matches("x" * (LONGEST_PASSWORD + 1), hash_password("x"))
