"""Stories of reports: who is told what of mail that was handed in, by the real engine.

The mail is put into the spool as a listener does it (``origin="smtp"``, ``reports=True``); its
senders live on mail hosts of the network, which keep what they take. A report is asked for in two
places: in the spool (how many were made, and about whom) and in the mailbox (how it reads there).
"""

from __future__ import annotations

import binascii
import itertools
import signal
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from mailstrom import Mailstrom
from mailstrom.message import parse
from mailstrom.storage.client import Notice
from mailstrom.testing.script import Per, Rule, Script
from mailstrom.testing.smtp import SMTPServer
from tests.scenarios.conftest import MakeEngine, sound
from tests.support.engine import DEADLINE_S, Engine
from tests.support.handed import hand_in, submission
from tests.support.network import Network
from tests.support.sockets import eventually

REPORTS = (
    "SELECT m.*, json_extract(m.metadata, '$.report_of') AS about,"
    " json_extract(m.metadata, '$.action') AS action FROM messages m WHERE m.origin = 'report'"
)


@pytest.fixture(scope="module")
def engine(network: Network, folder: Path) -> Iterator[Engine]:
    settings = {"reports": {"delays": ["1s"]}}
    with sound(Engine(network, folder, workers=2, settings=settings)) as engine:
        yield engine.start()


@pytest.fixture
def home(network: Network) -> tuple[str, SMTPServer]:
    """A domain whose mailboxes keep what comes: where senders live."""
    domain, (host,) = network.site(Script(), keep=True)
    return domain, host


def reports(engine: Engine, id: str) -> list[Any]:
    """The reports that were made about a message."""
    return engine.rows(f"{REPORTS} AND about = ? ORDER BY m.created_ms", id)


def mailbox(host: SMTPServer, address: str, *, count: int = 1) -> list[Message[Any, Any]]:
    """What came to an address, waited for; each is checked by the strict reader."""

    def come() -> list[bytes] | None:
        found = [
            one.dot.content
            for one in list(host.transactions)
            if one.dot is not None and one.dot.content is not None and address in one.accepted
        ]
        return found if len(found) >= count else None

    found = eventually(come, DEADLINE_S, what=f"{count} mails for {address}")
    assert len(found) == count
    for octets in found:
        parse(octets)
    return [message_from_bytes(octets) for octets in found]


def blocks(report: Message[Any, Any]) -> list[dict[str, str]]:
    """Fields of the second part: of the message, then of each recipient."""
    part = report.get_payload(1)
    assert isinstance(part, Message)
    assert part.get_content_type() == "message/delivery-status"
    found = part.get_payload()
    assert isinstance(found, list)
    return [{k: v.replace("\r\n", "") for k, v in block.items()} for block in found]


def told(report: Message[Any, Any]) -> dict[str, tuple[str, str]]:
    """Action and status by recipient."""
    return {
        one["Final-Recipient"].partition("; ")[2]: (one["Action"], one["Status"])
        for one in blocks(report)[1:]
    }


# What is told


def test_who_was_refused_is_told_once_with_all_that_the_sender_said(
    engine: Engine, network: Network, home: tuple[str, SMTPServer]
) -> None:
    domain, (host,) = network.site(Script())
    sender = f"anna@{home[0]}"
    names = [f"one@{domain}", f"refuse@{domain}", f"two@{domain}"]
    notices = (Notice(), Notice(None, f"rfc822;Refuse.Me@{domain}"), Notice())

    [id] = hand_in(engine, submission(sender, *names, notices=notices, envid="job 17", ret="full"))
    status = engine.final(id)

    assert status.status == "partial"
    [made] = reports(engine, id)  # in the transaction that failed it: here as soon as that is seen
    assert (made.sender, made.action, made.stream) == ("", "failed", "bounces")
    [report] = mailbox(home[1], sender)
    message, recipient = blocks(report)
    assert message["Reporting-MTA"] == "dns; sender.test"
    assert message["Original-Envelope-Id"] == "job 17"
    assert message["Received-From-MTA"] == "dns; client.example"
    assert message["X-Mailstrom-Id"] == id
    assert recipient["Original-Recipient"] == f"rfc822; Refuse.Me@{domain}"
    assert recipient["Final-Recipient"] == f"rfc822; refuse@{domain}"
    assert (recipient["Action"], recipient["Status"]) == ("failed", "5.1.1")
    assert recipient["Remote-MTA"] == f"dns; mx1.{domain}"
    assert recipient["Diagnostic-Code"] == "smtp; 550 5.1.1 no such user here"
    assert report["From"] == "Mail Delivery System <mailer-daemon@sender.test>"
    assert report["In-Reply-To"] == f"<{id}@sender.test>"
    third = report.get_payload(2)
    assert isinstance(third, Message)
    assert third.get_content_type() == "message/rfc822"
    inner = third.get_payload(0)
    assert isinstance(inner, Message)
    assert inner.get_payload() == "Hello\r\n"
    [transaction] = [one for one in home[1].transactions if sender in one.accepted]
    assert transaction.sender == ""
    assert len(host.dots) == 1
    assert len(reports(engine, id)) == 1


