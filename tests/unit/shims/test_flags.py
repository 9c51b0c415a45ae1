"""The command line of sendmail: what is understood, passed over and refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.shims import flags
from mailstrom.shims.flags import Wanted, read
from mailstrom.shims.sysexits import USAGE, Refusal


def test_the_lines_of_programs_that_call_sendmail() -> None:
    # cron (ISC, Debian), PHP, mutt, mailx, git send-email, smartd
    assert read(["-FCronDaemon", "-odi", "-oem", "-oi", "-t"]) == Wanted(
        name="CronDaemon", dot_ends=False, from_headers=True
    )
    assert read(["-FCronDaemon", "-i", "-B8BITMIME", "-oem", "root"]) == Wanted(
        name="CronDaemon", dot_ends=False, recipients=("root",)
    )
    assert read(["-t", "-i"]) == read(["-ti"]) == Wanted(from_headers=True, dot_ends=False)
    assert read(["-oem", "-oi", "-f", "ann@a.example", "--", "bob@b.example"]) == Wanted(
        dot_ends=False, sender="ann@a.example", recipients=("bob@b.example",)
    )
    assert read(["-i", "-F", "Ann Doe", "-r", "ann", "b@b.example", "c@c.example"]) == Wanted(
        dot_ends=False, name="Ann Doe", sender="ann", recipients=("b@b.example", "c@c.example")
    )


def test_values_stand_in_the_word_or_in_the_next() -> None:
    assert read(["-fann"]).sender == read(["-f", "ann"]).sender == "ann"
    assert read(["-f", ""]).sender == ""
    assert read(["-tif", "ann"]) == Wanted(from_headers=True, dot_ends=False, sender="ann")
    assert read(["-o", "i"]).dot_ends is False
    assert read(["-C/etc/x.toml"]).config == "/etc/x.toml"


def test_modes() -> None:
    assert read([]).mode == read(["-bm"]).mode == flags.SEND
    assert read(["-bs"]).mode == flags.SMTP
    assert read(["-bp"]).mode == flags.LIST
    assert read(["-bh"]).mode == read(["-bH"]).mode == flags.NOTHING
    assert read(["-q"]) == Wanted(mode=flags.FLUSH)
    assert read(["-qIabc"]).flush == ("I", "abc")
    assert read(["-qRb.example"]).flush == ("R", "b.example")
    assert read(["-q30m"]).mode == flags.SEND


def test_notices() -> None:
    assert read(["-N", "success, FAILURE,delay"]).notify == "success,failure,delay"
    assert read(["-Nnever"]).notify == "never"
    assert read(["-R", "HDRS"]).ret == "hdrs"
    assert read(["-V", "QQ314159"]).envid == "QQ314159"


def test_behind_the_first_address_nothing_is_a_flag() -> None:
    assert read(["bob", "-f", "eve"]) == Wanted(recipients=("bob", "-f", "eve"))
    assert read(["--", "-t"]) == Wanted(recipients=("-t",))
    assert read(["-"]) == Wanted(recipients=("-",))


def test_what_others_need_and_this_one_does_not() -> None:
    for one in flags.IGNORED:
        assert read([f"-{one}", "bob"]) == Wanted(recipients=("bob",))
    for one in flags.IGNORED_WITH_VALUE:
        assert read([f"-{one}value", "bob"]) == Wanted(recipients=("bob",))
        assert read([f"-{one}", "value", "bob"]) == Wanted(recipients=("bob",))
    for word in ("-Am", "-Ac", "-o7", "-o8", "-om", "-oem", "-odb", "-d0.4", "-d", "-vv", "-B7bit"):
        assert read([word, "bob"]) == Wanted(recipients=("bob",))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-bd"], "mailstrom serve"),
        (["-bl"], "mailstrom serve"),
        (["-bi"], "aliases"),
        (["-I"], "aliases"),
        (["-bv"], "why"),
        (["-bz"], "unknown"),
        (["-Z"], "unknown"),
        (["--help"], r"^'--help' is unknown; use: mailstrom-sendmail \[-t\]"),
        (["-t", "-f"], "needs a value"),
        (["-N", "sometimes"], "never"),
        (["-N", "never,delay"], "never"),
        (["-N", ""], "-N"),
        (["-R", "some"], "hdrs"),
        (["-V", "a\nb"], "printable"),
        (["-V", "x" * 101], "100"),
        (["-B", "BINARYMIME"], "8BITMIME"),
        (["-qX"], "-qI"),
        (["-qI"], "-qI"),
    ],
)
def test_what_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(Refusal, match=said) as caught:
        read(words)
    assert caught.value.code == USAGE


def test_the_list_tells_its_own_use() -> None:
    with pytest.raises(Refusal, match=r"use: mailstrom-mailq \[-j\]"):
        read(["--help"], flags.LIST)


@given(st.lists(st.text(max_size=6), max_size=6))
def test_any_words_are_understood_or_refused(words: list[str]) -> None:
    try:
        wanted = read(words)
    except Refusal as error:
        code = error.code
    else:
        assert wanted.recipients == tuple(words[len(words) - len(wanted.recipients) :])
        return
    assert code == USAGE
