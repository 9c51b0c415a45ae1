"""Flights of several messages against servers that fail in the middle of them, on real sockets.

What may be believed is compared with what the server took (``Flown.unsound``); what became of each
message stands in a table written from the failure policy and the RFCs, for every way in which a
message can go out.
"""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailstrom.smtp.client import Extension
from mailstrom.testing.script import Act, Rule, Script
from tests.wire.flights import DIALECTS, Flown, Message, fly, message

SILENT_S = 0.5
SILENCE = dict.fromkeys(("mail", "rcpt", "data", "body", "dot", "rset"), SILENT_S)
FOUR = [message(number) for number in range(1, 5)]


def flown(way: str, script: Script, messages: list[Message], **seconds: float) -> Flown:
    async def bounded() -> Flown:
        async with asyncio.timeout(60):
            return await fly(DIALECTS[way], script, messages, **seconds)

    return asyncio.run(bounded())


def playing(*rules: Rule) -> Script:
    return Script(rules=rules, magic=False, chunking=True)


# A good server


@pytest.mark.parametrize("way", DIALECTS)
def test_all_sizes_arrive_whole_and_in_order(way: str) -> None:
    dice = random.Random(3030)
    messages = [
        message(
            number,
            *(f"r{number}-{index}@example.test" for index in range(dice.choice((1, 1, 2, 7)))),
            octets=dice.choice((0, 0, 100, 5_000, 150_000, 700_000)),
            streamed=dice.random() < 0.2,
        )
        for number in range(60)
    ]
    seen = flown(way, playing(), messages)
    assert seen.unsound() == []
    assert [dot.message_id for dot in seen.dots] == [f"<{one.number}@test>" for one in messages]
    assert [dot.recipients for dot in seen.dots] == [one.recipients for one in messages]
    assert {end.dot_written for end in seen.ends.values()} == {True}
    assert seen.usable


FLIGHTS = {
    "serial": ["mail", "rcpt", "data", "dot", "mail", "rcpt", "data", "dot"],
    "serial-bdat": ["mail", "rcpt", "bdat", "mail", "rcpt", "bdat"],
    "transaction": ["mail rcpt data", "dot", "mail rcpt data", "dot"],
    "transaction-bdat": ["mail rcpt bdat", "mail rcpt bdat"],
    "full": ["mail rcpt data", "dot mail rcpt data", "dot"],
    "first-bdat": ["mail rcpt", "bdat", "mail rcpt bdat"],
    "bdat": ["mail rcpt bdat", "mail rcpt bdat"],
    "bdat-4": ["mail rcpt bdat rset mail rcpt bdat"],
}


@pytest.mark.parametrize("way", FLIGHTS)
def test_what_leaves_together(way: str) -> None:
    seen = flown(way, playing(), FOUR[:2])
    flights = [" ".join(flight) for flight in seen.connection.flights]
    assert flights[1:-1] == FLIGHTS[way]  # without EHLO and QUIT
    assert [end.behind for end in seen.ends.values()] == [
        False, way in ("full", "bdat-4")
    ]  # fmt: skip


@pytest.mark.parametrize(("way", "most"), [("bdat", 1), ("bdat-4", 4)])
def test_no_more_than_the_depth_leaves_before_the_first_is_answered(way: str, most: int) -> None:
    held = Rule(stage="dot", first=1, last=1, delay=1.0)  # by then all that may leave has left
    seen = flown(way, playing(held), [message(number) for number in range(12)])
    assert seen.words == ["taken"] * 12
    stages = seen.connection.flights[1]  # all that was read by the time the first was answered
    assert stages.count("bdat") == most
    assert stages.count("rset") == most - 1  # each flight behind an unanswered one begins with it


def test_a_server_without_pipelining_gets_one_command_at_a_time() -> None:
    script = Script(chunking=True, pipelining=False, magic=False)
    seen = flown("bdat-4", script, FOUR)
    assert seen.words == ["taken"] * 4
    assert {len(flight) for flight in seen.connection.flights} <= {0, 1}