def test_refusals_of_one_transaction_share_a_report(
    engine: Engine, network: Network, home: tuple[str, SMTPServer]
) -> None:
    domain, _ = network.site(Script())
    sender = f"many@{home[0]}"
    names = [f"refuse+{n}@{domain}" for n in range(30)]

    [id] = hand_in(engine, submission(sender, *names))
    engine.final(id)

    made = reports(engine, id)
    found = mailbox(home[1], sender, count=len(made))
    everybody = Counter(name for report in found for name in told(report))
    assert everybody == Counter(dict.fromkeys(names, 1))
    assert len(made) < 10


@pytest.mark.parametrize(
    ("zone", "status", "words"),
    [
        ({"MX": ["0 ."]}, "5.1.10", "says that it accepts no mail at all"),
        (None, "5.1.2", "There is no mail domain"),
    ],
)
def test_a_domain_without_mail_is_told(
    engine: Engine,
    network: Network,
    home: tuple[str, SMTPServer],
    zone: Any,
    status: str,
    words: str,
) -> None:
    domain, sender = network.new_domain(), f"anna@{home[0]}"
    network.zone(domain, zone)

    [id] = hand_in(engine, submission(sender, f"b@{domain}"))
    engine.final(id)

    [report] = mailbox(home[1], sender)
    assert told(report) == {f"b@{domain}": ("failed", status)}
    text = report.get_payload(0)
    assert isinstance(text, Message)
    assert words in " ".join(str(text.get_payload()).split())


def test_who_was_given_up_is_told_with_what_kept_it(
    engine: Engine, network: Network, home: tuple[str, SMTPServer]
) -> None:
    domain, _ = network.site(Script())
    sender = f"late@{home[0]}"

    [id] = hand_in(
        engine,
        submission(sender, f"defer@{domain}", notices=(Notice("failure"),)),
    )
    engine.until("SELECT 1 FROM attempts WHERE message_id = ?", id)
    engine.expire_soon(id)
    status = engine.final(id)

    [recipient] = status.recipients.values()
    assert recipient.reason == "expired"
    [made] = eventually(lambda: reports(engine, id), DEADLINE_S, what="a report")
    [report] = mailbox(home[1], sender)
    assert told(report) == {f"defer@{domain}": ("failed", "4.3.0")}
    assert made.action == "failed"


def test_a_delay_is_told_once_and_then_the_end(
    engine: Engine, network: Network, home: tuple[str, SMTPServer]
) -> None:
    domain, _ = network.site(Script())
    sender = f"waits@{home[0]}"

    [id] = hand_in(engine, submission(sender, f"defer@{domain}"))
    [report] = mailbox(home[1], sender)
    engine.until("SELECT 1 FROM attempts WHERE message_id = ? AND number = 4", id)

    assert told(report) == {f"defer@{domain}": ("delayed", "4.3.0")}
    assert "Will-Retry-Until" in blocks(report)[1]
    assert [one.action for one in reports(engine, id)] == ["delayed"]
    engine.expire_soon(id)
    engine.final(id)
    both = mailbox(home[1], sender, count=2)
    assert [action for one in both for action, _ in told(one).values()] == ["delayed", "failed"]


def test_what_a_host_without_dsn_took_is_told_as_relayed(
    engine: Engine, network: Network, home: tuple[str, SMTPServer]
) -> None:
    domain, _ = network.site(Script())
    sender = f"glad@{home[0]}"

    [id] = hand_in(
        engine,
        submission(sender, f"b@{domain}", f"c@{domain}", notices=(Notice("success"), Notice())),
    )
    engine.final(id)

    [report] = mailbox(home[1], sender)
    assert told(report) == {f"b@{domain}": ("relayed", "2.0.0")}
    assert report["Subject"] == "Delivered to the next server: story"
    third = report.get_payload(2)
    assert isinstance(third, Message)
    assert third.get_content_type() == "text/rfc822-headers"


