"""The server's dialogue answers every command as RFC 5321 says, whatever the split of the bytes."""

from __future__ import annotations

import base64
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.framing import DotStuffer
from mailstrom.smtp.reply import Reply
from mailstrom.smtp.server import ServerDialogue
from mailstrom.smtp.server_events import (
    Closing,
    Content,
    ContentEnd,
    Credentials,
    DataBegin,
    Event,
    Hello,
    MailFrom,
    Opened,
    Quit,
    RcptTo,
    Refused,
    StartTls,
)
from mailstrom.smtp.server_order import Phase

OFFER = Capabilities(
    name="mx.test",
    size=1000,
    pipelining=True,
    eightbitmime=True,
    smtputf8=True,
    starttls=True,
    enhancedstatuscodes=True,
)


def dialogue(offer: Capabilities = OFFER, **options: int | bool) -> ServerDialogue:
    made = ServerDialogue(offer, **options)  # type: ignore[arg-type]
    assert isinstance(made.next_event(), Opened)
    assert made.next_event() is None
    made.take_output()
    return made


def pull(server: ServerDialogue, data: bytes = b"") -> list[Event]:
    server.feed(data)
    events: list[Event] = []
    while (event := server.next_event()) is not None:
        events.append(event)
    return events


def codes(server: ServerDialogue) -> list[str]:
    return [line[:3].decode() for line in server.take_output().splitlines() if line[3:4] != b"-"]


def say(server: ServerDialogue, *lines: str) -> list[str]:
    pull(server, "".join(f"{line}\r\n" for line in lines).encode())
    return codes(server)


def refused(server: ServerDialogue, line: str) -> tuple[str, str]:
    (event,) = pull(server, f"{line}\r\n".encode())
    assert isinstance(event, Refused)
    return codes(server)[0], event.rule


def content_of(events: list[Event]) -> bytes:
    return b"".join(event.chunk for event in events if isinstance(event, Content))


def test_greeting_names_the_server_and_stands_by_default() -> None:
    server = ServerDialogue(OFFER)
    assert isinstance(server.next_event(), Opened)
    assert server.take_output() == b""
    assert server.next_event() is None
    assert server.take_output() == b"220 mx.test ESMTP\r\n"


def test_refused_greeting_leaves_only_quit() -> None:
    server = ServerDialogue(OFFER)
    server.next_event()
    server.reply(554, None, "no service here")
    assert say(server, "EHLO a", "MAIL FROM:<>", "NOOP", "QUIT") == [
        "554",
        "503",
        "503",
        "503",
        "221",
    ]
    assert server.phase is Phase.CLOSED


def test_ehlo_offers_what_was_configured_and_helo_nothing() -> None:
    server = dialogue()
    pull(server, b"EHLO client.test\r\n")
    assert server.take_output().split(b"\r\n") == [
        b"250-mx.test",
        b"250-PIPELINING",
        b"250-8BITMIME",
        b"250-SMTPUTF8",
        b"250-STARTTLS",
        b"250-ENHANCEDSTATUSCODES",
        b"250 SIZE 1000",
        b"",
    ]
    assert [type(event) for event in pull(server, b"HELO client.test\r\n")] == [Hello]
    assert server.take_output() == b"250 mx.test\r\n"


def test_whole_pipelined_transaction() -> None:
    server = dialogue()
    events = pull(
        server,
        b"EHLO c\r\nMAIL FROM:<a@x.test> SIZE=7 BODY=8BITMIME SMTPUTF8\r\n"
        b"RCPT TO:<b@y.test>\r\nRCPT TO:<\xc3\xa9@y.test>\r\nDATA\r\n",
    )
    sender = events[1]
    assert isinstance(sender, MailFrom)
    assert (sender.address, sender.size, sender.eightbit, sender.smtputf8) == (
        "a@x.test",
        7,
        True,
        True,
    )
    assert [event.address for event in events if isinstance(event, RcptTo)] == [
        "b@y.test",
        "é@y.test",
    ]
    assert codes(server) == ["250", "250", "250", "250", "354"]
    events = pull(server, b"..a\r\nb\r\n.\r\nMAIL FROM:<>\r\nQUIT\r\n")
    assert content_of(events) == b".a\r\nb\r\n"
    assert [type(event) for event in events] == [Content, ContentEnd, MailFrom, Quit, Closing]
    assert codes(server) == ["250", "250", "221"]


