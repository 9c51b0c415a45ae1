"""Parameters of MAIL and RCPT: only what is offered, only what is readable, each in its field."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.commands import parse_path
from mailstrom.smtp.server import ServerDialogue
from mailstrom.smtp.server_events import Closing, Event, MailFrom, Opened, RcptTo, Refused
from mailstrom.smtp.server_order import Phase

NOW = datetime(2030, 1, 1, tzinfo=UTC).timestamp()
OFFER = Capabilities(
    name="mx.test",
    size=1000,
    pipelining=True,
    eightbitmime=True,
    smtputf8=True,
    enhancedstatuscodes=True,
    dsn=True,
    requiretls=True,
    future_release=3600,
    mt_priority="",
    auth=frozenset({"PLAIN"}),
)
NOTHING = Capabilities(name="mx.test")


def dialogue(
    offer: Capabilities = OFFER, *, tls: bool = True, **options: int | bool
) -> ServerDialogue:
    made = ServerDialogue(offer, tls=tls, clock=lambda: NOW, **options)  # type: ignore[arg-type]
    assert isinstance(made.next_event(), Opened)
    pull(made, b"EHLO c\r\n")
    made.take_output()
    return made


def pull(server: ServerDialogue, data: bytes) -> list[Event]:
    server.feed(data)
    events: list[Event] = []
    while (event := server.next_event()) is not None:
        events.append(event)
    return events


def mail(parameters: str, server: ServerDialogue | None = None) -> MailFrom | Refused:
    (event,) = pull(server or dialogue(), f"MAIL FROM:<a@x.test> {parameters}\r\n".encode())
    assert isinstance(event, (MailFrom, Refused))
    return event


def rcpt(
    parameters: str, server: ServerDialogue | None = None, *, utf8: bool = False
) -> RcptTo | Refused:
    server = server or dialogue()
    pull(server, b"MAIL FROM:<a@x.test>" + b" SMTPUTF8" * utf8 + b"\r\n")
    (event,) = pull(server, f"RCPT TO:<b@y.test> {parameters}\r\n".encode())
    assert isinstance(event, (RcptTo, Refused))
    return event


@pytest.mark.parametrize(
    ("parameters", "fields"),
    [
        ("", {}),
        ("SIZE=1000 BODY=8BITMIME", {"size": 1000, "eightbit": True}),
        ("body=7bit smtputf8", {"eightbit": False, "smtputf8": True}),
        ("RET=FULL ENVID=a+2Bb+20c", {"ret": "full", "envid": "a+b c"}),
        ("ret=hdrs", {"ret": "hdrs"}),
        ("HOLDFOR=3600", {"hold_for": 3600}),
        ("HOLDUNTIL=2030-01-01T01:00:00Z", {"hold_until_ms": int(NOW * 1000) + 3_600_000}),
        ("HOLDUNTIL=2030-01-01t02:30:00.25+02:00", {"hold_until_ms": int(NOW * 1000) + 1_800_250}),
        ("HOLDUNTIL=2029-12-31T23:59:60Z", {"hold_until_ms": int(NOW * 1000)}),
        ("HOLDUNTIL=1970-01-01T00:00:00Z", {"hold_until_ms": 0}),
        ("MT-PRIORITY=-9", {"mt_priority": -9}),
        ("MT-PRIORITY=0", {"mt_priority": 0}),
        ("REQUIRETLS", {"requiretls": True}),
        ("AUTH=<>", {"auth": "<>"}),
        ("AUTH=e+3Dmc2@example.com", {"auth": "e=mc2@example.com"}),
    ],
)
def test_each_has_its_field(parameters: str, fields: dict[str, object]) -> None:
    event = mail(parameters)
    assert isinstance(event, MailFrom)
    untold = MailFrom(address="a@x.test", default=event.default)
    names = [name for name in MailFrom.__struct_fields__ if name not in ("params", "default")]
    expected = {name: getattr(untold, name) for name in names} | fields
    assert {name: getattr(event, name) for name in names} == expected
    assert list(event.params) == [word.partition("=")[0].upper() for word in parameters.split()]


@pytest.mark.parametrize(
    ("parameters", "fields"),
    [
        ("", (None, None)),
        ("NOTIFY=NEVER", ("never", None)),
        ("NOTIFY=delay,FAILURE ORCPT=rfc822;a+2Bb@z.test", ("failure,delay", "rfc822;a+b@z.test")),
        (r"ORCPT=utf-8;\x{E9}@z.test", (None, "utf-8;é@z.test")),
    ],
)
def test_what_a_recipient_asks_for(parameters: str, fields: tuple[object, object]) -> None:
    event = rcpt(parameters)
    assert isinstance(event, RcptTo)
    assert (event.notify, event.orcpt) == fields


@pytest.mark.parametrize(
    "parameters",
    [
        "SIZE", "SIZE=", "SIZE=x", "SIZE=-1", "SIZE=" + "9" * 21, "BODY", "BODY=BINARYMIME",
        "SMTPUTF8=1", "RET", "RET=ALL", "ENVID", "ENVID=a=b", "ENVID=+0D+0A", "ENVID=" + "x" * 101,
        "HOLDFOR", "HOLDFOR=-1", "HOLDFOR=1.5", "HOLDFOR=1234567890", "HOLDFOR=3601",
        "HOLDUNTIL=2030-01-01", "HOLDUNTIL=2030-01-01T00:00:00", "HOLDUNTIL=2030-02-30T00:00:00Z",
        "HOLDUNTIL=2030-01-01T24:00:00Z", "HOLDUNTIL=2030-01-01T01:00:01Z",
        "HOLDUNTIL=9999-12-31T23:59:60Z", "HOLDUNTIL=0000-01-01T00:00:00Z",
        "HOLDUNTIL=2030-01-01T00:00:00+99:00", "HOLDFOR=1 HOLDUNTIL=2030-01-01T00:00:00Z",
        "MT-PRIORITY", "MT-PRIORITY=10", "MT-PRIORITY=-0", "MT-PRIORITY=+1", "MT-PRIORITY=00",
        "REQUIRETLS=YES", "AUTH", "AUTH=+00", "AUTH=" + "a" * 501,
        "RET=FULL RET=FULL", "ENVID=a envid=a", "SIZE=1 =2", "SIZE=1=2", "SIZE==1", "é=1",
        "AUTH=\u2028",
    ],
)  # fmt: skip
def test_an_unreadable_value_is_501_and_the_session_goes_on(parameters: str) -> None:
    server = dialogue()
    event = mail(parameters, server)
    code = 500 if "\u2028" in parameters else 501
    assert isinstance(event, Refused)
    assert event.default.code == code
    assert pull(server, b"MAIL FROM:<>\r\n")[0] == MailFrom(
        address="", default=event_default(server)
    )
    assert server.take_output().startswith(b"%d 5.5." % code)


def event_default(server: ServerDialogue) -> object:
    assert server.phase is Phase.MAIL
    return mail("").default


@pytest.mark.parametrize(
    "parameters",
    ["NOTIFY", "NOTIFY=NEVER,DELAY", "NOTIFY=", "NOTIFY=NOW", "ORCPT=rfc822", "ORCPT=rfc822;a=b",
     "ORCPT=rfc822;a ORCPT=rfc822;b", "NOTIFY=DELAY notify=DELAY", "ORCPT=rfc822;" + "x" * 494],
)  # fmt: skip
def test_an_unreadable_value_of_rcpt_is_501(parameters: str) -> None:
    event = rcpt(parameters)
    assert isinstance(event, Refused)
    assert event.default.code == 501


def test_more_than_size_is_552() -> None:
    event = mail("SIZE=1001")
    assert isinstance(event, Refused)
    assert event.default.code == 552


KEYWORDS = [
    "SIZE=1", "BODY=7BIT", "SMTPUTF8", "RET=FULL", "ENVID=a", "HOLDFOR=1", "AUTH=<>",
    "HOLDUNTIL=2030-01-01T00:00:00Z", "MT-PRIORITY=1", "REQUIRETLS", "BY=1;R", "X=1",
]  # fmt: skip


@pytest.mark.parametrize("parameters", KEYWORDS)
def test_what_was_not_offered_is_555(parameters: str) -> None:
    for server in (dialogue(NOTHING), dialogue()):
        if server.capabilities.dsn:
            if parameters[:2] not in ("BY", "X="):
                pull(server, b"HELO c\r\n")  # extensions are EHLO's
            server.take_output()
        event = mail(parameters, server)
        assert isinstance(event, Refused)
        assert event.default.code == 555
        assert server.take_output()[:3] == b"555"


@pytest.mark.parametrize("parameters", ["NOTIFY=NEVER", "ORCPT=rfc822;a@b", "SIZE=1", "RET=FULL"])
def test_what_was_not_offered_of_rcpt_is_555(parameters: str) -> None:
    event = rcpt(parameters, dialogue(NOTHING))
    assert isinstance(event, Refused)
    assert event.default.code == 555
    if parameters[0] in "SR":
        event = rcpt(parameters)
        assert isinstance(event, Refused)
        assert event.default.code == 555


def test_utf8_in_orcpt_needs_smtputf8() -> None:
    event = rcpt("ORCPT=utf-8;é@z.test")
    assert isinstance(event, Refused)
    assert event.default.code == 553
    event = rcpt("ORCPT=utf-8;é@z.test", utf8=True)
    assert isinstance(event, RcptTo)
    assert event.orcpt == "utf-8;é@z.test"


# What is offered


def offered(server: ServerDialogue) -> list[str]:
    pull(server, b"EHLO c\r\n")
    return [line[4:].decode() for line in server.take_output().splitlines()]


def test_requiretls_is_offered_under_tls_alone() -> None:
    server = dialogue(replace(OFFER, starttls=True), tls=False)
    assert "REQUIRETLS" not in offered(server)
    event = mail("REQUIRETLS", server)
    assert isinstance(event, Refused)
    assert event.default.code == 555
    server.take_output()
    pull(server, b"STARTTLS\r\n")
    server.tls_started()
    lines = offered(server)
    assert "REQUIRETLS" in lines
    assert "STARTTLS" not in lines
    assert isinstance(mail("REQUIRETLS", server), MailFrom)


def test_future_release_says_until_when_and_needs_a_clock() -> None:
    assert "FUTURERELEASE 3600 2030-01-01T01:00:00Z" in offered(dialogue())
    server = ServerDialogue(OFFER, tls=True)
    server.next_event()
    assert not [line for line in offered(server) if line.startswith("FUTURERELEASE")]
    event = mail("HOLDFOR=1", server)
    assert isinstance(event, Refused)
    assert event.default.code == 555
    assert "FUTURERELEASE 999999999 9999-12-31T23:59:59Z" in offered(
        ServerDialogue(replace(OFFER, future_release=999_999_999), clock=lambda: 253_402_300_000.0)
    )


def test_the_time_of_future_release_goes_on() -> None:
    times = iter([NOW, NOW + 0.9, NOW + 1, NOW + 61, NOW])
    server = ServerDialogue(OFFER, tls=True, clock=lambda: next(times))
    server.next_event()
    server.take_output()
    told = [
        line.rpartition("T")[2]
        for _ in range(5)
        for line in offered(server)
        if line.startswith("FUTURERELEASE")
    ]
    assert told == ["01:00:00Z", "01:00:00Z", "01:00:01Z", "01:01:01Z", "01:00:00Z"]


def test_a_client_reads_what_is_rendered() -> None:
    read = Capabilities.parse(offered(dialogue(transaction_limit=7, announce=True)))
    assert (read.dsn, read.mt_priority, read.future_release) == (True, "", 3600)
    assert (read.most_recipients, read.most_transactions) == (1000, 7)


def test_announced_limits_are_kept() -> None:
    server = dialogue(recipient_limit=2, transaction_limit=2, announce=True, error_limit=1)
    assert "LIMITS RCPTMAX=2 MAILMAX=2" in offered(server)
    one = b"MAIL FROM:<>\r\n" + b"RCPT TO:<b@y.test>\r\n" * 3 + b"RSET\r\n"
    pull(server, one * 2)
    assert server.take_output().split(b"\r\n")[3][:9] == b"452 4.5.3"
    assert isinstance(pull(server, b"MAIL FROM:<>\r\n")[-1], Closing)
    assert server.take_output()[:3] == b"421"


def test_without_limits_none_are_announced() -> None:
    lines = offered(dialogue(recipient_limit=2, announce=False))
    assert not [line for line in lines if line.startswith("LIMITS")]
    lines = offered(dialogue(recipient_limit=5_000_000, announce=True))
    assert "LIMITS RCPTMAX=999999" in lines


def help_of(server: ServerDialogue) -> str:
    pull(server, b"HELP\r\n")
    return server.take_output().decode().strip()


def test_help_names_the_commands_there_are() -> None:
    plain = "214 EHLO HELO MAIL RCPT DATA RSET NOOP VRFY HELP QUIT"
    assert help_of(dialogue(NOTHING)) == plain
    whole = replace(OFFER, chunking=True, starttls=True)
    before = help_of(dialogue(whole, tls=False))
    assert (
        before == "214 2.0.0 EHLO HELO MAIL RCPT DATA BDAT RSET NOOP VRFY HELP STARTTLS AUTH QUIT"
    )
    assert "STARTTLS" not in help_of(dialogue(whole))


@pytest.mark.parametrize("line", ["BDAT 3 LAST", "STARTTLS", "AUTH PLAIN", "EXPN a", "TURN"])
def test_commands_that_are_not_offered_are_502(line: str) -> None:
    server = dialogue(NOTHING, tls=False)
    (event,) = pull(server, f"{line}\r\n".encode())
    assert isinstance(event, Refused)
    assert event.default.code == 502
    server.take_output()
    assert help_of(server).find(line.split()[0]) < 0


def test_auth_that_is_offered_under_tls_alone_asks_for_it() -> None:
    server = ServerDialogue(
        replace(NOTHING, starttls=True, enhancedstatuscodes=True), secured=OFFER
    )
    server.next_event()
    offered(server)
    pull(server, b"AUTH PLAIN AHUAcA==\r\n")
    assert server.take_output()[:10] == b"538 5.7.11"
    assert not server.authenticated


# Lengths


def padded(head: str, octets: int) -> bytes:
    return (head + "x" * (octets - len(head) - 2)).encode() + b"\r\n"


@pytest.mark.parametrize(
    ("offer", "head", "most"),
    [
        (NOTHING, "NOOP ", 512),
        (OFFER, "NOOP ", 512),
        (OFFER, "EHLO ", 512),
        (OFFER, "XYZZY", 512),
        (NOTHING, "MAIL FROM:<a@x.test> ", 512),
        (NOTHING, "RCPT TO:<a@x.test> ", 512),
        (OFFER, "MAIL FROM:<a@x.test> ", 512 + 26 + 17 + 10 + 500 + 116 + 46 + 15 + 11),
        (OFFER, "RCPT TO:<a@x.test> ", 512 + 10 + 536),
        (OFFER, "mail from:<a@x.test> ", 512 + 26 + 17 + 10 + 500 + 116 + 46 + 15 + 11),
        (OFFER, "MAILFROM", 512),
        (OFFER, "AUTH X ", 12288),
        (NOTHING, "AUTH X ", 512),
    ],
)
def test_a_line_has_its_room_and_no_more(offer: Capabilities, head: str, most: int) -> None:
    for octets in (most, most + 1):
        server = dialogue(offer)
        (event,) = pull(server, padded(head, octets))
        too_long = isinstance(event, Refused) and event.rule == "line-too-long"
        assert too_long is (octets > most)
        if too_long:
            assert server.take_output()[:3] == b"500"
        assert pull(server, b"NOOP\r\n")


def test_the_longest_parameters_fit() -> None:
    server = dialogue(replace(OFFER, size=0))
    sender = "a" * 64 + "@" + "b" * 188 + ".x"
    line = (
        f"MAIL FROM:<{sender}> SIZE={'9' * 20} BODY=8BITMIME SMTPUTF8 RET=FULL ENVID={'e' * 100} "
        f"AUTH={'a' * 494} HOLDUNTIL=2030-01-01T00:00:00.123456789+00:00 MT-PRIORITY=-9 REQUIRETLS"
    )
    assert isinstance(pull(server, line.encode() + b"\r\n")[0], MailFrom)
    line = f"RCPT TO:<{sender}> NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=rfc822;{'o' * 493}"
    assert isinstance(pull(server, line.encode() + b"\r\n")[0], RcptTo)


# Floods


def test_commands_that_lead_nowhere_are_bounded() -> None:
    for flood in (
        b"NOOP\r\n",
        b"RSET\r\n",
        b"VRFY a\r\n",
        b"HELP\r\n",
        b"EHLO c\r\n",
        b"HELO c\r\n",
    ):
        server = dialogue(idle_limit=10, error_limit=5)
        pull(server, flood * 30)
        codes = [line[:3] for line in server.take_output().splitlines() if line[3:4] == b" "]
        assert codes[-1] == b"421"
        assert len(codes) == 10 + 5
        assert server.phase is Phase.CLOSED


def test_a_message_taken_clears_the_count() -> None:
    server = dialogue(idle_limit=4, error_limit=1)
    one = b"RSET\r\nNOOP\r\nMAIL FROM:<>\r\nRCPT TO:<b@y.test>\r\nDATA\r\nx\r\n.\r\n"
    pull(server, one * 20)
    assert b"421" not in server.take_output()


def test_refused_credentials_are_errors() -> None:
    server = dialogue(error_limit=3)
    pull(server, b"AUTH PLAIN AHUAcA==\r\n" * 5)
    codes = [line[:3] for line in server.take_output().splitlines() if line[3:4] == b" "]
    assert codes == [b"535", b"535", b"535", b"421"]


# Anything


@given(
    st.lists(
        st.sampled_from([*KEYWORDS, "NOTIFY=NEVER", "ORCPT=rfc822;a", "SIZE=9999", "RET=x"])
        | st.text(max_size=12),
        max_size=5,
    )
)
def test_any_parameters_are_understood_or_refused(words: list[str]) -> None:
    for head in ("MAIL FROM:<a@x.test>", "RCPT TO:<b@y.test>"):
        server = dialogue()
        pull(server, b"MAIL FROM:<a@x.test>\r\n" * (head[0] == "R"))
        server.take_output()
        line = (
            " ".join([head, *words]).replace("\r", "").replace("\n", "").encode("utf-8", "replace")
        )
        (event,) = pull(server, line + b"\r\n")
        answer = server.take_output()
        if isinstance(event, Refused):
            assert answer[:3] in (b"500", b"501", b"552", b"553", b"555")
        else:
            assert isinstance(event, (MailFrom, RcptTo))
            assert dict(event.params) == parse_path(line.decode()[5:])[1]