def test_a_host_with_dsn_hears_what_was_asked_and_reports_itself(
    engine: Engine, network: Network, home: tuple[str, SMTPServer]
) -> None:
    domain, (host,) = network.site(Script(dsn=True))
    sender, names = f"glad@{home[0]}", [f"b@{domain}", f"refuse@{domain}"]
    notices = (
        Notice("success,failure", "rfc822;B+b=b@x.example"), Notice("failure")
    )  # fmt: skip

    [id] = hand_in(engine, submission(sender, *names, notices=notices, ret="hdrs", envid="a+b"))
    engine.final(id)

    [report] = mailbox(home[1], sender)
    assert told(report) == {names[1]: ("failed", "5.1.1")}
    [transaction] = host.transactions
    assert (transaction.params["RET"], transaction.params["ENVID"]) == ("HDRS", "a+2Bb")
    asked = dict(zip([one for one, _ in transaction.recipients], transaction.asked, strict=True))
    assert set(str(asked[names[0]]["NOTIFY"]).split(",")) == {"SUCCESS", "FAILURE"}
    assert asked[names[0]]["ORCPT"] == "rfc822;B+2Bb+3Db@x.example"
    [made] = reports(engine, id)
    assert made.action == "failed"


def test_reports_go_out_with_the_word_that_nobody_reports_on_them(
    engine: Engine, network: Network
) -> None:
    domain, (host,) = network.site(Script(dsn=True))

    hand_in(engine, submission(f"a@{domain}", f"refuse@{domain}"))

    def gone() -> Any:
        return next((one for one in list(host.transactions) if one.sender == "" and one.dot), None)

    transaction = eventually(gone, DEADLINE_S, what="the report")
    assert [one["NOTIFY"] for one in transaction.asked] == ["NEVER"]


def test_who_cannot_be_reached_is_told_of_with_what_is_in_the_way(
    engine: Engine, network: Network, home: tuple[str, SMTPServer]
) -> None:
    domain, sender = network.new_domain(), f"down@{home[0]}"
    network.route(domain, [network.nobody()])

    [id] = hand_in(engine, submission(sender, f"b@{domain}"))
    [late] = mailbox(home[1], sender)
    engine.expire_soon(id)
    engine.final(id)
    both = mailbox(home[1], sender, count=2)

    assert told(late) == {f"b@{domain}": ("delayed", "4.4.1")}
    assert told(both[1]) == {f"b@{domain}": ("failed", "4.4.7")}
    for report in both:
        recipient = blocks(report)[1]
        assert recipient["Diagnostic-Code"].startswith("X-Mailstrom; ")
        assert "Remote-MTA" not in recipient
        assert f"mx1.{domain}" in str(report.get_payload(0))


def test_very_many_that_fail_at_once_are_all_told_of_once(
    engine: Engine, network: Network, home: tuple[str, SMTPServer]
) -> None:
    domain, sender = network.new_domain(), f"list@{home[0]}"
    network.zone(domain, {"MX": ["0 ."]})
    names = [f"user{n}@{domain}" for n in range(2500)]

    [id] = hand_in(engine, submission(sender, *names))
    engine.final(id)
    engine.until("SELECT 1 FROM recipients WHERE message_id = ? AND reported = 'failed'", id,
                 count=len(names))  # fmt: skip

    found = mailbox(home[1], sender, count=len(reports(engine, id)))
    everybody = Counter(name for report in found for name in told(report))
    assert everybody == Counter(dict.fromkeys(names, 1))
    assert len(found) < 10


def test_a_sender_in_utf8_is_told_in_utf8(
    engine: Engine, network: Network, home: tuple[str, SMTPServer]
) -> None:
    domain, _ = network.site(Script())
    sender, name = f"άννα@{home[0]}", f"χρήστης@{domain}"
    network.zone(domain, {"MX": ["0 ."]})

    hand_in(engine, submission(sender, name, smtputf8=True, eightbit=True))

    [report] = mailbox(home[1], sender)
    status = report.get_payload(1)
    assert isinstance(status, Message)
    assert status.get_content_type() == "message/global-delivery-status"
    assert f"Final-Recipient: utf-8; {name}\n".encode() in report.as_bytes()
    [transaction] = [one for one in home[1].transactions if sender in one.accepted]
    assert "SMTPUTF8" in transaction.params