def test_the_shell_may_answer_later_and_otherwise() -> None:
    server = dialogue()
    say(server, "EHLO c")
    server.feed(b"MAIL FROM:<a@x.test>\r\nRCPT TO:<no@y.test>\r\nRCPT TO:<b@y.test>\r\n")
    assert isinstance(server.next_event(), MailFrom)
    assert server.take_output() == b""
    assert isinstance(server.next_event(), RcptTo)
    server.reply(550, "5.1.1", "nobody", "of that name")
    assert server.take_output().endswith(b"550-5.1.1 nobody\r\n550 5.1.1 of that name\r\n")
    assert isinstance(server.next_event(), RcptTo)
    assert server.next_event() is None
    assert server.recipients == 1


def test_refusing_data_keeps_the_transaction_and_never_takes_content() -> None:
    server = dialogue()
    say(server, "EHLO c", "MAIL FROM:<a@x.test>", "RCPT TO:<b@y.test>")
    server.feed(b"DATA\r\n")
    assert isinstance(server.next_event(), DataBegin)
    server.reply(451, "4.3.0", "later")
    assert server.phase is Phase.RCPT
    assert say(server, "RSET", "MAIL FROM:<>") == ["451", "250", "250"]


def test_data_behind_refused_recipients_is_554_and_without_any_503() -> None:
    server = dialogue()
    say(server, "EHLO c", "MAIL FROM:<a@x.test>")
    assert refused(server, "DATA") == ("503", "bad-sequence")
    server.feed(b"RCPT TO:<b@y.test>\r\nDATA\r\n")
    server.next_event()
    server.reply(450, "4.2.1", "later")
    assert [type(event) for event in pull(server)] == [Refused]
    assert codes(server) == ["450", "554"]


@pytest.mark.parametrize(
    ("before", "line"),
    [
        ([], "MAIL FROM:<a@x.test>"),
        ([], "RCPT TO:<a@x.test>"),
        ([], "DATA"),
        ([], "STARTTLS"),
        (["EHLO c"], "RCPT TO:<a@x.test>"),
        (["EHLO c"], "DATA"),
        (["EHLO c", "MAIL FROM:<>"], "MAIL FROM:<>"),
        (["EHLO c", "MAIL FROM:<>"], "STARTTLS"),
        (["EHLO c", "MAIL FROM:<>", "EHLO c"], "RCPT TO:<a@x.test>"),
        (["EHLO c", "MAIL FROM:<>", "RSET"], "RCPT TO:<a@x.test>"),
    ],
)
def test_commands_out_of_order_are_503(before: list[str], line: str) -> None:
    server = dialogue()
    say(server, *before)
    assert refused(server, line) == ("503", "bad-sequence")


@pytest.mark.parametrize(
    ("line", "code", "rule"),
    [
        ("EHLO", "501", "hello-name"),
        ("EHLO two words", "501", "hello-name"),
        ("XYZZY", "500", "unknown-command"),
        ("BDAT 5 LAST", "502", "not-implemented"),
        ("RSET now", "501", "argument"),
        ("MAIL FROM:a@x.test", "501", "path-syntax"),
        ("MAIL FROM:<a@x.test> RET=FULL", "555", "parameter"),
        ("MAIL FROM:<a@x.test> SIZE=x", "501", "parameter-value"),
        ("MAIL FROM:<a@x.test> SIZE", "501", "parameter-value"),
        ("MAIL FROM:<a@x.test> BODY=9BIT", "501", "parameter-value"),
        ("MAIL FROM:<a@x.test> BODY", "501", "parameter-value"),
        ("MAIL FROM:<a@x.test> SIZE=1001", "552", "oversize"),
        ("MAIL FROM:<é@x.test>", "553", "smtputf8"),
        ("AUTH PLAIN", "502", "not-implemented"),
        ("NOOP \x00", "500", "control"),
        ("\u2028", "500", "syntax"),
    ],
)
def test_bad_commands_have_their_code(line: str, code: str, rule: str) -> None:
    server = dialogue()
    say(server, "EHLO c")
    assert refused(server, line) == (code, rule)


def test_extensions_cannot_be_used_behind_helo() -> None:
    server = dialogue()
    say(server, "HELO c")
    assert refused(server, "MAIL FROM:<a@x.test> SIZE=1") == ("555", "parameter")


def test_enhanced_codes_only_where_offered() -> None:
    for offered in (True, False):
        server = dialogue(replace(OFFER, enhancedstatuscodes=offered))
        say(server, "EHLO c")
        pull(server, b"MAIL FROM:<a@x.test>\r\n")
        assert (b"2.1.0" in server.take_output()) is offered


