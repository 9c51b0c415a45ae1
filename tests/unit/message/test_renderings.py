"""Python's own serialiser beside ours, case by case: tools/renderings.py holds the cases."""

from __future__ import annotations

import importlib.util
import sys
from email import message_from_bytes, policy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mailstrom.errors import InvalidMessage
from mailstrom.message import compose, parse
from mailstrom.message.address_list import mailboxes

FILE = Path(__file__).resolve().parents[3] / "tools" / "renderings.py"


def cases() -> ModuleType:
    spec = importlib.util.spec_from_file_location("renderings", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["renderings"] = module
    spec.loader.exec_module(module)
    return module


RENDERINGS = cases()


@pytest.mark.parametrize("case", RENDERINGS.CASES, ids=[case.title for case in RENDERINGS.CASES])
def test_what_is_sent_means_what_was_said(case: Any) -> None:
    if case.rule is not None:
        with pytest.raises(InvalidMessage) as caught:
            RENDERINGS.after(case)
        assert caught.value.rule == case.rule
        assert caught.value.header == case.field
        return
    prepared = compose(case.build(), now=RENDERINGS.NOW, id_domain_fallback="a.example")
    strict = parse(prepared.content)
    assert strict.render() == prepared.content
    if case.keys is not None:
        assert prepared.recipients == case.keys
        if case.field != "Bcc":
            assert tuple(box.address.key for box in mailboxes(strict.to)) == case.keys
    if case.text is not None:
        (field,) = strict.get(case.field)
        assert field.text == case.text.strip()
        theirs = message_from_bytes(prepared.content, policy=policy.default)
        assert str(theirs[case.field]) == case.text
    assert b"secret" not in prepared.content


def test_each_case_has_a_rendering_of_this_python() -> None:
    for case in RENDERINGS.CASES:
        assert RENDERINGS.before(case)


@pytest.mark.skipif(sys.version_info[:3] != (3, 11, 7), reason="faults of CPython 3.11.7")
@pytest.mark.parametrize(
    ("title", "octets"),
    [
        ("An encoded name becomes recipients", b"To:\r\n Good, boss@bank.example, a name "),
        ("A recipient is lost", b"\r\n =?utf-8?q?=2C?= von <b@x.example>\r\n"),
        ("A long quoted name becomes recipients", b"To: long name, with comma long name, "),
        ("An address is encoded", b"<=?utf-8?q?j=C3=B6rg?=@b.example>"),
        ("A domain is encoded", b"<ann@=?utf-8?q?b=C3=BCcher?=.example>"),
        ("An encoded-word inside an address is decoded", b"To: evil@x.y@b.example\r\n"),
        ("A subject makes a Bcc header", b"\r\nBcc: x@evil.example\r\n"),
        ("A subject makes a body", b"\r\n\r\nNot your body\r\n"),
        ("A blank continuation ends the headers", b"Subject: a\r\n \r\n b\r\n"),
        ("An empty encoded-word", b"=?utf-8?q??="),
        ("A space is lost or added", b"?=\r\n  =?utf-8?b?"),
        ("Message-IDs are encoded", b"References: =?utf-8?q?=3Caaa"),
        ("The unsubscribe link is encoded", b"List-Unsubscribe: =?utf-8?q?=3Chttps"),
        ("Blind copies are sent", b"Bcc: secret@x.example\r\n"),
        ("A date is emptied", b"Date:\r\n"),
    ],
)
def test_the_library_still_writes_it_so(title: str, octets: bytes) -> None:
    (case,) = (case for case in RENDERINGS.CASES if case.title == title)
    assert octets in RENDERINGS.before(case)
    if case.rule is None:
        assert octets not in RENDERINGS.after(case)