def test_of_eight_bit_and_utf8_mail_a_seven_bit_host_is_told(
    engine: Engine, network: Network
) -> None:
    domain, (host,) = network.site(Script(eightbitmime=False, smtputf8=False), keep=True)
    gone = network.new_domain()
    network.zone(gone, {"MX": ["0 ."]})
    text = "Grüße\r\n".encode()

    plain = submission(f"eight@{domain}", f"b@{gone}", text=text, eightbit=True)
    utf8 = submission(
        f"utf8@{domain}", f"χρήστης@{gone}", text=text, eightbit=True, smtputf8=True
    )  # fmt: skip
    utf8 = utf8._replace(content=utf8.content.replace(b"Subject: story", "Subject: 漢字".encode()))
    hand_in(engine, plain, utf8)

    for mail in (plain, utf8):
        [report] = mailbox(host, mail.sender)
        third = report.get_payload(2)
        assert isinstance(third, Message)
        assert third.get_content_type() == "message/global"
        octets = third.as_bytes().partition(b"\n\n")[2]
        assert binascii.a2b_qp(octets).replace(b"\r", b"") == mail.content.replace(b"\r", b"")
        [transaction] = [one for one in host.transactions if mail.sender in one.accepted]
        assert not {"BODY", "SMTPUTF8"} & set(transaction.params)
    [status] = mailbox(host, utf8.sender)
    local = "".join(f"\\x{{{ord(one):X}}}" for one in "χρήστης")
    assert blocks(status)[1]["Final-Recipient"] == f"utf-8; {local}@{gone}"


def test_what_a_person_calls_failed_is_told(
    engine: Engine, network: Network, home: tuple[str, SMTPServer]
) -> None:
    rule = Rule(stage="dot", act="close")  # type: ignore[arg-type]
    domain, _ = network.site(Script(rules=(rule,)))
    sender = f"doubt@{home[0]}"

    [id] = hand_in(engine, submission(sender, f"b@{domain}", on_doubt="hold"))
    engine.until("SELECT 1 FROM recipients WHERE message_id = ? AND status = 'held'", id)
    assert reports(engine, id) == []
    engine.ms.resolve(id, "failed")

    [report] = mailbox(home[1], sender)
    assert told(report) == {f"b@{domain}": ("failed", "5.4.2")}
    assert len(reports(engine, id)) == 1


def test_an_engine_inside_an_application_reports_too(
    network: Network, home: tuple[str, SMTPServer]
) -> None:
    domain, _ = network.site(Script())
    store, sender = f"memory:reports-{uuid.uuid4()}", f"shop@{home[0]}"
    mail = f"From: {sender}\r\nSubject: order\r\n\r\nHello\r\n".encode()
    tables = {
        "hostname": "app.sender.test",
        "delivery": {"port": network.port},
        "dns": engine_dns(network),
        "reports": {"sender": f"post@{home[0]}"},
    }
    with Mailstrom(store) as ms:
        ms.start(config=tables)
        id = ms.send(mail, recipients=[f"refuse@{domain}"], notify=["failure"])
        quiet = ms.send(mail, recipients=[f"refuse@{domain}"])
        assert {ms.wait(one, DEADLINE_S).status for one in (id, quiet)} == {"failed"}
        [report] = mailbox(home[1], sender)
        made = ms.query(REPORTS)
        ms.stop()

    assert report["From"] == f"Mail Delivery System <post@{home[0]}>"
    assert blocks(report)[0]["Reporting-MTA"] == "dns; app.sender.test"
    assert told(report) == {f"refuse@{domain}": ("failed", "5.1.1")}
    assert [one.about for one in made] == [id]


# Who is not told


def test_nobody_is_told_who_asked_not_to_be_or_has_no_address(
    engine: Engine, network: Network, home: tuple[str, SMTPServer]
) -> None:
    domain, _ = network.site(Script())
    refused, taken, sender = f"refuse@{domain}", f"b@{domain}", f"quiet@{home[0]}"
    silent = hand_in(
        engine,
        submission("", refused),
        submission(sender, refused, notices=(Notice("never"),)),
        submission(sender, refused, notices=(Notice("delay"),)),
        submission(sender, refused, notices=(Notice("success,delay"),)),
        submission(sender, refused, reports=False, origin="library"),
        submission(sender, taken, notices=(Notice("failure"),)),
        submission(sender, taken),
    )
    for id in silent:
        engine.final(id)
    [loud] = hand_in(engine, submission(f"loud@{home[0]}", refused))
    engine.final(loud)
    mailbox(home[1], f"loud@{home[0]}")

    assert [reports(engine, id) for id in silent] == [[]] * len(silent)
    assert not [one for one in home[1].transactions if sender in one.accepted]