def test_a_body_over_the_size_for_bdat_goes_behind_a_354_between_the_others() -> None:
    messages = [message(1), message(2, octets=(1 << 20) + 9), message(3)]
    seen = flown("bdat", playing(), messages)
    assert seen.words == ["taken"] * 3
    # the third leaves behind the dot of the second, and there BDAT has no place at this depth
    assert [end.chunked for end in seen.ends.values()] == [True, False, False]
    assert seen.unsound() == []


@pytest.mark.parametrize(("code", "parted"), [(550, True), (451, True), (421, False)])
def test_a_flight_refused_whole_is_parted_from_by_quit(code: int, parted: bool) -> None:
    """RFC 5321 section 4.1.1.10; with a 421 the server has said goodbye itself."""
    seen = flown("bdat", playing(Rule(stage="rcpt", first=2, last=2, code=code)), FOUR)
    assert (seen.words[0], seen.usable) == ("taken", False)
    assert (seen.connection.stages[-1] == "quit") is parted
    assert len(seen.dots) == 1


# The second of four goes wrong

FAULTS: dict[str, dict[str, object]] = {
    "4xx": {"code": 451},
    "5xx": {"code": 550},
    "421": {"code": 421, "close": True},
    "close": {"act": Act.CLOSE},
    "reset": {"act": Act.RESET},
    "silence": {"act": Act.SILENCE},
    "garbage": {"act": Act.GARBAGE, "data": "certainly no SMTP\r\n"},
    "late": {"delay": 0.05},
    "then-close": {"close": True},
}

