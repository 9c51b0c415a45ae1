"""The worst shapes of text: headers, addresses, messages, configuration, what is to be printed."""

from __future__ import annotations

from datetime import UTC, datetime
from email.message import Message

from mailstrom.message import compose, fingerprint, parse
from mailstrom.message.address_list import parse_address_list
from mailstrom.message.encoded_word import decode_words, encode_words
from mailstrom.message.grammar import TEXT_LIMIT
from mailstrom.message.head import HEAD_LIMIT
from mailstrom.message.parameters import (
    Parameterised,
    parse_parameterised,
    render_parameterised,
)
from mailstrom.message.report import render_report
from mailstrom.message.report_facts import Fate, Original
from mailstrom.message.submission import Trace, submitted
from mailstrom.printable import printable
from mailstrom.smtp.reply import visible
from mailstrom.tomlfile import tables
from tests.hostile.fuzz_rest import scratch
from tests.hostile.fuzz_shapes import Done, Shapes, refused

shape = Shapes()
NOW = datetime(2026, 1, 2, tzinfo=UTC)
HANDED_IN = Trace("mx.example.org", "0190", 1_800_000_000_000, "c.example", "192.0.2.1")
FROM = b"From: a@b.example\r\n"
_PART = b"--b\r\nContent-Type: multipart/x; boundary=%d\r\n\r\n\xc3\xa9\r\n"
_INSIDE = b"--b\r\nContent-Type: multipart/x; boundary=b\r\n\r\n\xc3\xa9\r\n"
_MULTIPART = FROM + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"


def _with(name: str, value: str) -> Done:
    """A message object with this field is sent."""

    def done() -> None:
        message = Message()
        message["From"], message[name] = "a@b.example", value
        message.set_payload("x")
        compose(
            message, sender="", recipients=["c@d.example"], now=NOW, id_domain_fallback="x.example"
        )

    return done


def _sent(data: bytes, *, hashed: bool = True) -> Done:
    def done() -> None:
        prepared = compose(
            data, sender="", recipients=["c@d.example"], now=NOW, id_domain_fallback="x.example"
        )
        if hashed:
            fingerprint(prepared)

    return done


def _handed_in(data: bytes) -> Done:
    def done() -> None:
        with refused():
            submitted(data, "a@b.example", ("c@d.example",), HANDED_IN)

    return done


def _toml(data: bytes) -> Done:
    def done() -> None:
        with scratch(data) as name:
            tables(name)

    return done


def _listed(text: str) -> Done:
    return lambda: parse_address_list(text, header="To")


def _reported(content: bytes, *fates: Fate) -> Done:
    original = Original("id", "a@b.example", "<a@b.example>", None, 0, content, True)
    told = fates or (Fate("c@d.example", "failed"),)
    return lambda: render_report(
        original, told, hostname="b.example", author="m@b.example", now_ms=0
    )


@shape("reports", "a reply of many words", octets=2)
def reports_words(n: int) -> Done:
    return _reported(b"", Fate("c@d.example", "failed", reply_code=550, reply_text="x " * n))


@shape("reports", "one word", octets=1)
def reports_word(n: int) -> Done:
    return _reported(b"", Fate("c" * n, "failed", reply_code=550, reply_text="\u202e" * n))


@shape("reports", "many recipients", octets=40)
def reports_recipients(n: int) -> Done:
    n = n // 16 + 1
    return _reported(b"", *(Fate(f"{m}@d.example", "failed", reply_text=f"{m}") for m in range(n)))


@shape("reports", "a subject that is folded", octets=20)
def reports_subject(n: int) -> Done:
    return _reported(b"Subject:" + b" =?utf-8?q?=C3=A4?=\r\n" * n + b"\r\nx\r\n")


@shape("reports", "lines of UTF-8", octets=4)
def reports_lines(n: int) -> Done:
    return _reported(b"Subject: \xc3\xa4\r\n\r\n" + b"\xc3\xa4\r\n" * n)


@shape("headers", "encoded-words", octets=18)
def headers_encoded_words(n: int) -> Done:
    return lambda: decode_words("=?utf-8?q?=C3=A4?= " * n)


@shape("headers", "beginnings of encoded-words", octets=4)
def headers_beginnings_of_encoded_words(n: int) -> Done:
    return lambda: decode_words("=?a?" * n)


@shape("headers", "a word of domain names", octets=1)
def headers_a_word_of_domain_names(n: int) -> Done:
    return lambda: decode_words("=?punycode?q?" + "a" * n + "-" + "b" * n + "?=")


@shape("headers", "charsets nobody knows", octets=14)
def headers_charsets_nobody_knows(n: int) -> Done:
    return lambda: [decode_words(f"=?x{i}?q?a?=") for i in range(n)]


