"""Replies before the first MAIL: what is none opens no session; none costs more than its octets."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import cast

import pytest

from mailstrom.types import Stage
from mailstrom_workers.wire import _Hearing
from tests.wire.peer import POLICY, Peer, opened, refused, run, serving

NO_REPLIES = {
    "554-no\r\n220 mx.test": "mixed-codes",
    "2200 mx.test": "separator",
    "220_mx.test": "separator",
    "+22 mx.test": "no-code",
    "099 mx.test": "code-out-of-range",
    "\x1b[2J220 mx.test": "no-code",
}


@pytest.mark.parametrize("verb", ["greeting", "EHLO"])
@pytest.mark.parametrize(("words", "rule"), NO_REPLIES.items())
def test_what_is_no_reply_opens_no_session(verb: str, words: str, rule: str) -> None:
    async def body() -> None:
        async with serving(Peer(**{verb: words})) as target:
            failure = await refused(target)
            stage = Stage.GREETING if verb == "greeting" else Stage.EHLO
            assert (failure.stage, failure.cause, failure.reply) == (stage, "garbage", None)
            assert f"not an SMTP reply ({rule}): " in failure.text
            assert failure.text.isprintable()

    run(body)


def test_a_reply_without_end_is_given_up_after_its_hundredth_line() -> None:
    """Whatever the segments: the work grows with the octets, not with their square."""

    async def body() -> None:
        hearing = _Hearing(lambda _: None)
        hearing.connection_made(cast(asyncio.Transport, asyncio.BaseTransport()))
        for _ in range(101):
            assert hearing.bad is None
            hearing.data_received(b"250-\n")
        assert hearing.bad is not None
        assert hearing.bad.rule == "too-many-lines"

    run(body)


def test_a_reply_that_came_before_its_command_is_none_to_it() -> None:
    async def body() -> None:
        peer = Peer(greeting="220 mx.example.org\r\n250-early\r\n250 SIZE 7")
        async with serving(peer) as target:
            session = await opened(target)
            assert session.capabilities.name == "mx.example.org"
            assert session.capabilities.size == 0
            session.abort()

    run(body)


def test_consent_to_starttls_that_is_no_220_is_no_refusal() -> None:
    """The server may be about to speak TLS, or out of step: nothing goes on in clear."""

    async def body() -> None:
        peer = Peer(EHLO="250-mx.example.org\r\n250 STARTTLS", STARTTLS="250 go on")
        async with serving(peer) as target:
            failure = await refused(target, replace(POLICY, tls="opportunistic"))
            assert (failure.stage, failure.cause) == (Stage.STARTTLS, "garbage")

    run(body)
