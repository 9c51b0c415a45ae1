"""The engine delivering to other people's servers: a real Postfix, and smtp-sink as a counter."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.checker import History, Report, Sent, check, content_digest
from tests.support.debian import sqlite3_readonly
from tests.support.engine import DEADLINE_S, Engine, mail
from tests.support.network import Network
from tests.support.postfix import PostfixServer, SmtpSink
from tests.support.sockets import eventually, loopback_addresses
from tests.support.witnesses import seen_by_peer, spool_rows

pytestmark = pytest.mark.debian

COUNT = 1000


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


def _sent(engine: Engine, ids: list[str]) -> tuple[Sent, ...]:
    """What was acknowledged, as the client that sent it sees it."""
    rows = engine.rows(
        "SELECT m.id, m.message_id, r.address FROM messages AS m"
        " JOIN recipients AS r ON r.message_id = m.id"
    )
    assert {row.id for row in rows} == set(ids)
    digests = {id: content_digest(engine.ms.raw(id)) for id in ids}
    return tuple(
        Sent(id=row.id, message_id=row.message_id, recipient=row.address, digest=digests[row.id])
        for row in rows
    )


def _clean(report: Report) -> None:
    assert report.clean, report.describe()
    assert report.doubled_marked == (), report.describe()


def test_postfix_takes_mail_over_starttls_and_refuses_by_recipient(
    network: Network, tmp_path: Path
) -> None:
    domain, address = network.new_domain(), loopback_addresses()[0]
    network.route(domain, [address])
    issued = network.authority.issue_cert(f"mx1.{domain}")
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    refuse = {f"no@{domain}": "550 5.1.1 no such user", f"later@{domain}": "450 4.2.1 try later"}
    with (
        PostfixServer(
            address,
            network.port,
            domains=(domain,),
            tls=(chain, issued.private_key_pem.bytes()),
            refuse=refuse,
        ) as postfix,
        Engine(network, tmp_path, settings={"retry": {"schedule": ["1h"]}}) as engine,
    ):
        dice = random.Random(821)
        ids = [
            engine.send(
                f"a{number}@{domain}",
                f"b{number}@{domain}",
                text="".join(f"{'.' * dice.randrange(3)}line {n}\n" for n in range(number * 20)),
            )
            for number in range(1, 11)
        ]
        mixed = engine.send(f"yes@{domain}", f"no@{domain}", f"later@{domain}")

        assert all(engine.final(id).succeeded for id in ids)
        results = eventually(
            lambda: (
                (found := engine.ms.status(mixed).recipients)[f"later@{domain}"].attempts
                and {
                    name.partition("@")[0]: (str(r.status), r.reply_code)
                    for name, r in found.items()
                }
            ),
            DEADLINE_S,
            what="an answer to each recipient",
        )
        received = eventually(
            lambda: len(found := postfix.received()) == 21 and found,
            DEADLINE_S,
            what="21 mailbox files",
        )
        report = check(
            History(
                acknowledged=_sent(engine, [*ids, mixed]),
                seen=seen_by_peer(received),
                spool=spool_rows(engine.ms.query),
                finished=False,  # one recipient is to try later
            )
        )

        assert results == {
            "yes": ("delivered", 250),
            "no": ("failed", 550),
            "later": ("deferred", 450),
        }
        _clean(report)
        assert {row.tls for row in engine.rows(
            "SELECT DISTINCT tls FROM recipients WHERE status = 'delivered'"
        )} == {"TLSv1.3"}  # fmt: skip
        (session, *_) = engine.rows("SELECT * FROM sessions")
        assert (session.tls_reached, session.tls_wanted) == ("encrypted", "opportunistic")
        assert f"mx1.{domain}" in session.tls_peer


def test_smtp_sink_and_the_spool_agree_on_every_recipient(network: Network, tmp_path: Path) -> None:
    domain, address = network.new_domain(), loopback_addresses()[0]
    network.route(domain, [address])
    with (
        SmtpSink(address, network.port) as sink,
        Engine(network, tmp_path) as engine,
    ):
        ids = engine.ms.send_many(
            mail(f"u{number}@{domain}", f"v{number}@{domain}") for number in range(COUNT)
        )
        eventually(
            lambda: not engine.rows("SELECT 1 FROM messages WHERE finished_ms IS NULL LIMIT 1"),
            2 * DEADLINE_S,
            what="the end of the queue",
        )
        sql = "SELECT status, count(*) AS n FROM recipients GROUP BY status"
        by_sqlite3 = sqlite3_readonly(engine.store, sql)
        report = check(
            History(
                acknowledged=_sent(engine, ids),
                seen=seen_by_peer(sink.received()),
                spool=spool_rows(engine.ms.query),
            )
        )

        _clean(report)
        assert sink.count() == COUNT
        assert by_sqlite3 == [{"status": "delivered", "n": 2 * COUNT}]