# What becomes of the second, the third and the fourth. With commands in a flight of their own, or
# by DATA: content follows a 354 only, so nothing is in doubt before the dot. "lost": not sent.
_BY_DATA = """
mail 4xx         not-now  taken  taken
mail 5xx         refused  taken  taken
mail 421         again    again  again
mail close       again    again  again
mail reset       again    again  again
mail silence     lost     again  again
mail garbage     lost     again  again
mail late        taken    taken  taken
mail then-close  lost     again  again
rcpt 4xx         not-now  taken  taken
rcpt 5xx         refused  taken  taken
rcpt 421         again    again  again
rcpt close       lost     again  again
rcpt reset       lost     again  again
rcpt silence     lost     again  again
rcpt garbage     lost     again  again
rcpt late        taken    taken  taken
rcpt then-close  lost     again  again
data 4xx         not-now  taken  taken
data 5xx         refused  taken  taken
data 421         again    again  again
data close       lost     again  again
data reset       lost     again  again
data silence     lost     again  again
data garbage     lost     again  again
data late        taken    taken  taken
data then-close  doubt    again  again
dot  4xx         not-now  taken  taken
dot  5xx         refused  taken  taken
dot  421         not-now  again  again
dot  close       doubt    again  again
dot  reset       doubt    again  again
dot  silence     doubt    again  again
dot  garbage     doubt    again  again
dot  late        taken    taken  taken
dot  then-close  taken    again  again
"""
# The content left with its MAIL: a loss at any of the replies is a doubt, and so it is for a flight
# that left towards a server that had closed. A flight whose recipients were all refused ends the
# session.
_BY_BDAT = """
mail 4xx         not-now  again        again
mail 5xx         refused  again        again
mail 421         again    again        again
mail close       doubt    again        again
mail reset       doubt    again        again
mail silence     doubt    again        again
mail garbage     doubt    again        again
mail late        taken    taken        taken
mail then-close  doubt    again        again
rcpt 4xx         not-now  again        again
rcpt 5xx         refused  again        again
rcpt 421         not-now  again        again
rcpt close       doubt    again        again
rcpt reset       doubt    again        again
rcpt silence     doubt    again        again
rcpt garbage     doubt    again        again
rcpt late        taken    taken        taken
rcpt then-close  doubt    again        again
dot  4xx         not-now  taken        taken
dot  5xx         refused  taken        taken
dot  421         not-now  again        again
dot  close       doubt    again        again
dot  reset       doubt    again        again
dot  silence     doubt    again        again
dot  garbage     doubt    again        again
dot  late        taken    taken        taken
dot  then-close  taken    doubt|again  again
"""
# Up to three more contents are out already: what ends the session leaves them in doubt, too.
_DEEP = """
mail 4xx         not-now  doubt  doubt
mail 5xx         refused  doubt  doubt
mail 421         again    doubt  doubt
mail close       doubt    doubt  doubt
mail reset       doubt    doubt  doubt
mail silence     doubt    doubt  doubt
mail garbage     doubt    doubt  doubt
mail late        taken    taken  taken
mail then-close  doubt    doubt  doubt
rcpt 4xx         not-now  doubt  doubt
rcpt 5xx         refused  doubt  doubt
rcpt 421         not-now  doubt  doubt
rcpt close       doubt    doubt  doubt
rcpt reset       doubt    doubt  doubt
rcpt silence     doubt    doubt  doubt
rcpt garbage     doubt    doubt  doubt
rcpt late        taken    taken  taken
rcpt then-close  doubt    doubt  doubt
dot  4xx         not-now  taken  taken
dot  5xx         refused  taken  taken
dot  421         not-now  doubt  doubt
dot  close       doubt    doubt  doubt
dot  reset       doubt    doubt  doubt
dot  silence     doubt    doubt  doubt
dot  garbage     doubt    doubt  doubt
dot  late        taken    taken  taken
dot  then-close  taken    doubt  doubt
"""
# A refused MAIL is proved by the goodbye to a QUIT.
_SERIAL = _BY_DATA.replace(
    "5xx         refused  taken  taken", "5xx         refused  again  again", 1
)
_TABLES = {
    "serial": _SERIAL,
    "transaction": _BY_DATA,
    "full": _BY_DATA,
    "transaction-bdat": _BY_BDAT,
    "first-bdat": _BY_BDAT,
    "bdat": _BY_BDAT,
    "bdat-4": _DEEP,
}


_CELLS = [
    (way, stage, fault, words)
    for way, table in _TABLES.items()
    for stage, fault, *words in map(str.split, filter(None, table.split("\n")))
]


@pytest.mark.parametrize(("way", "stage", "fault", "words"), _CELLS)
def test_a_fault_at_the_second_of_four(way: str, stage: str, fault: str, words: list[str]) -> None:
    rule = Rule(stage=stage, first=2, last=2, **FAULTS[fault])  # type: ignore[arg-type]
    quick = SILENCE if fault == "silence" else {}
    seen = flown(way, playing(rule), FOUR, **quick)
    # Nothing marks the place of the reply to a BDAT: garbage that came with it spoils it.
    spoiled = (way, fault) == ("bdat-4", "garbage")
    for found, wanted in zip(
        seen.words, ["taken|doubt" if spoiled else "taken", *words], strict=True
    ):
        # Whether a message that was not sent is charged an attempt is the policy's affair.
        allowed = {"lost", "again"} if wanted == "lost" else set(wanted.split("|"))
        assert found in allowed, (seen.words, seen.ends)
    assert seen.unsound() == []
    told = [one for one in FOUR if one.number in seen.ends]
    assert seen.usable == (len(told) == 4 and all(seen.ends[n.number].usable for n in told))


# Recipients inside a flight


