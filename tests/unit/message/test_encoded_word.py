"""Encoded-words: bounded, cut between characters, and read back to the same text."""

from __future__ import annotations

import encodings
from email.header import decode_header, make_header

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.errors import InvalidMessage
from mailstrom.message import encoded_word, parameters
from mailstrom.message.charset import codec_of
from mailstrom.message.encoded_word import WORD, decode_words, encode_words

TEXT = st.text(
    alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=120
)  # any script, controls included


@given(TEXT, st.integers(min_value=24, max_value=75))
def test_text_survives_encoding(text: str, first: int) -> None:
    words = encode_words(text, first=first)
    assert decode_words(" ".join(words)) == text
    assert decode_words("\t ".join(words)) == text


@given(TEXT, st.integers(min_value=24, max_value=75))
def test_each_word_stands_alone(text: str, first: int) -> None:
    words = encode_words(text, first=first)
    assert len(words[0]) <= first
    for word in words:
        assert len(word) <= 75
        assert WORD.fullmatch(word)
        assert word.isascii()
        assert "\ufffd" not in decode_words(word).replace("\ufffd" if "\ufffd" in text else "", "")
    assert "".join(decode_words(word) for word in words) == text


@given(st.text(alphabet="aä漢😀 =?_,<>@\"'.", min_size=1, max_size=80))
def test_the_standard_decoder_reads_the_same(text: str) -> None:
    assert str(make_header(decode_header("\n ".join(encode_words(text))))) == text


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("plain", "plain"),
        ("=?utf-8?q?a?= b", "a b"),
        ("a =?utf-8?q?b?=", "a b"),
        ("=?utf-8?q?a_b?=", "a b"),
        ("=?ISO-8859-1?Q?J=F6rg?=", "Jörg"),
        ("=?utf-8*de?B?SsO2cmc=?=", "Jörg"),
        ("=?utf-8?b?SsO2cmc?=", "Jörg"),
        ("=?utf-8?q?=C3?= =?utf-8?q?=B6?=", "ö"),
        ("=?utf-8?q?=C3?= =?latin-1?q?=B6?=", "\ufffd¶"),
        ("=?no-such?q?a?=", "=?no-such?q?a?="),
        ("=?hex?q?61?=", "=?hex?q?61?="),
        ("=?utf-8?x?a?=", "=?utf-8?x?a?="),
        ("=?utf-8?q?a", "=?utf-8?q?a"),
        ("=?", "=?"),
    ],
)
def test_reads_what_others_wrote(text: str, decoded: str) -> None:
    assert decode_words(text) == decoded


class Octets(bytes):
    """Counts what is copied when it is appended to other octets."""

    copied = 0

    def __radd__(self, other: bytes) -> bytes:
        Octets.copied += len(other)
        return bytes(other) + bytes(self)


def test_a_long_subject_is_decoded_without_copying_it_for_each_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    octets = encoded_word._octets
    monkeypatch.setattr(encoded_word, "_octets", lambda *given: Octets(octets(*given)))
    monkeypatch.setattr(Octets, "copied", 0)
    words = encode_words("äx" * 20_000)
    assert len(words) > 500
    assert decode_words(" ".join(words)) == "äx" * 20_000
    assert Octets.copied <= 60_000


def test_a_long_parameter_is_joined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    unquoted = parameters._unescaped
    monkeypatch.setattr(parameters, "_unescaped", lambda text: Octets(unquoted(text)))
    monkeypatch.setattr(Octets, "copied", 0)
    pieces = [f"; n*{index}*={'utf-8' * (not index)}{chr(39) * 2 * (not index)}%C3%A4{'x' * 40}"
              for index in range(2_000)]  # fmt: skip
    found = parameters.parse_parameterised("a/b" + "".join(pieces), header="Content-Type")
    assert found.get("n") == ("ä" + "x" * 40) * 2_000
    assert Octets.copied <= 2_000 * 42


@given(st.text(max_size=60), st.sampled_from(["q", "b", "Q", "B"]), st.text(max_size=10))
def test_no_word_makes_the_decoder_fail(payload: str, encoding: str, charset: str) -> None:
    decode_words(f"x =?{charset}?{encoding}?{payload}?= y")


@pytest.mark.parametrize("name", ["punycode", "idna", "unicode_escape", "undefined", "rot13"])
def test_a_codec_that_is_no_charset_is_none(name: str) -> None:
    word = f"=?{name}?q?abc-?="
    assert decode_words(word) == word
    with pytest.raises(InvalidMessage):
        parameters.parse_parameterised(f"a/b; n*={name}''abc-", header="Content-Type")


@pytest.mark.parametrize(
    "name",
    ["utf-8", "UTF8", "US-ASCII", "iso-8859-1", "ISO-8859-15", "windows-1252", "koi8-r", "koi8-u",
     "gb18030", "shift_jis", "iso-2022-jp", "euc-kr", "ks_c_5601-1987", "big5", "cp874", "utf-7",
     "macintosh", "ansi_x3.4-1968"],
)  # fmt: skip
def test_the_charsets_of_mail_are_known_as_the_interpreter_knows_them(name: str) -> None:
    assert b"abc".decode(codec_of(name)) == b"abc".decode(name)


def test_unknown_charsets_are_not_remembered_by_the_interpreter() -> None:
    before = len(encodings._cache)  # type: ignore[attr-defined]
    text = " - ".join(f"=?x-none-{number}?q?a?=" for number in range(500))
    assert decode_words(text) == text
    assert len(encodings._cache) == before  # type: ignore[attr-defined]