def test_recipient_limit_is_452_and_no_error() -> None:
    server = dialogue(recipient_limit=2, error_limit=1)
    lines = ["EHLO c", "MAIL FROM:<>", *(f"RCPT TO:<{n}@x.test>" for n in range(5))]
    assert say(server, *lines) == ["250", "250", "250", "250", "452", "452", "452"]
    assert server.recipients == 2


def test_too_many_errors_end_the_session_with_421() -> None:
    server = dialogue(error_limit=2)
    assert say(server, "EHLO c", "X", "X", "X", "X") == ["250", "500", "500", "421"]
    assert server.phase is Phase.CLOSED


def test_what_the_shell_refuses_and_what_the_dialogue_refuses_are_one_count() -> None:
    for refused in ("RCPT TO:<b@x.test>", "X"):
        server = dialogue(error_limit=4)
        say(server, "EHLO c", "MAIL FROM:<>", "RCPT TO:<a@x.test>")

        def turn(line: str, server: ServerDialogue = server) -> str:
            server.feed(line.encode() + b"\r\n")
            if isinstance(server.next_event(), RcptTo):
                server.reply(550, "5.1.1", "no such mailbox")
            pull(server)
            (code,) = codes(server)
            return code

        for line in ("RCPT TO:<b@x.test>", "X", "NOOP"):
            assert turn(line) != "421"
        assert say(server, "DATA", "x", ".") == ["354", "250"]  # forgiven
        say(server, "MAIL FROM:<>", "RCPT TO:<a@x.test>")
        for line in ("RCPT TO:<b@x.test>", "X", "RCPT TO:<b@x.test>", "X"):
            assert turn(line) in ("550", "500")
        assert turn(refused) == "421"
        assert server.phase is Phase.CLOSED


@pytest.mark.parametrize(
    ("code", "enhanced", "text", "why"),
    [
        (550, "5.1.1", "a\nb", "holds CR, LF"),
        (550, "4.1.1", "a", "does not belong to 550"),
        (600, None, "a", "600 is outside"),
    ],
)
def test_a_reply_that_cannot_be_said_and_the_one_in_its_place_are_one_error(
    code: int, enhanced: str | None, text: str, why: str
) -> None:
    server = dialogue(error_limit=2)
    say(server, "EHLO c", "MAIL FROM:<>")
    for _ in range(2):
        server.feed(b"RCPT TO:<a@x.test>\r\n")
        server.next_event()
        with pytest.raises(ValueError, match=why):
            server.reply(code, enhanced, text)
        server.reply(451, "4.3.0", "local error")
        assert codes(server) == ["451"]
    assert say(server, "RCPT TO:<a@x.test>", "X") == ["250", "421"]


def test_credentials_that_cannot_be_answered_are_one_error() -> None:
    server = dialogue(replace(OFFER, auth=frozenset({"PLAIN"})), login_limit=1)
    say(server, "EHLO c")
    server.feed(b"AUTH PLAIN AGpvZQB4\r\n")
    assert isinstance(server.next_event(), Credentials)
    with pytest.raises(ValueError, match="holds CR, LF"):
        server.reply(535, "5.7.8", "a\nb")
    server.reply(454, "4.7.0", "local error")
    assert codes(server) == ["454"]


def test_no_limit_of_errors_is_none() -> None:
    server = dialogue(error_limit=0)
    assert set(say(server, "EHLO c", *["X"] * 300)) == {"250", "500"}


def test_a_421_of_the_shell_closes() -> None:
    server = dialogue()
    say(server, "EHLO c")
    server.feed(b"MAIL FROM:<>\r\n")
    server.next_event()
    server.reply(421, "4.3.2", "going away")
    assert pull(server, b"NOOP\r\n") == [Closing(cause="421")]
    assert codes(server) == ["421"]


def test_withheld_reply_sends_nothing_and_refuses() -> None:
    server = dialogue()
    say(server, "EHLO c")
    server.feed(b"MAIL FROM:<>\r\n")
    server.next_event()
    server.withhold()
    assert server.take_output() == b""
    assert server.phase is Phase.READY


def test_overlong_and_bare_lines_are_refused_and_the_session_goes_on() -> None:
    server = dialogue(line_limit=64)
    assert say(server, "EHLO " + "a" * 100, "NOOP a\rb", "NOOP") == ["500", "500", "250"]
    for line, told in {
        b"NOOP a\rb\r\n": b"command has a carriage return without a line feed; lines end in CRLF",
        b"NOOP a\nb\r\n": b"command has a line feed without a carriage return; lines end in CRLF",
        b"EHLO " + b"a" * 100 + b"\r\n": b"command line too long",
    }.items():
        pull(server, line)
        (said,) = server.take_output().splitlines()
        assert said.startswith(b"500 ")
        assert said.endswith(told)