@pytest.mark.parametrize("way", DIALECTS)
@pytest.mark.parametrize("content", [None, 451, 554])
def test_each_recipient_has_its_own_verdict(way: str, content: int | None) -> None:
    recipients = ("yes@x.test", "no@x.test", "later@x.test", "yes2@x.test")
    rules = [
        Rule(stage="rcpt", recipient="no@*", code=550, enhanced="5.1.1"),
        Rule(stage="rcpt", recipient="later@*", code=450, enhanced="4.2.1"),
        Rule(stage="dot", first=2, last=2, code=content),
    ]
    messages = [message(number, *recipients) for number in range(1, 4)]
    seen = flown(way, playing(*rules), messages)
    second = {None: "taken", 451: "not-now", 554: "refused"}[content]
    for one, yes in zip(messages, ("taken", second, "taken"), strict=True):
        assert [seen.word(one, index) for index in range(4)] == [yes, "refused", "not-now", yes]
    assert seen.unsound() == []
    assert seen.usable


@pytest.mark.parametrize("way", ["transaction-bdat", "first-bdat", "bdat"])
def test_a_flight_with_every_recipient_refused_sends_nothing_more(way: str) -> None:
    messages = [message(1), message(2, "no@x.test", "later@x.test"), message(3)]
    rules = (
        Rule(stage="rcpt", recipient="no@*", code=550),
        Rule(stage="rcpt", recipient="later@*", code=450),
    )
    seen = flown(way, playing(*rules), messages)
    assert [seen.word(messages[1], index) for index in (0, 1)] == ["refused", "not-now"]
    assert seen.words[2] == "again"
    assert not seen.usable
    assert [dot.message_id for dot in seen.dots] == ["<1@test>"]


# Servers that mishandle what the RFC allows


def test_503_to_a_mail_behind_content_charges_nobody_and_lowers_the_ladder() -> None:
    seen = flown("full", playing(Rule(stage="mail", behind=True, code=503)), FOUR)
    assert seen.words == ["taken", "again", "again", "again"]
    assert seen.ends[2].stumbled is Extension.PIPELINING
    assert seen.unsound() == []
    careful = flown("transaction", playing(Rule(stage="mail", behind=True, code=503)), FOUR)
    assert careful.words == ["taken"] * 4


def test_what_is_thrown_away_behind_the_dot_charges_nobody_and_lowers_the_ladder() -> None:
    script = playing(Rule(stage="dot", deaf=True))
    seen = flown("full", script, FOUR, **SILENCE)
    assert seen.words == ["taken", "again", "again", "again"]
    assert seen.ends[2].stumbled is Extension.PIPELINING
    assert flown("transaction", script, FOUR).words == ["taken"] * 4


@pytest.mark.parametrize("way", ["serial-bdat", "transaction-bdat", "first-bdat", "bdat"])
def test_chunking_that_is_offered_and_unknown_refuses_nobody(way: str) -> None:
    script = Script(chunking=True, bdat_known=False, magic=False)
    seen = flown(way, script, FOUR)
    assert set(seen.words) <= {"lost", "again"}, seen.words
    assert seen.ends[1].stumbled is Extension.CHUNKING
    assert not seen.usable
    assert seen.unsound() == []


@pytest.mark.parametrize("way", ["transaction", "full", "transaction-bdat", "first-bdat", "bdat"])
@pytest.mark.parametrize("stage", ["mail", "rcpt"])
def test_a_server_that_drops_the_rest_of_a_flight_is_spared_flights(way: str, stage: str) -> None:
    """Or it would never get anything: each flight would time out like the one before."""
    seen = flown(way, playing(Rule(stage=stage, deaf=True)), [message(1)], **SILENCE)
    end = seen.ends[1]
    if way == "first-bdat" and stage == "rcpt":
        assert seen.words == ["taken"]  # nothing was behind RCPT yet
        return
    assert seen.words[0] in ("lost", "again", "doubt")
    assert end.dot_written is ("bdat" in way and (way, stage) != ("first-bdat", "mail"))
    assert end.stumbled is not None
    assert seen.unsound() == []


