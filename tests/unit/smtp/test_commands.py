"""Commands: nothing can be smuggled out, nothing is misread on the way in."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.smtp import commands
from mailstrom.smtp.capabilities import MOST_RAW, Capabilities
from mailstrom.smtp.commands import BadCommand, parse_command, parse_path
from mailstrom.smtp.reply import ReplyParser, render_reply

GOOD = [
    "a@example.org",
    "a..b@example.org",
    "a+b=c/d@sub.example.org",
    '"a b>c"@example.org',
    r'"quo\"te"@example.org',
    "user@[192.0.2.1]",
    "user@[IPv6:2001:db8::1]",
    "jos\u00e9@ex\u00e4mple.org",
]
BAD = [
    "a",
    "@example.org",
    "a@",
    "a b@example.org",
    "a@exa mple.org",
    "<a@example.org>",
    "a@example.org>",
    "a@example.org> SIZE=1",
    "a@example.org\r\nRSET",
    "a\n@example.org",
    "a\x00@example.org",
    '"a\r\n"@example.org',
    '"a@example.org',
    "a@b@example.org",
    "a\u2028@example.org",
    "a\x85@example.org",
    "a\ud800@example.org",
    "a@[1.2.3.4",
    "",
]


@pytest.mark.parametrize("address", GOOD)
def test_good_addresses_survive_the_round_trip(address: str) -> None:
    utf8 = not address.isascii()
    for line, keyword in (
        (commands.mail(address, size=5, body="8BITMIME", smtputf8=utf8), "FROM"),
        (commands.rcpt(address, smtputf8=utf8), "TO"),
    ):
        assert line.endswith(b"\r\n")
        assert line.count(b"\r") == line.count(b"\n") == 1
        command = parse_command(line[:-2])
        assert command.verb == ("MAIL" if keyword == "FROM" else "RCPT")
        found, params = parse_path(command.argument, keyword)
        assert found == address
        if keyword == "FROM":
            expected: dict[str, str | None] = {"SIZE": "5", "BODY": "8BITMIME"}
            assert params == (expected | {"SMTPUTF8": None} if utf8 else expected)


@pytest.mark.parametrize("address", BAD)
def test_bad_addresses_never_become_commands(address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        commands.rcpt(address, smtputf8=True)
    if address:
        with pytest.raises(ValueError, match="address"):
            commands.mail(address, smtputf8=True)


@given(st.text(max_size=40))
def test_no_text_can_end_a_command_or_leave_its_brackets(text: str) -> None:
    try:
        line = commands.rcpt(text, smtputf8=True)
    except ValueError:
        return
    assert line.count(b"\r") == line.count(b"\n") == 1
    assert parse_path(parse_command(line[:-2]).argument, "TO") == (text, {})


def test_utf8_needs_its_extension() -> None:
    with pytest.raises(ValueError, match="SMTPUTF8"):
        commands.mail("jos\u00e9@example.org")
    with pytest.raises(ValueError, match="SMTPUTF8"):
        commands.rcpt("jos\u00e9@example.org")


def test_special_paths() -> None:
    assert commands.mail("") == b"MAIL FROM:<>\r\n"
    assert commands.rcpt("Postmaster") == b"RCPT TO:<Postmaster>\r\n"
    assert parse_path("TO:<postMASTER>", "TO") == ("postMASTER", {})
    assert parse_path("FROM:<>") == ("", {})
    assert parse_path("FROM: <a@b.c>") == ("a@b.c", {})
    assert parse_path("to:<@x.y,@z.w:a@b.c> NOTIFY=NEVER") == ("a@b.c", {"NOTIFY": "NEVER"})


def test_a_local_part_alone_is_an_address_where_it_may_be() -> None:
    for local in ("root", "a.b", '"a b"', '"a@b"', "jos\u00e9"):
        assert parse_path(f"FROM:<{local}> SIZE=1", "FROM", bare=True) == (local, {"SIZE": "1"})
        assert parse_path(f"TO:<{local}>", "TO", bare=True) == (local, {})
        for word in ("FROM", "TO"):
            with pytest.raises(commands.BadCommand, match="path-syntax"):
                parse_path(f"{word}:<{local}>", word)
    for path in ("<>", "<root", "<@a.b:root>", "<a b>", "<root@>", "<@b>", "<[127.0.0.1]>", "root"):
        with pytest.raises(commands.BadCommand, match="path-syntax"):
            parse_path(f"TO:{path}", "TO", bare=True)
    assert parse_path("FROM:<>", bare=True) == ("", {})
    assert parse_path("TO:<a@b.c>", "TO", bare=True) == ("a@b.c", {})


@pytest.mark.parametrize("size", [-1])
def test_bad_mail_parameters_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="SIZE"):
        commands.mail("", size=size)
    with pytest.raises(ValueError, match="BODY"):
        commands.mail("", body="7BIT X=Y")
    for more in ("RET=FULL", " RET=FULL ", " A=1=2", " A=\r\nRSET", " A=\u2028", " =B", " A\n"):
        with pytest.raises(ValueError, match="parameters"):
            commands.mail("", more=more)
        with pytest.raises(ValueError, match="parameters"):
            commands.rcpt("a@b.c", more=more)


@pytest.mark.parametrize("name", ["", "a b", "a\r\nMAIL", "ex\u00e4mple.org", "a\tb"])
def test_greeting_names_are_one_word(name: str) -> None:
    with pytest.raises(ValueError, match="EHLO"):
        commands.ehlo(name)
    with pytest.raises(ValueError, match="HELO"):
        commands.helo(name)


def test_greetings_take_names_and_literals() -> None:
    assert commands.ehlo("mail.example.org") == b"EHLO mail.example.org\r\n"
    assert commands.helo("[IPv6:::1]") == b"HELO [IPv6:::1]\r\n"


@pytest.mark.parametrize(
    ("argument", "keyword", "rule"),
    [
        ("FROM:a@b.c", "FROM", "path-syntax"),
        ("FROM <a@b.c>", "FROM", "path-syntax"),
        ("TO:<a@b.c>", "FROM", "path-syntax"),
        ("TO:<>", "TO", "path-syntax"),
        ("FROM:<postmaster>", "FROM", "path-syntax"),
        ("FROM:<a@b.c", "FROM", "path-syntax"),
        ("FROM:<a@b.c>SIZE=1", "FROM", "path-syntax"),
        ("FROM:<a@b.c> =1", "FROM", "parameter-syntax"),
        ("FROM:<a@b.c> A=1=2", "FROM", "parameter-syntax"),
        ("FROM:<a@b.c> SIZE=1 size=2", "FROM", "duplicate-parameter"),
    ],
)
def test_bad_paths_are_refused_by_name(argument: str, keyword: str, rule: str) -> None:
    with pytest.raises(BadCommand) as caught:
        parse_path(argument, keyword)
    assert caught.value.rule == rule


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        (b"", "syntax"),
        (b" NOOP", "syntax"),
        (b"\xff", "syntax"),
        (b"NOOP\tx", "syntax"),
        (b"NOOP \xff", "not-utf8"),
        (b"NOOP a\x1bb", "control"),
    ],
)
def test_bad_lines_are_refused_by_name(line: bytes, rule: str) -> None:
    with pytest.raises(BadCommand) as caught:
        parse_command(line)
    assert caught.value.rule == rule


@given(st.binary(max_size=80))
def test_any_line_is_a_command_or_a_named_refusal(line: bytes) -> None:
    text = ""
    try:
        command = parse_command(line)
        parse_path(command.argument)
    except BadCommand as bad:
        text = bad.text
    assert text.isprintable()


def test_capabilities_round_trip_over_the_wire() -> None:
    offered = Capabilities(
        name="mx.example.org",
        size=0,
        pipelining=True,
        eightbitmime=True,
        smtputf8=True,
        chunking=True,
        starttls=True,
        enhancedstatuscodes=True,
        dsn=True,
        requiretls=True,
        future_release=86400,
        future_release_until="2030-01-01T00:00:00Z",
        mt_priority="MIXER",
        auth=frozenset({"PLAIN", "LOGIN"}),
        limits={"RCPTMAX": 5},
    )
    (reply,) = ReplyParser().feed(render_reply(250, None, *offered.render()))
    read = Capabilities.parse(reply.lines)
    assert read.render() == offered.render()
    assert read.limits == {"RCPTMAX": 5}
    assert (read.dsn, read.requiretls, read.mt_priority) == (True, True, "MIXER")
    assert (read.future_release, read.future_release_until) == (86400, "2030-01-01T00:00:00Z")
    assert read.raw.splitlines()[0] == "mx.example.org"


def test_capabilities_as_the_field_writes_them() -> None:
    lines = ["mx Hello", "size 100", "Auth=LOGIN PLAIN", "AUTH cram-md5", "", "XUNKNOWN a", "DSN"]
    read = Capabilities.parse(lines)
    assert read.size == 100
    assert read.auth == {"LOGIN", "PLAIN", "CRAM-MD5"}
    assert read.name == "mx"
    assert not read.pipelining
    assert Capabilities.parse(["mx", "SIZE"]).size == 0
    assert Capabilities.parse(["mx", "SIZE " + "9" * 5000]).size == 0
    assert Capabilities.parse(["mx"]).size is None
    assert Capabilities.parse(["mx"]).mt_priority is None
    assert Capabilities.parse(["mx", "mt-priority"]).mt_priority == ""
    for odd in ("FUTURERELEASE", "FUTURERELEASE 5", "FUTURERELEASE x 2030-01-01T00:00:00Z"):
        assert Capabilities.parse(["mx", odd]).future_release is None
    assert Capabilities.parse(["mx", "LIMITS RCPTMAX=x MAILMAX=7"]).limits == {"MAILMAX": 7}
    assert Capabilities.parse([]) == Capabilities(limits={})
    assert Capabilities.parse(["mx\x1b[2J"]).raw == r"mx\x1b[2J"
    long = Capabilities.parse(["mx", *["X" * 1000] * 30, "PIPELINING"])
    assert len(long.raw) == MOST_RAW
    assert long.pipelining


@pytest.mark.parametrize(
    ("words", "limits"),
    [
        ("MAILMAX=10 RCPTMAX=100 RCPTDOMAINMAX=1", (10, 100, 1)),
        ("rcptmax=999999", (0, 999999, 0)),
        ("MAILMAX=0 RCPTMAX=1000000 RCPTDOMAINMAX=01", (0, 0, 0)),
        ("MAILMAX= RCPTMAX RCPTDOMAINMAX=-1", (0, 0, 0)),
        ("MAILMAX=5 MAILMAX=3 MAILMAX=x", (3, 0, 0)),
        ("FUTURE=1 RCPTMAX=2", (0, 2, 0)),
        ("", (0, 0, 0)),
    ],
)
def test_limits_are_read_as_rfc_9422_writes_them(words: str, limits: tuple[int, int, int]) -> None:
    read = Capabilities.parse(["mx", f"LIMITS {words}"])
    assert (read.most_transactions, read.most_recipients, read.most_domains) == limits
    again = Capabilities.parse(read.render())
    assert again.limits == read.limits


@given(
    st.lists(
        st.sampled_from(
            ["FROM:", "TO:", "from:", "<", ">", "a@b.c", "a", "@", "é@x.org", '"q"@x', "[1.2.3.4]",
             " ", "SIZE=1", "size=2", "X", "=", "@r:", "postmaster", "<>", "\t", "a.b@c-d.e", ":"]
        ),
        max_size=8,
    ).map("".join)
)  # fmt: skip
def test_what_nearly_all_write_is_read_as_all_the_rest_is(argument: str) -> None:
    def read(keyword: str) -> tuple[str, dict[str, str | None]] | str:
        try:
            return parse_path(argument, keyword)
        except BadCommand as bad:
            return bad.rule

    with pytest.MonkeyPatch.context() as patch:
        short = [read(keyword) for keyword in ("", "FROM", "TO")]
        patch.setattr(commands, "_COMMON", re.compile("(?!)"))
        assert [read(keyword) for keyword in ("", "FROM", "TO")] == short