@pytest.mark.parametrize("ending", [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r"])
def test_only_crlf_dot_crlf_ends_content(ending: bytes) -> None:
    server = dialogue()
    say(server, "EHLO c", "MAIL FROM:<>", "RCPT TO:<b@y.test>", "DATA")
    smuggled = b"x" + ending + b"MAIL FROM:<evil@x.test>\r\nRCPT TO:<c@y.test>\r\nDATA\r\n"
    assert all(isinstance(event, Content) for event in pull(server, smuggled))
    assert server.take_output() == b""
    end = pull(server, b"y\r\n.\r\n")[-1]
    assert isinstance(end, ContentEnd)
    assert end.violation is not None
    assert codes(server) == ["554"]


def test_oversize_content_is_read_to_its_end_and_refused() -> None:
    server = dialogue()
    say(server, "EHLO c", "MAIL FROM:<>", "RCPT TO:<b@y.test>", "DATA")
    handed_out = 0
    for _ in range(40):
        handed_out += len(content_of(pull(server, b"0123456789" * 10 + b"\r\n")))
    (end,) = pull(server, b".\r\n")
    assert isinstance(end, ContentEnd)
    assert end.oversize
    assert end.octets == 40 * 102
    assert handed_out <= 1000
    assert say(server, "MAIL FROM:<>") == ["552", "250"]


def test_starttls_forgets_what_was_said_before() -> None:
    server = dialogue()
    say(server, "EHLO c")
    server.feed(b"STARTTLS\r\n")
    assert isinstance(server.next_event(), StartTls)
    assert pull(server) == []
    assert codes(server) == ["220"]
    server.tls_started()
    assert refused(server, "MAIL FROM:<>") == ("503", "bad-sequence")
    assert say(server, "EHLO c") == ["250"]
    assert refused(server, "STARTTLS") == ("503", "tls-already")
    assert not server.capabilities.starttls


def test_who_logged_in_before_tls_is_nobody_behind_it() -> None:
    server = dialogue(replace(OFFER, auth=frozenset({"PLAIN"})))
    say(server, "EHLO c")
    for begun in (False, True):
        if begun:
            assert say(server, "STARTTLS") == ["220"]
            server.tls_started()
            assert not server.authenticated
            assert say(server, "EHLO c") == ["250"]
        server.feed(f"AUTH PLAIN {b64(chr(0) + 'u' + chr(0) + 'p')}\r\n".encode())
        assert isinstance(server.next_event(), Credentials)
        server.reply(235, "2.7.0", "welcome")
        assert codes(server) == ["235"]
        assert server.authenticated


@pytest.mark.parametrize("split", [0, 3])
def test_plaintext_behind_starttls_closes(split: int) -> None:
    server = dialogue()
    say(server, "EHLO c")
    injected = b"RSET\r\n"
    server.feed(b"STARTTLS\r\n" + injected[:split])
    if split == 0:
        server.next_event()
        server.feed(injected)
    events = pull(server)
    assert isinstance(events[-1], Closing)
    assert codes(server) == ["554"]
    with pytest.raises(RuntimeError):
        server.tls_started()


def test_plaintext_during_the_handshake_closes() -> None:
    server = dialogue()
    say(server, "EHLO c", "STARTTLS")
    server.feed(b"MAIL FROM:<evil@x.test>\r\n")
    server.tls_started()
    assert pull(server) == [Closing(cause="plaintext-behind-starttls")]


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def credentials(server: ServerDialogue, *lines: str) -> Credentials:
    event = pull(server, "".join(f"{line}\r\n" for line in lines).encode())[-1]
    assert isinstance(event, Credentials)
    return event


AUTH_OFFER = replace(OFFER, auth=frozenset({"PLAIN", "LOGIN"}))


def test_auth_plain_and_login_give_the_same_credentials_and_are_refused_by_default() -> None:
    plain = b64("\0us\u00e9r\0pass")
    for lines in (
        [f"AUTH PLAIN {plain}"],
        ["auth plain", plain],
        ["AUTH LOGIN", b64("us\u00e9r"), b64("pass")],
        [f"AUTH LOGIN {b64('us' + chr(233) + 'r')}", b64("pass")],
    ):
        server = dialogue(AUTH_OFFER)
        say(server, "EHLO c")
        found = credentials(server, *lines)
        assert (found.identity, found.user, found.password) == ("", "us\u00e9r", "pass")
        assert "pass" not in repr(found)
        assert codes(server)[-1] == "535"
        assert not server.authenticated


def test_accepted_auth_is_remembered() -> None:
    server = dialogue(AUTH_OFFER)
    say(server, "EHLO c")
    server.feed(f"AUTH PLAIN {b64(chr(0) + 'u' + chr(0) + 'p')}\r\n".encode())
    server.next_event()
    server.reply(235, "2.7.0", "welcome")
    assert server.authenticated
    assert refused(server, "AUTH PLAIN") == ("235", "auth-already")
    assert say(server, "MAIL FROM:<a@x.test> AUTH=<>")[-1] == "250"


@pytest.mark.parametrize("answer", ["*", "no base64", b64("no nul"), "\u00e9", "a" * 20000])
def test_failed_auth_exchange_leaves_the_session_usable(answer: str) -> None:
    server = dialogue(AUTH_OFFER)
    say(server, "EHLO c")
    assert say(server, "AUTH PLAIN", answer, "NOOP")[1:] in (["501", "250"], ["500", "250"])
    assert server.take_output() == b""


SESSION = (
    b"EHLO c\r\nMAIL FROM:<a@x.test> SIZE=20\r\nRCPT TO:<b@y.test>\r\nBOGUS\r\nDATA\r\n"
    b"Subject: x\r\n\r\n..stuffed\r\n.\r\n"
    b"MAIL FROM:<>\r\nRCPT TO:<c@y.test>\r\nDATA\r\n.\r\nQUIT\r\n"
)


def outcome(pieces: list[bytes]) -> tuple[list[str], bytes, bytes]:
    server = dialogue()
    events: list[Event] = []
    for piece in pieces:
        events += pull(server, piece)
    names = [type(event).__name__ for event in events if not isinstance(event, Content)]
    return names, content_of(events), server.take_output()


def test_every_single_split_gives_the_same_events() -> None:
    whole = outcome([SESSION])
    assert whole[1] == b"Subject: x\r\n\r\n.stuffed\r\n"
    for at in range(len(SESSION)):
        assert outcome([SESSION[:at], SESSION[at:]]) == whole
    assert outcome([SESSION[n : n + 1] for n in range(len(SESSION))]) == whole


@given(
    st.lists(
        st.sampled_from([b".", b"\r\n", b"a", b"..", b"\xff\x00", b"MAIL FROM:<>"]), max_size=40
    ),
    st.lists(st.integers(0, 400), max_size=6),
)
def test_stuffed_content_comes_out_as_it_went_in(parts: list[bytes], cuts: list[int]) -> None:
    content = b"".join(parts)
    stuffer = DotStuffer()
    wire = stuffer.feed(content) + stuffer.end() + b"NOOP\r\n"
    server = dialogue()
    say(server, "EHLO c", "MAIL FROM:<>", "RCPT TO:<b@y.test>", "DATA")
    bounds = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    events: list[Event] = []
    for start, stop in pairwise(bounds):
        events += pull(server, wire[start:stop])
    supplied = b"" if content.endswith(b"\r\n") or not content else b"\r\n"
    assert content_of(events) == content + supplied
    assert codes(server) == ["250", "250"]


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_wild_bytes_never_break_the_dialogue(pieces: list[bytes]) -> None:
    server = dialogue(AUTH_OFFER)
    say(server, "EHLO c")
    for piece in pieces:
        pull(server, piece)
        output = server.take_output()
        assert not output or output.endswith(b"\r\n")


def test_answering_twice_or_unasked_is_a_bug_of_the_shell() -> None:
    server = dialogue()
    with pytest.raises(RuntimeError, match="no question"):
        server.reply(250)
    with pytest.raises(RuntimeError, match="no question"):
        server.withhold()
    with pytest.raises(RuntimeError, match="no question"):
        server.answer(Reply(250, None, ()))


def test_an_answer_is_said_as_it_is() -> None:
    server = dialogue()
    say(server, "EHLO c")
    server.feed(b"MAIL FROM:<>\r\n")
    server.next_event()
    server.answer(Reply(250, "2.1.0", ("yes", "of course")))
    assert server.take_output() == b"250-2.1.0 yes\r\n250 2.1.0 of course\r\n"
    assert server.phase is Phase.MAIL