@pytest.mark.parametrize("times", [0, 2], ids=["missing", "doubled"])
@pytest.mark.parametrize("stage", ["mail", "rcpt", "data", "dot"])
@pytest.mark.parametrize("way", ["serial", "transaction", "full"])
def test_a_reply_too_few_or_too_many_is_found_at_the_354(way: str, stage: str, times: int) -> None:
    seen = flown(way, playing(Rule(stage=stage, first=2, last=2, times=times)), FOUR, **SILENCE)
    assert seen.words[0] == "taken"
    assert "refused" not in seen.words
    assert "not-now" not in seen.words
    assert not seen.usable
    # Who was not to blame is not charged: what came behind that content was not even its own.
    assert set(seen.words[2:]) <= {"again"}, seen.words
    assert seen.unsound() == []


@pytest.mark.parametrize("stage", ["mail", "rcpt"])
@pytest.mark.parametrize("way", ["transaction-bdat", "first-bdat", "bdat", "bdat-4"])
def test_a_doubled_reply_does_not_stand_for_that_to_a_bdat(way: str, stage: str) -> None:
    """The enhanced code says what a reply speaks of: MAIL's and RCPT's of an address."""
    rules = (
        Rule(stage=stage, first=2, last=2, times=2),
        Rule(stage="dot", first=2, last=2, code=554, enhanced="5.7.1", delay=0.05),
    )
    seen = flown(way, playing(*rules), FOUR)
    assert seen.words[1] == "doubt"
    # what came together with a reply that was spoiled is spoiled, too, where flights are deeper
    assert seen.words[0] == "taken" or way == "bdat-4"
    assert Extension.CHUNKING in {end.stumbled for end in seen.ends.values()}
    assert seen.unsound() == []


@pytest.mark.parametrize("way", DIALECTS)
def test_content_may_be_taken_in_the_code_of_a_recipient(way: str) -> None:
    """Behind a 354 it is believed; a BDAT's reply might be the RCPT's: one is in doubt."""
    seen = flown(way, playing(Rule(stage="dot", code=250, enhanced="2.1.5", text="taken")), FOUR)
    assert seen.unsound() == []
    if "bdat" not in way:
        assert seen.words == ["taken"] * 4
        return
    assert seen.words[0] == "doubt"
    assert set(seen.words[1:]) <= {"again", "doubt"}
    assert seen.words.count("doubt") == 1 or way == "bdat-4", "as deep as the window is"
    assert Extension.CHUNKING in {end.stumbled for end in seen.ends.values()}


@pytest.mark.parametrize("code", [451, 554])
@pytest.mark.parametrize("way", DIALECTS)
def test_a_refused_content_that_leaves_its_envelope_open_harms_nobody_else(
    way: str, code: int
) -> None:
    """As Postfix does by ``smtpd_end_of_data_restrictions``: the next MAIL is nested there."""
    rule = Rule(stage="dot", first=2, last=2, code=code, held=True)
    seen = flown(way, playing(rule), FOUR)
    assert seen.words[:2] == ["taken", "not-now" if code == 451 else "refused"]
    assert set(seen.words[2:]) <= {"taken", "again"}, seen.words
    if way != "full":  # there the next MAIL is out before the refusal is known
        assert seen.words[2:] == ["taken", "taken"]
    assert [end.stumbled for end in seen.ends.values()] == [None] * len(seen.ends)
    assert len(seen.dots) == 1 + seen.words.count("taken")  # and no empty one
    assert seen.unsound() == []


@pytest.mark.parametrize("code", [250, 554])
@pytest.mark.parametrize("way", [way for way in DIALECTS if way != "bdat-4"])
def test_a_missing_reply_to_content_is_not_replaced_by_the_next_one(way: str, code: int) -> None:
    # Not so where flights begin with RSET, whose answer looks the same: a depth is for own relays.
    rule = Rule(stage="dot", first=2, last=2, code=code, times=0)
    seen = flown(way, playing(rule), FOUR, **SILENCE)
    assert seen.words[:2] == ["taken", "doubt"]
    assert seen.unsound() == []


