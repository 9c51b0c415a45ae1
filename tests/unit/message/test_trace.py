"""The Received field: what is told of a client, and that loops end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.errors import InvalidMessage
from mailstrom.message import parse
from mailstrom.message.submission import (
    Trace,
    enhanced_code,
    protocol,
    relayed,
    submitted,
)
from mailstrom.message.trace import HOPS_LIMIT, OWN_HOPS_LIMIT, is_own, own_name, received

TRACE = Trace("mx.example.org", "id7", 1_800_000_000_000)
REST = b"From: a@b.example\r\nDate: Thu, 01 Jan 2026 00:00:00 +0000\r\n\r\n"


def line(**facts: str) -> str:
    return received(TRACE._replace(**facts)).decode().replace("\r\n\t", " ").strip()


@pytest.mark.parametrize(
    ("helo", "peer", "source"),
    [
        ("client.example", "192.0.2.1", "from client.example ([192.0.2.1]) by"),
        ("MY_PC", "192.0.2.1", "from MY_PC ([192.0.2.1]) by"),
        ("[192.0.2.1]", "192.0.2.1", "from [192.0.2.1] ([192.0.2.1]) by"),
        ("c.example", "2001:db8::1", "from c.example ([IPv6:2001:db8::1]) by"),
        ("c.example", "fe80::1%eth0", "from c.example ([IPv6:fe80::1]) by"),
        ("c.example", "", "from c.example (unknown) by"),
        ("two words", "192.0.2.1", "from [192.0.2.1] ([192.0.2.1]) by"),
        ("x)\r\nBcc: y", "192.0.2.1", "from [192.0.2.1] ([192.0.2.1]) by"),
        ("grün.example", "192.0.2.1", "from [192.0.2.1] ([192.0.2.1]) by"),
        ("a" * 300, "", "from unknown (unknown) by"),
        ("", "not an address", "by"),
        ("", "", "by"),
    ],
)
def test_who_it_came_from(helo: str, peer: str, source: str) -> None:
    assert line(helo=helo, peer=peer).startswith(f"Received: {source} mx.example.org with ESMTP")


def test_a_single_recipient_is_told_and_several_are_not() -> None:
    assert b"\r\n\tfor <bob@b.example>;" in received(TRACE, ("bob@b.example",))
    assert b"for" not in received(TRACE, ("bob@b.example", "eve@e.example"))
    for odd in ('"a b"@b.example', "jürgen@b.example", "a>\r\nBcc: x@b.example"):
        assert b"for" not in received(TRACE, (odd,))


def test_tls_is_a_comment() -> None:
    assert "with ESMTPS (TLSv1.3 TLS_AES_256_GCM_SHA384) id id7;" in line(
        protocol="ESMTPS", tls="TLSv1.3 TLS_AES_256_GCM_SHA384"
    )
    assert "(" not in line(tls="x) by evil (")


def test_the_words_behind_with() -> None:
    assert protocol(extended=False) == protocol(extended=False, tls=True) == "SMTP"
    assert protocol(extended=True) == "ESMTP"
    assert protocol(extended=True, tls=True) == "ESMTPS"
    assert protocol(extended=True, authenticated=True) == "ESMTPA"
    assert protocol(extended=True, tls=True, authenticated=True) == "ESMTPSA"
    assert protocol(extended=True, smtputf8=True) == "UTF8SMTP"
    assert protocol(extended=True, tls=True, authenticated=True, smtputf8=True) == "UTF8SMTPSA"


@given(st.text(), st.text(), st.text(), st.text(), st.text(), st.lists(st.text(), max_size=2))
def test_hostile_text_stays_within_the_field(
    helo: str, peer: str, word: str, tls: str, hostname: str, recipients: list[str]
) -> None:
    trace = Trace(hostname, "id7", 1_800_000_000_000, helo, peer, word, tls)
    field = received(trace, recipients)
    parsed = parse(field + REST)
    assert [one.key for one in parsed.fields] == ["received", "from", "date"]
    assert parsed.received[0].date.timestamp() == 1_800_000_000
    assert max(map(len, field.split(b"\r\n"))) <= 998


@pytest.mark.parametrize("role", [submitted, relayed])
class TestLoops:
    def take(self, role: object, hop: bytes, count: int) -> int:
        assert callable(role)
        found = role(hop * count + REST, "a@b.example", ("c@d.example",), TRACE)
        hops: int = found.hops
        return hops

    def refused(self, role: object, hop: bytes, count: int) -> None:
        with pytest.raises(InvalidMessage) as caught:
            self.take(role, hop, count)
        assert caught.value.rule == "loop"
        assert enhanced_code(caught.value) == "5.4.6"

    def test_a_hundred_hops_are_too_many(self, role: object) -> None:
        hop = b"Received: from a.example by b.example; Thu, 01 Jan 2026 00:00:00 +0000\r\n"
        assert self.take(role, hop, HOPS_LIMIT - 1) == 99
        self.refused(role, hop, HOPS_LIMIT)

    def test_and_so_are_six_of_our_own(self, role: object) -> None:
        hop = received(TRACE._replace(helo="x.example", peer="192.0.2.1"))
        assert self.take(role, hop, OWN_HOPS_LIMIT) == 5
        self.refused(role, hop, OWN_HOPS_LIMIT + 1)

    def test_a_name_in_another_place_is_none_of_ours(self, role: object) -> None:
        hop = b"Received: from mx.example.org by b.example for <mx.example.org@x>; now\r\n"
        assert self.take(role, hop, 50) == 50


def test_names_that_others_have_too_are_not_counted() -> None:
    for name in ("localhost", "localhost.localdomain", "[127.0.0.1]", "[IPv6:::1]", "box"):
        assert not is_own(f" by {name} with SMTP; x".encode(), own_name(name))
    for name in ("mx.example.org", "[192.0.2.1]", "[IPv6:2001:db8::1]"):
        assert is_own(f" from x\r\n\tby {name.upper()} with SMTP".encode(), own_name(name))