@shape("headers", "text to encode", octets=2)
def headers_text_to_encode(n: int) -> Done:
    return lambda: encode_words("ä" * n)


@shape("headers", "parameters", octets=8)
def headers_parameters(n: int) -> Done:
    return lambda: parse_parameterised("a/b" + "".join(f"; n{i}=x" for i in range(n)), header="X")


@shape("headers", "pieces of a parameter", octets=10)
def headers_pieces_of_a_parameter(n: int) -> Done:
    return lambda: parse_parameterised(
        "a/b" + "".join(f"; n*{i}=x" for i in range(min(n, 9999))), header="X"
    )


@shape("headers", "a parameter of quotes", octets=2)
def headers_a_parameter_of_quotes(n: int) -> Done:
    return lambda: parse_parameterised('a/b; n="' + '\\"' * n, header="X")


@shape("headers", "a parameter to encode", octets=2, most=TEXT_LIMIT // 2)
def headers_a_parameter_to_encode(n: int) -> Done:
    value = Parameterised(value="attachment", parameters=(("filename", "ä" * n),))
    return lambda: render_parameterised(value, header="Content-Disposition")


@shape("headers", "a parameter of any length", octets=2)
def headers_a_parameter_of_any_length(n: int) -> Done:
    return _with("Content-Disposition", 'attachment; filename="' + "ä" * n + '"')


@shape("headers", "a parameter of escapes", octets=3)
def headers_a_parameter_of_escapes(n: int) -> Done:
    return _with("Content-Disposition", "attachment; filename*=utf-8''" + "%41" * n)


@shape("headers", "a parameter of quotes, written again", octets=2)
def headers_a_parameter_of_quotes_written_again(n: int) -> Done:
    return _with("Content-Disposition", 'attachment; filename="' + '\\"' * n + '"')


@shape("headers", "a display name to encode", octets=2)
def headers_a_display_name_to_encode(n: int) -> Done:
    return _with("To", "ä" * n + " <a@b.example>")


@shape("headers", "a display name of quotes", octets=1)
def headers_a_display_name_of_quotes(n: int) -> Done:
    return _with("To", '"' * n)


@shape("headers", "a display name of escaped quotes", octets=2)
def headers_a_display_name_of_escaped_quotes(n: int) -> Done:
    return _with("To", '"' + '\\"' * n + '" <a@b.example>')


@shape("headers", "a display name of encoded-words", octets=18)
def headers_a_display_name_of_encoded_words(n: int) -> Done:
    return _with("To", "=?utf-8?q?=C3=A4?= " * n + "<a@b.example>")


@shape("addresses", "nested comments", octets=2)
def addresses_nested_comments(n: int) -> Done:
    return _listed("(" * n + ")" * n + "a@b.example")


@shape("addresses", "comments", octets=3)
def addresses_comments(n: int) -> Done:
    return _listed("(a)" * n + "a@b.example")


@shape("addresses", "a list", octets=13)
def addresses_a_list(n: int) -> Done:
    return _listed("a@b.example, " * n)


@shape("addresses", "empty entries", octets=1)
def addresses_empty_entries(n: int) -> Done:
    return _listed("," * n)


@shape("addresses", "a spaced address", octets=4)
def addresses_a_spaced_address(n: int) -> Done:
    return _listed("a . " * n + "a @ b.example")


@shape("addresses", "groups", octets=4)
def addresses_groups(n: int) -> Done:
    return _listed("g:;," * n)


@shape("addresses", "groups in groups", octets=2)
def addresses_groups_in_groups(n: int) -> Done:
    return _listed("g:" * n)


@shape("addresses", "open quotes", octets=2)
def addresses_open_quotes(n: int) -> Done:
    return _listed('"a' * n)


@shape("addresses", "a display name", octets=2)
def addresses_a_display_name(n: int) -> Done:
    return _listed("a " * n + "<a@b.example>")


@shape("messages", "folds of one field", octets=4)
def messages_folds_of_one_field(n: int) -> Done:
    return _sent(FROM + b"Subject: x" + b"\r\n a" * n + b"\r\n\r\n")


@shape("messages", "fields", octets=8)
def messages_fields(n: int) -> Done:
    return _sent(FROM + b"X-A: b\r\n" * n + b"\r\n")


@shape("messages", "lines that are no field", octets=992)
def messages_lines_that_are_no_field(n: int) -> Done:
    return _sent(FROM + (b"a" * 990 + b"\r\n") * n + b"\r\n")


@shape("messages", "a part of lines that are no field", octets=992)
def messages_a_part_of_lines_that_are_no_field(n: int) -> Done:
    return _sent(FROM + b"Content-Type: message/rfc822\r\n\r\n" + (b"a" * 990 + b"\r\n") * n)


@shape("messages", "a long field that ends nowhere", octets=992)
def messages_a_long_field_that_ends_nowhere(n: int) -> Done:
    return lambda: parse(FROM + (b" " + b"a" * 990 + b"\r\n") * n)


@shape("messages", "a field, read strictly", octets=4)
def messages_a_field_read_strictly(n: int) -> Done:
    return lambda: parse(FROM + b"Subject: x" + b"\r\n a" * n + b"\r\n\r\n")


@shape("messages", "comments, read strictly", octets=6)
def messages_comments_read_strictly(n: int) -> Done:
    return lambda: parse(FROM + b"To: " + b"(a)\r\n " * n + b"a@b.example\r\n\r\n")


@shape("mime", "parts", octets=56)
def mime_parts(n: int) -> Done:
    return _sent(_MULTIPART + b"".join(_PART % i for i in range(n)) + b"--b--\r\n")


@shape("mime", "delimiters that are none", octets=6)
def mime_delimiters_that_are_none(n: int) -> Done:
    return _sent(_MULTIPART + b"--b x\r\n" * n + b"\xc3\xa9\r\n")


@shape("mime", "parts in parts", octets=53)
def mime_parts_in_parts(n: int) -> Done:
    return _sent(
        _MULTIPART
        + b"".join(
            b"--b\r\nContent-Type: multipart/x; boundary=b\r\n\r\n\xc3\xa9\r\n" for _ in range(n)
        )
    )


@shape("mime", "a long boundary", octets=900)
def mime_a_long_boundary(n: int) -> Done:
    return _sent(
        FROM
        + b"Content-Type: multipart/x;"
        + b"".join(b"\r\n boundary*%d=%b;" % (i, b"b" * 900) for i in range(min(n, 9999)))
        + b"\r\n\r\n\xc3\xa9\r\n"
    )


@shape("submission", "lists of To", octets=8, most=HEAD_LIMIT // 8)
def submission_lists_of_to(n: int) -> Done:
    return _handed_in(b"To: a@b\r\n" * n + b"\r\n")


@shape("submission", "addresses without a domain", octets=5, most=HEAD_LIMIT // 5)
def submission_addresses_without_a_domain(n: int) -> Done:
    return _handed_in(b"To: " + b"a,\r\n " * n + b"b\r\n\r\n")


@shape("submission", "comments that open", octets=4, most=HEAD_LIMIT // 4)
def submission_comments_that_open(n: int) -> Done:
    return _handed_in(b"To: " + b"(\r\n " * n + b"b\r\n\r\n")


@shape("submission", "raw text in headers", octets=7, most=HEAD_LIMIT // 7)
def submission_raw_text_in_headers(n: int) -> Done:
    return _handed_in(b"X: \xc3\xbc\r\n" * n + b"\r\n")


@shape("submission", "folds of white space", octets=3, most=HEAD_LIMIT // 3)
def submission_folds_of_white_space(n: int) -> Done:
    return _handed_in(b"X: a\r\n" + b" \r\n" * n + b" b\r\n\r\n")


@shape("submission", "Received", octets=20, most=HEAD_LIMIT // 20)
def submission_received(n: int) -> Done:
    return _handed_in(b"Received: " + b"by mx.example.org\r\n " * n + b"\r\n\r\n")


@shape("submission", "a line", octets=1)
def submission_a_line(n: int) -> Done:
    return _handed_in(b"Subject: x\r\n\r\n" + b"x" * n)


@shape("submission", "a CR alone", octets=1)
def submission_a_cr_alone(n: int) -> Done:
    return _handed_in(b"Subject: x\r\n\r\n" + b"\r" * n)


@shape("submission", "parts", octets=9)
def submission_parts(n: int) -> Done:
    part = b"--b\r\n\r\nx\r\n"
    return _handed_in(_MULTIPART + b"--b\r\n\r\n" + b"x" * 1000 + b"\r\n" + part * n)


@shape("configuration", "a key of many parts", octets=2)
def configuration_a_key_of_many_parts(n: int) -> Done:
    return _toml(b"a" + b".a" * n + b" = 1\n")


@shape("configuration", "keys", octets=10)
def configuration_keys(n: int) -> Done:
    return _toml(b"".join(b"a%d = 1\n" % i for i in range(n)))


@shape("configuration", "tables", octets=8)
def configuration_tables(n: int) -> Done:
    return _toml(b"".join(b"[a%d]\n" % i for i in range(n)))


@shape("configuration", "a long word", octets=1)
def configuration_a_long_word(n: int) -> Done:
    return _toml(b"a" * n)


@shape("configuration", "a value of digits", octets=1)
def configuration_a_value_of_digits(n: int) -> Done:
    return _toml(b"a = " + b"9" * n)


@shape("printing", "escapes", octets=1)
def printing_escapes(n: int) -> Done:
    return lambda: (visible("\x1b" * n), printable("\x1b" * n))
