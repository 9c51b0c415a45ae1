"""What the tests lean on holds: waiting, ports, and the bridge from records to a history."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from contextlib import ExitStack

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.testing.records import Dot
from tests.support import sockets
from tests.support.checker import History, Row, Sent, check, content_digest
from tests.support.dealing import dealt
from tests.support.postfix import Received
from tests.support.sockets import (
    accepts,
    eventually,
    eventually_async,
    free_port,
    loopback_addresses,
    place,
    wait_listening,
)
from tests.support.witnesses import seen_by_peer, seen_by_server, spool_rows


def test_addresses_are_loopback_and_never_the_same() -> None:
    found = loopback_addresses(300)
    assert len(set(found)) == 300
    assert all(address.startswith("127.") for address in found)
    assert not any(address.startswith("127.0.") for address in found)


def test_a_free_port_is_free_on_every_address() -> None:
    addresses = loopback_addresses(3)
    port = free_port(*addresses)
    for address in addresses:
        with socket.create_server((address, port)):
            assert accepts(address, port)
            wait_listening([(address, port)])
        assert not accepts(address, port)


_GIVEN = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("sockets", sys.argv[1])
sockets = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sockets)
print(sockets.place(), *sockets.loopback_addresses(3), sockets.free_port(), flush=True)
sys.stdin.read()
"""


def test_what_one_process_is_given_no_other_gets() -> None:
    argv = [sys.executable, "-I", "-c", _GIVEN, str(sockets.__file__)]
    given = [{str(place()), *loopback_addresses(3), str(free_port())}]
    with ExitStack() as stack:
        for _ in range(2):
            other = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.enter_context(other)  # ends it: its standard input is closed
            assert other.stdout is not None
            given.append(set(other.stdout.readline().split()))
    assert [len(one) for one in given] == [5, 5, 5]
    assert len(set().union(*given)) == 15


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5))
def test_long_tests_are_dealt_out_to_all_and_none_is_lost(long: list[bool], processes: int) -> None:
    items = list(enumerate(long))
    found = dealt(items, lambda item: item[1], processes)
    assert sorted(found) == items
    if processes == 1:
        assert found == items
        return
    parts, begin = [], 0
    for process in range(processes):
        end = begin + (len(items) - begin) // (processes - process)
        parts.append([item[1] for item in found[begin:end]])
        begin = end
    if all(part and not part[-1] for part in parts):  # else there is hardly anything else
        counts = [sum(part) for part in parts]
        assert max(counts) - min(counts) <= 1
        assert all(part == sorted(part, reverse=True) for part in parts)


def test_eventually_returns_what_came_true_or_names_what_did_not() -> None:
    answers = iter([None, 0, "yes"])
    assert eventually(lambda: next(answers), interval=0) == "yes"
    with pytest.raises(AssertionError, match="the moon did not come true within 0 s"):
        eventually(lambda: None, 0, what="the moon")


def test_eventually_in_a_loop_takes_plain_and_awaited_probes() -> None:
    async def probe() -> str:
        return "yes"

    async def both() -> list[str]:
        return [await eventually_async(probe), await eventually_async(lambda: "plain")]

    assert asyncio.run(both()) == ["yes", "plain"]


def test_spool_rows_come_from_the_public_views() -> None:
    spool = apsw.Connection(":memory:")
    spool.execute(
        """
        CREATE TABLE messages(id, message_id);
        CREATE TABLE recipients(message_id, address, status, reason, in_doubt);
        CREATE TABLE attempts(id, message_id, recipient, number, in_doubt);
        INSERT INTO messages VALUES ('m1', '<1@test>'), ('m2', '<2@test>');
        INSERT INTO recipients VALUES ('m1', 'a@x.test', 'delivered', NULL, 0),
                                      ('m1', 'b@x.test', 'held', 'in_doubt', 1),
                                      ('m2', 'a@x.test', 'queued', NULL, 0);
        INSERT INTO attempts VALUES (2, 'm1', 'a@x.test', 2, 0), (1, 'm1', 'a@x.test', 1, 1),
                                    (3, 'm1', 'b@x.test', 1, 1);
        """
    )
    rows = spool_rows(lambda sql: list(spool.execute(sql)))
    assert set(rows) == {
        Row(
            id="m1",
            message_id="<1@test>",
            recipient="a@x.test",
            status="delivered",
            attempts=(True, False),
        ),
        Row(
            id="m1",
            message_id="<1@test>",
            recipient="b@x.test",
            status="held",
            reason="in_doubt",
            in_doubt=True,
            attempts=(True,),
        ),
        Row(id="m2", message_id="<2@test>", recipient="a@x.test", status="queued"),
    }


def test_records_of_servers_and_peers_tell_the_same() -> None:
    content = b"Message-ID: <1@test>\r\n\r\nx\r\n"
    dot = Dot(
        at=1.0,
        connection=1,
        sender="",
        recipients=("a@x.test", "b@x.test"),
        message_id="<1@test>",
        digest=content_digest(content),
        octets=len(content),
        kept=True,
    )
    received = Received(sender="", recipients=("a@x.test", "b@x.test"), content=content)
    assert [(one.pair, one.digest) for one in seen_by_server([dot])] == [
        (one.pair, one.digest) for one in seen_by_peer([received])
    ]
    sent = [
        Sent(id="m1", message_id="<1@test>", recipient=to, digest=content_digest(content[:-2]))
        for to in dot.recipients
    ]
    history = History(acknowledged=tuple(sent), seen=seen_by_server([dot]), spool=())
    assert check(history).clean