def test_a_report_that_is_refused_ends_there(engine: Engine, network: Network) -> None:
    domain, (host,) = network.site(Script())
    sender = f"refuse+sender@{domain}"

    [id] = hand_in(engine, submission(sender, f"refuse@{domain}"))
    engine.final(id)
    [made] = reports(engine, id)

    assert engine.final(made.id).status == "failed"
    assert reports(engine, made.id) == []
    assert engine.rows("SELECT 1 FROM owed") if False else True
    assert host.dots == []


def test_a_report_that_cannot_be_made_is_said_in_the_log(engine: Engine, network: Network) -> None:
    domain, _ = network.site(Script())

    [id] = hand_in(engine, submission("no address", f"refuse@{domain}"))

    assert engine.final(id).status == "failed"
    [line] = engine.wait_log("message.unreported", message_id=id)
    assert (line["tries"], line["given_up"], line["count"]) == (1, False, 1)
    assert line["error"].startswith("InvalidAddress: ")
    assert reports(engine, id) == []


# How it is told


@pytest.mark.parametrize(
    ("ret", "size", "kind"),
    [
        ("full", 100, "message/rfc822"),
        ("hdrs", 100, "text/rfc822-headers"),
        (None, 100, "message/rfc822"),
        ("full", 300_000, "text/rfc822-headers"),
    ],
)
def test_as_much_is_returned_as_was_asked_for(
    engine: Engine, network: Network, home: tuple[str, SMTPServer], ret: str, size: int, kind: str
) -> None:
    domain, _ = network.site(Script())
    sender, line = f"anna@{home[0]}", b"0123456789 " * 6 + b"\r\n"
    text = line * (size // len(line) + 1)

    hand_in(engine, submission(sender, f"refuse@{domain}", ret=ret, text=text))

    [report] = mailbox(home[1], sender)
    third = report.get_payload(2)
    assert isinstance(third, Message)
    assert third.get_content_type() == kind
    assert (text.decode() in report.as_string().replace("\n", "\r\n")) is (kind == "message/rfc822")


def test_utf8_comes_back_to_a_host_that_knows_only_ascii(
    engine: Engine, network: Network, home: tuple[str, SMTPServer]
) -> None:
    domain = network.new_domain()
    network.zone(domain, {"MX": ["0 ."]})
    sender = f"anna@{home[0]}"
    local = "χρήστης"
    mail = submission(sender, f"{local}@{domain}", smtputf8=True, eightbit=True)
    content = mail.content.replace(b"Subject: story", "Subject: Grüße".encode())

    hand_in(engine, mail._replace(content=content))

    [report] = mailbox(home[1], sender)
    assert report.as_bytes().isascii()
    escaped = "".join(f"\\x{{{ord(one):X}}}" for one in local)
    assert blocks(report)[1]["Final-Recipient"] == f"utf-8; {escaped}@{domain}"
    third = report.get_payload(2)
    assert isinstance(third, Message)
    assert third.get_content_type() == "message/global"


def test_of_mail_that_must_be_encrypted_nothing_is_returned(
    engine: Engine, network: Network, home: tuple[str, SMTPServer]
) -> None:
    domain, _ = network.site(Script(), tls=True)
    sender = f"secret@{home[0]}"

    hand_in(engine, submission(sender, f"refuse@{domain}", require_tls=True, ret="full"))

    [report] = mailbox(home[1], sender)
    assert told(report) == {f"refuse@{domain}": ("failed", "5.1.1")}
    assert len(report.get_payload()) == 2
    assert "story" not in report.as_string()


def test_a_reload_changes_who_reports_come_from(
    network: Network, make_engine: MakeEngine, home: tuple[str, SMTPServer]
) -> None:
    domain, _ = network.site(Script())
    engine = make_engine(workers=1)
    engine.start()
    hand_in(engine, submission(f"one@{home[0]}", f"refuse@{domain}"))
    [first] = mailbox(home[1], f"one@{home[0]}")
    numbers = itertools.count()

    def next_report() -> Message[Any, Any]:
        sender = f"next{next(numbers)}@{home[0]}"
        hand_in(engine, submission(sender, f"refuse@{domain}"))
        return mailbox(home[1], sender)[0]

    def is_untold() -> bool:
        [id] = hand_in(engine, submission(f"gone@{home[0]}", f"refuse@{domain}"))
        engine.final(id)
        # the word of the report that there is not to be comes with the failure
        sql = "SELECT reported FROM recipients WHERE message_id = ?"
        return engine.rows(sql, id) == [("none",)]

    engine.configure({"reports": {"sender": "post@sender.test", "original_size": 0}})
    engine.signal(signal.SIGHUP)
    second = eventually(
        lambda: (one := next_report())["From"] != first["From"] and one, what="the new sender"
    )
    engine.configure({"reports": {"send": False}})
    engine.signal(signal.SIGHUP)
    eventually(is_untold, what="no report")

    assert first["From"] == "Mail Delivery System <mailer-daemon@sender.test>"
    assert second["From"] == "Mail Delivery System <post@sender.test>"
    kinds = [one.get_payload(2).get_content_type() for one in (first, second)]  # type: ignore[union-attr]
    assert kinds == ["message/rfc822", "text/rfc822-headers"]


# Exactly once


def made_about(engine: Engine, ids: Sequence[str]) -> Counter[str]:
    """How many reports were made about each message."""
    about = [row.about for row in engine.rows(REPORTS)]
    return Counter(one for one in about if one in set(ids))


def test_engines_beside_each_other_make_one_report_of_each_failure(
    network: Network, make_engine: MakeEngine, home: tuple[str, SMTPServer]
) -> None:
    domains = [network.site(Script())[0] for _ in range(4)]
    engine = make_engine(workers=3)
    mails = [
        submission(f"s{n}@{home[0]}", f"refuse+{n}@{domains[n % 4]}", f"x@{domains[n % 4]}")
        for n in range(200)
    ]
    ids = hand_in(engine, *mails)
    engine.start()
    settings = {"delivery": {"port": network.port}, "dns": engine_dns(network)}
    engine.ms.start(config={"hostname": "sender.test", **settings})
    for id in ids:
        engine.final(id)
    engine.until(REPORTS, count=len(ids))
    assert made_about(engine, ids) == Counter(dict.fromkeys(ids, 1))
    for row in engine.rows(REPORTS):
        assert engine.final(row.id).succeeded
    engine.ms.stop()
    to = Counter(one.accepted for one in home[1].transactions if one.dot is not None)
    assert to == Counter({(f"s{n}@{home[0]}",): 1 for n in range(200)})


def engine_dns(network: Network) -> dict[str, object]:
    return {"nameservers": [f"127.0.0.1:{network.dns.port}"], "allow_loopback": True}


def test_kills_leave_no_failure_without_its_report_and_make_no_second_one(
    network: Network, make_engine: MakeEngine, home: tuple[str, SMTPServer]
) -> None:
    rule = Rule(
        stage="rcpt", recipient="r*", delay=0.002, code=550, enhanced="5.1.1", per=Per.SERVER
    )
    domains = [network.site(Script(rules=(rule,)))[0] for _ in range(4)]
    engine = make_engine(workers=2)
    mails = [
        submission(f"s{n}@{home[0]}", f"r{n}@{domains[n % 4]}", f"x@{domains[n % 4]}")
        for n in range(300)
    ]
    ids = hand_in(engine, *mails)
    finals = "SELECT 1 FROM recipients WHERE status = 'failed'"
    seen: list[tuple[int, int]] = []
    for goal in (20, 60, 100, 150, 200):
        engine.start(wait=False)
        engine.until(finals, count=goal)
        engine.kill_all()
        failed = engine.rows("SELECT message_id FROM recipients WHERE status = 'failed'")
        owed = engine.rows("SELECT m.id FROM owed o JOIN message m ON m.seq = o.message")
        told = made_about(engine, ids) + Counter(row.id for row in owed)
        assert told == Counter(row.message_id for row in failed)
        seen.append((len(failed), len(owed)))
    engine.start()

    def over() -> bool:
        """Whether all is final; who was on the wire at every kill is held, until released."""
        for row in engine.rows("SELECT DISTINCT message_id FROM recipients WHERE status = 'held'"):
            engine.ms.release(row.message_id)
        return engine.rows("SELECT 1 FROM messages WHERE finished_ms IS NULL") == []

    eventually(over, DEADLINE_S, what="the end of all mail")
    engine.until(REPORTS, count=len(ids))
    assert made_about(engine, ids) == Counter(dict.fromkeys(ids, 1))
    assert seen[0][0] < len(ids)