# Content that is cut


@pytest.mark.parametrize("act", [Act.CLOSE, Act.RESET, Act.STALL])
@pytest.mark.parametrize("way", ["full", "first-bdat", "bdat", "bdat-4"])
@pytest.mark.parametrize("after", [1, 1000, 150_000])
def test_a_drop_within_content_that_left_is_a_doubt(way: str, after: int, act: Act) -> None:
    """The kernel has taken all of it: what the server read is not known."""
    messages = [message(1), message(2, octets=200_000), message(3)]
    rule = Rule(stage="body", after=after, act=act, sender="a@*", recipient="r2@*")
    quick = SILENCE if act is Act.STALL else {}
    seen = flown(way, playing(rule), messages, **quick)
    assert seen.words[0] == "taken"
    assert seen.words[1] in ("doubt", "lost")  # lost: some of it had not left
    assert seen.words[2] == ("doubt" if way == "bdat-4" else "again") or seen.words[1] == "lost"
    assert seen.unsound() == []
    assert [dot.message_id for dot in seen.dots] == ["<1@test>"]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("act", [Act.CLOSE, Act.RESET, Act.STALL])
def test_a_drop_before_the_last_octet_left_is_no_doubt(act: Act, streamed: bool) -> None:
    """Larger than both sides' buffers: the end of it is still ours."""
    messages = [message(1), message(2, octets=12_000_000, streamed=streamed), message(3)]
    rule = Rule(stage="body", after=1000, act=act, recipient="r2@*")
    quick = SILENCE if act is Act.STALL else {}
    seen = flown("full", playing(rule), messages, **quick)
    assert seen.words[0] == "taken"
    assert seen.words[1] in ("lost", "again")
    assert seen.words[2] == "again"
    assert seen.unsound() == []


@pytest.mark.parametrize("way", DIALECTS)
@pytest.mark.parametrize(("code", "word"), [(452, "not-now"), (554, "refused")])
def test_a_refusal_before_the_end_of_the_content_holds(way: str, code: int, word: str) -> None:
    messages = [message(1), message(2, octets=200_000), message(3)]
    rule = Rule(stage="body", after=1, code=code, recipient="r2@*", close=True)
    seen = flown(way, playing(rule), messages)
    assert seen.words[:2] == ["taken", word]
    assert seen.unsound() == []


# Anything at all

_ACTS = st.one_of(
    st.fixed_dictionaries(
        {"code": st.sampled_from([None, 250, 421, 451, 452, 500, 503, 550, 554])},
        optional={"close": st.booleans(), "deaf": st.booleans()},
    ),
    st.fixed_dictionaries({"act": st.sampled_from([Act.CLOSE, Act.RESET, Act.SILENCE, Act.STALL])}),
    st.just({"act": Act.GARBAGE, "data": "nonsense\r\n"}),
)
_RULES = st.builds(
    lambda stage, first, how: Rule(stage=stage, first=first, last=first, **how),
    st.sampled_from(["mail", "rcpt", "data", "bdat", "dot", "rset"]),
    st.integers(1, 8),
    _ACTS,
)


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    way=st.sampled_from(sorted(DIALECTS)),
    rules=st.lists(_RULES, max_size=3),
    sizes=st.lists(st.sampled_from([0, 0, 2_000, 90_000]), min_size=1, max_size=6),
    recipients=st.lists(st.integers(1, 3), min_size=6, max_size=6),
)
def test_client_and_server_never_believe_different_things(
    way: str, rules: list[Rule], sizes: list[int], recipients: list[int]
) -> None:
    messages = [
        message(number, *(f"r{number}-{n}@x.test" for n in range(recipients[number])), octets=size)
        for number, size in enumerate(sizes)
    ]
    quick = dict.fromkeys(SILENCE, 0.1)
    assert flown(way, playing(*rules), messages, **quick).unsound() == []
