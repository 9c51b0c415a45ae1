"""Stories of delivery: what hosts answer, what becomes of each recipient, what users change.

One engine of two workers serves all; each story has domains and hosts of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import timedelta
from email.message import EmailMessage
from pathlib import Path

import pytest

from mailstrom.testing.script import Per, Rule, Script
from tests.scenarios.conftest import sound
from tests.support.checker import content_digest
from tests.support.engine import DEADLINE_S, Engine, mail
from tests.support.network import HELD_S, Network, dots
from tests.support.sockets import eventually

Build = Callable[[str], EmailMessage | bytes]


@pytest.fixture(scope="module")
def engine(network: Network, folder: Path) -> Iterator[Engine]:
    with sound(Engine(network, folder, workers=2)) as engine:
        yield engine.start()


# Hosts and their answers


def test_the_second_host_has_its_turn_when_the_first_refuses(
    engine: Engine, network: Network
) -> None:
    domain, (host,) = network.site(Script())
    network.route(domain, [network.nobody(), host.host])

    status = engine.final(id := engine.send(f"a@{domain}"))

    (recipient,) = status.recipients.values()
    assert (status.succeeded, recipient.mx, recipient.attempts) == (True, f"mx2.{domain}", 1)
    assert len(host.dots) == 1
    assert [row.host for row in engine.attempts(id)] == [f"mx2.{domain}"]
    (refused,) = engine.rows("SELECT * FROM sessions WHERE host = ?", f"mx1.{domain}")
    assert refused.end_cause.startswith("connect:")


def test_greylisted_then_accepted(engine: Engine, network: Network) -> None:
    rule = Rule(
        stage="rcpt", code=451, enhanced="4.7.1", text="greylisted", per=Per.RECIPIENT, last=1
    )
    domain, (host,) = network.site(Script(rules=(rule,)))

    status = engine.final(id := engine.send(f"a@{domain}"))

    first, second = engine.attempts(id)
    assert status.succeeded
    assert (first.verdict, first.stage, first.reply_code, first.reason) == (
        "deferred", "rcpt", 451, "remote",
    )  # fmt: skip
    assert (first.reply_text, first.enhanced_code) == ("greylisted", "4.7.1")
    assert (second.verdict, second.stage, second.reply_code) == ("delivered", "dot", 250)
    assert second.started_ms - first.ended_ms >= 1000
    assert len(host.dots) == 1


def test_each_recipient_of_a_transaction_has_its_own_result(
    engine: Engine, network: Network
) -> None:
    rules = (
        Rule(stage="rcpt", recipient="later*", code=450, per=Per.RECIPIENT, last=1),
        Rule(stage="rcpt", recipient="never*", code=550, enhanced="5.1.1"),
    )
    domain, (host,) = network.site(Script(rules=rules))
    names = [f"{('yes', 'later', 'never')[n % 3]}{n}@{domain}" for n in range(20)]

    status = engine.final(engine.send(*names))

    found = {
        name: (str(r.status), r.reason, r.attempts, r.reply_code)
        for name, r in status.recipients.items()
    }
    results = {
        "yes": ("delivered", None, 1, 250),
        "lat": ("delivered", None, 2, 250),
        "nev": ("failed", "bounced", 1, 550),
    }
    assert found == {name: results[name[:3]] for name in names}
    assert str(status.status) == "partial"
    assert [len(one.recipients) for one in host.transactions] == [20, 7]
    taken = [name for dot in host.dots for name in dot.recipients]
    assert sorted(taken) == sorted(name for name in names if not name.startswith("never"))


def test_a_host_that_knows_no_ehlo_is_spoken_to_in_helo(engine: Engine, network: Network) -> None:
    domain, (host,) = network.site(Script(rules=(Rule(stage="ehlo", code=502),)))

    assert engine.final(engine.send(f"a@{domain}")).succeeded
    stages = [stage for one in host.connections for stage in one.stages]
    assert stages[:5] == ["ehlo", "helo", "mail", "rcpt", "data"]


# What a host cannot carry


def test_a_message_above_size_fails_before_mail(engine: Engine, network: Network) -> None:
    domain, (host,) = network.site(Script(size=2000))

    status = engine.final(engine.send(f"a@{domain}", text=f"{'x' * 60}\n" * 100))

    (recipient,) = status.recipients.values()
    assert (str(recipient.status), recipient.reason) == ("failed", "too_large")
    assert recipient.enhanced_code == "5.3.4"
    assert host.transactions == []


def _eightbit(domain: str) -> bytes:
    """As bytes, which are left as they are; an object would be encoded anew, in ASCII."""
    text = f"From: a@sender.test\r\nTo: a@{domain}\r\nSubject: news\r\nMIME-Version: 1.0\r\n"
    kind = "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n"
    return f"{text}{kind}\r\nGrüße\r\n".encode()


def _international(domain: str) -> EmailMessage:
    return mail(f"jörg@{domain}")


@pytest.mark.parametrize(
    ("build", "lacking", "enhanced"),
    [
        (_eightbit, Script(eightbitmime=False), "5.6.3"),
        (_international, Script(smtputf8=False), "5.6.7"),
    ],
    ids=["8bitmime", "smtputf8"],
)
def test_what_a_host_lacks_sends_the_message_to_one_that_has_it(
    engine: Engine, network: Network, build: Build, lacking: Script, enhanced: str
) -> None:
    able, (poor, rich) = network.site(lacking, Script(), keep=True)
    unable, (only,) = network.site(lacking)

    delivered = engine.final(id := engine.ms.send(build(able)))
    failed = engine.final(engine.ms.send(build(unable)))

    assert delivered.succeeded
    assert (poor.transactions, [one.content for one in rich.dots]) == ([], [engine.ms.raw(id)])
    (recipient,) = failed.recipients.values()
    assert (str(recipient.status), recipient.reason) == ("failed", "unsupported")
    assert (recipient.enhanced_code, only.transactions) == (enhanced, [])


# Content


def test_large_content_arrives_byte_for_byte(engine: Engine, network: Network) -> None:
    domain, (host,) = network.site(Script())
    dice = random.Random(7)
    lines = ("." * dice.randrange(3) + dice.randbytes(35).hex() for _ in range(45_000))

    id = engine.send(f"a@{domain}", f"b@{domain}", text="\n".join(lines) + "\n")

    assert engine.final(id).succeeded
    (dot,) = host.dots
    assert dot.octets > 3_000_000
    assert dot.digest == content_digest(engine.ms.raw(id))
    assert dot.recipients == (f"a@{domain}", f"b@{domain}")


@pytest.mark.parametrize(("lines", "chunk"), [(1, 0), (20_000, 2)], ids=["small", "large"])
def test_damaged_content_is_never_sent(
    engine: Engine, network: Network, lines: int, chunk: int
) -> None:
    domain = network.new_domain()
    network.zone(domain, "SERVFAIL")
    id = engine.send(f"a@{domain}", text=f"{'x' * 60}\n" * lines)
    engine.until("SELECT 1 FROM recipients WHERE message_id = ? AND reason = 'dns'", id)
    turned = "UPDATE content SET data = CAST({} AS BLOB) WHERE key = (SELECT coalesce(content, seq)"
    turned += " * 4096 + ? FROM message WHERE id = ?)"
    changed = engine.tamper(turned.format("substr(data, 2) || substr(data, 1, 1)"), chunk, id)
    assert changed == 1

    _, (host,) = network.site(Script(), domain=domain)
    engine.age_route(domain)

    (recipient,) = engine.final(id).recipients.values()
    assert (str(recipient.status), recipient.reason) == ("failed", "damaged")
    assert host.dots == []
    assert [row.in_doubt for row in engine.attempts(id)] == [0]
    (found,) = engine.ms.check()
    assert id in found
    back = "substr(data, -1) || substr(data, 1, length(data) - 1)"
    assert engine.tamper(turned.format(back), chunk, id) == 1


# A dead site


def test_a_dead_site_is_one_row_and_no_recipient_is_charged(
    engine: Engine, network: Network
) -> None:
    domain, address = network.new_domain(), network.nobody()
    network.route(domain, [address])
    ids = engine.ms.send_many(mail(f"u{n}@{domain}") for n in range(20))

    suspended = engine.until(
        "SELECT * FROM destinations WHERE domains LIKE ? AND suspended_until_ms IS NOT NULL"
        " AND queued = 20",  # the lane that found out has given its claims back
        f'%"{domain}"%',
    )
    waiting = engine.until(
        "SELECT * FROM recipients WHERE domain = ? AND reason = 'connect'", domain
    )

    assert len(suspended) == 1
    assert suspended[0].reason == "connect"
    assert {(row.status, row.attempts) for row in waiting} == {("deferred", 0)}
    assert "refused" in waiting[0].reply_text
    assert engine.rows("SELECT 1 FROM attempts WHERE recipient LIKE ?", f"%@{domain}") == []

    host = network.host(address=address)

    assert all(engine.final(id).succeeded for id in ids)
    assert len(host.dots) == 20
    found = engine.rows("SELECT DISTINCT attempts FROM recipients WHERE domain = ?", domain)
    assert [row.attempts for row in found] == [1]
    kinds = engine.rows(
        "SELECT DISTINCT type FROM events WHERE type LIKE 'site.%' AND detail LIKE ?", f"%{domain}%"
    )
    assert {row.type for row in kinds} == {"site.suspended", "site.resumed"}


# Time


def test_mail_for_later_waits_until_then(engine: Engine, network: Network) -> None:
    domain, (host,) = network.site(Script())
    id = engine.send(f"a@{domain}", send_at=timedelta(seconds=1.5))

    status = engine.final(id)

    assert status.succeeded
    assert status.send_at - status.created_at == timedelta(seconds=1.5)
    assert host.dots[0].at >= status.send_at.timestamp()
    (attempt,) = engine.attempts(id)
    assert attempt.started_ms >= status.send_at.timestamp() * 1000


def test_what_is_too_old_fails_wherever_it_waits(engine: Engine, network: Network) -> None:
    """Deferred by a host, waiting for DNS, waiting for a dead site, held back to a later time."""
    deferring, (host,) = network.site(Script(rules=(Rule(stage="rcpt", code=451),)))
    unknown, dead = network.new_domain(), network.new_domain()
    network.zone(unknown, "SERVFAIL")
    network.route(dead, [network.nobody()])
    ids = [engine.send(f"a@{where}") for where in (deferring, unknown, dead)]
    for id, seen in zip(
        ids, ("attempts >= 2", "reason = 'dns'", "reason = 'connect'"), strict=True
    ):
        engine.until(f"SELECT 1 FROM recipients WHERE message_id = ? AND {seen}", id)

    engine.expire_soon(*ids)
    found = [engine.final(id) for id in ids]

    for status in found:
        (recipient,) = status.recipients.values()
        assert (str(recipient.status), recipient.reason) == ("failed", "expired")
        assert status.finished_at is not None
        assert status.finished_at >= status.expires_at
    (recipient,) = found[0].recipients.values()
    assert (recipient.reply_code, host.dots) == (451, [])
    assert recipient.attempts >= 2
    assert [row.attempts for row in engine.rows(
        "SELECT attempts FROM recipients WHERE domain IN (?, ?)", unknown, dead
    )] == [0, 0]  # fmt: skip


# Hands of users


def test_cancelled_before_it_is_sent(engine: Engine, network: Network) -> None:
    domain = network.new_domain()
    network.zone(domain, "SERVFAIL")
    id = engine.send(f"a@{domain}", f"b@{domain}")
    engine.until("SELECT 1 FROM recipients WHERE message_id = ? AND reason = 'dns'", id, count=2)

    assert engine.ms.cancel(id, recipient=f"a@{domain}") == 1

    _, (host,) = network.site(Script(), domain=domain)
    engine.age_route(domain)
    status = engine.final(id)
    assert {name: (str(r.status), r.reason) for name, r in status.recipients.items()} == {
        f"a@{domain}": ("cancelled", "user"),
        f"b@{domain}": ("delivered", None),
    }
    assert str(status.status) == "partial"
    assert [dot.recipients for dot in host.dots] == [(f"b@{domain}",)]


def test_what_is_on_the_wire_cannot_be_cancelled(engine: Engine, network: Network) -> None:
    domain, (host,) = network.site(Script(rules=(Rule(stage="dot", delay=HELD_S),)))
    id = engine.send(f"a@{domain}")
    eventually(lambda: host.dots, DEADLINE_S, what="the dot")

    assert str(engine.ms.status(id).status) == "sending"
    assert engine.ms.cancel(id) == 0

    network.pass_time()
    assert engine.final(id).succeeded
    assert len(host.dots) == 1


def test_a_failed_one_tried_again_by_hand(engine: Engine, network: Network) -> None:
    domain, (host,) = network.site(Script(rules=(Rule(stage="rcpt", code=550, last=1),)))
    id = engine.send(f"a@{domain}")
    assert str(engine.final(id).status) == "failed"

    assert engine.ms.retry(id) == 1

    assert engine.final(id).succeeded
    assert [row.verdict for row in engine.attempts(id)] == ["failed", "delivered"]
    assert len(host.dots) == 1


# Secrets of the wire


def test_starttls_is_used_and_told(engine: Engine, network: Network) -> None:
    domain, (host,) = network.site(Script(), tls=True)

    (recipient,) = engine.final(engine.send(f"a@{domain}")).recipients.values()

    assert recipient.tls == "TLSv1.3"
    assert host.connections[-1].tls == "TLSv1.3"
    (row,) = engine.rows("SELECT * FROM sessions WHERE host = ?", f"mx1.{domain}")
    assert (row.tls_wanted, row.tls_reached, row.tls_version) == (
        "opportunistic", "encrypted", "TLSv1.3",
    )  # fmt: skip
    assert (row.tls_verified, row.tls_cipher is not None) == (0, True)
    assert f"mx1.{domain}" in row.tls_peer
    assert (row.address, row.source) == (host.host, "127.0.0.1")


def test_a_message_that_needs_tls_never_leaves_in_clear(engine: Engine, network: Network) -> None:
    clear, (only,) = network.site(Script())
    both, (first, second) = network.site(Script(starttls=False), Script(), tls=True)

    waiting = engine.send(f"a@{clear}", require_tls=True)
    sent = engine.final(engine.send(f"a@{both}", require_tls=True))

    (recipient,) = sent.recipients.values()
    assert (sent.succeeded, recipient.mx, recipient.tls) == (True, f"mx2.{both}", "TLSv1.3")
    assert (first.transactions, len(second.dots)) == ([], 1)
    (row,) = engine.until("SELECT * FROM recipients WHERE message_id = ? AND attempts > 0", waiting)
    assert (row.status, row.reason, row.enhanced_code) == ("deferred", "tls", "4.7.10")
    assert only.transactions == []
    assert engine.ms.cancel(waiting) == 1


def test_hosts_of_many_domains_are_one_site(engine: Engine, network: Network) -> None:
    """Connections are shared by all domains of a set of hosts."""
    first, (host,) = network.site(Script())
    second = network.new_domain()
    network.zone(second, {"MX": [f"5 mx1.{first}."]})

    for domain in (first, second):
        assert engine.final(engine.send(f"a@{domain}")).succeeded

    (row,) = engine.rows("SELECT * FROM destinations WHERE domains LIKE ?", f'%"{second}"%')
    assert f'"{first}"' in row.domains
    assert len(dots([host])) == 2
