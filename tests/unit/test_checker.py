"""The checker objects to every planted fault and to nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.checker import History, Report, Row, Seen, Sent, check, content_digest

ENDED_UNSEEN = ("failed", "held", "cancelled")
WAITING = ("queued", "deferred")


def sent(number: int) -> Sent:
    return Sent(
        id=f"m{number}",
        message_id=f"<{number}@test>",
        recipient=f"r{number}@Example.test",
        digest=f"digest-{number}",
    )


def seen(number: int, *, kept: bool = True) -> Seen:
    return Seen(
        message_id=f"<{number}@test>",
        recipient=f"r{number}@example.test",
        digest=f"digest-{number}",
        kept=kept,
    )


def row(number: int, status: str = "delivered", *attempts: bool, claimed: bool = False) -> Row:
    return Row(
        id=f"m{number}",
        message_id=f"<{number}@test>",
        recipient=f"r{number}@example.test",
        status=status,
        attempts=attempts or (False,),
        claimed=claimed,
    )


def history(
    acknowledged: list[Sent],
    at_sink: list[Seen],
    spool: list[Row],
    *unanswered: Sent,
    finished: bool = True,
) -> History:
    return History(
        acknowledged=tuple(acknowledged),
        seen=tuple(at_sink),
        spool=tuple(spool),
        unanswered=tuple(unanswered),
        finished=finished,
    )


def counts(report: Report) -> dict[str, int]:
    return {
        name: len(getattr(report, name))
        for name in Report.__dataclass_fields__
        if getattr(report, name)
    }


def test_delivered_once_is_clean() -> None:
    report = check(history([sent(1)], [seen(1)], [row(1)]))
    assert report.clean
    assert counts(report) == {}


def test_empty_history_is_clean() -> None:
    assert check(history([], [], [])).clean


@pytest.mark.parametrize("status", ENDED_UNSEEN)
def test_unseen_with_an_honest_status_is_clean(status: str) -> None:
    assert check(history([sent(1)], [], [row(1, status)])).clean


@pytest.mark.parametrize("status", WAITING)
@pytest.mark.parametrize("at_sink", [[], [seen(1)]])
def test_waiting_is_stuck_in_a_finished_run_and_fine_in_one_that_was_cut(
    status: str, at_sink: list[Seen]
) -> None:
    rows = [row(1, status)]
    assert counts(check(history([sent(1)], at_sink, rows))) == {"stuck": 1}
    assert check(history([sent(1)], at_sink, rows, finished=False)).clean


def test_expired_without_an_attempt_is_lost_in_a_finished_run() -> None:
    never_tried = replace(row(1, "failed"), reason="expired", attempts=())
    assert counts(check(history([sent(1)], [], [never_tried]))) == {"lost": 1}
    assert check(history([sent(1)], [], [never_tried], finished=False)).clean
    assert check(history([sent(1)], [], [replace(never_tried, attempts=(False,))])).clean


def test_acknowledged_without_row_or_copy_is_lost() -> None:
    assert counts(check(history([sent(1)], [], []))) == {"lost": 1}


def test_delivered_row_that_the_sink_never_saw_is_lost() -> None:
    assert counts(check(history([sent(1)], [], [row(1)]))) == {"lost": 1}


def test_unacknowledged_delivered_row_that_the_sink_never_saw_is_lost() -> None:
    assert counts(check(history([], [], [row(1)], sent(1)))) == {"lost": 1}


def test_delivered_row_whose_only_copy_was_refused_at_the_dot_is_lost() -> None:
    assert counts(check(history([sent(1)], [seen(1, kept=False)], [row(1)]))) == {"lost": 1}


def test_row_of_another_message_does_not_excuse_a_lost_one() -> None:
    other = replace(row(1, "deferred"), id="m2")
    assert counts(check(history([sent(1)], [], [other], finished=False))) == {"lost": 1}


def test_copy_that_nobody_sent_is_phantom() -> None:
    assert counts(check(history([sent(1)], [seen(1), seen(2)], [row(1)]))) == {"phantom": 1}


def test_copy_to_a_recipient_that_was_not_named_is_phantom() -> None:
    stray = replace(seen(1), recipient="other@example.test")
    assert counts(check(history([sent(1)], [seen(1), stray], [row(1)]))) == {"phantom": 1}


def test_unanswered_send_may_arrive_or_not() -> None:
    assert check(history([], [seen(1)], [row(1)], sent(1))).clean
    assert check(history([], [], [], sent(1))).clean


def test_other_bytes_are_wrong_bytes() -> None:
    altered = replace(seen(1), digest="digest-2")
    assert counts(check(history([sent(1)], [altered], [row(1)]))) == {"wrong_bytes": 1}


def test_other_bytes_of_a_refused_copy_are_wrong_bytes_too() -> None:
    altered = replace(seen(1, kept=False), digest="digest-2")
    report = check(history([sent(1)], [altered, seen(1)], [row(1)]))
    assert counts(report) == {"wrong_bytes": 1}


def test_second_copy_without_a_mark_is_doubled() -> None:
    report = check(history([sent(1)], [seen(1), seen(1)], [row(1, "delivered", False, False)]))
    assert counts(report) == {"doubled_unmarked": 1}


def test_second_copy_with_a_mark_is_allowed_and_listed() -> None:
    report = check(history([sent(1)], [seen(1), seen(1)], [row(1, "delivered", True, False)]))
    assert report.clean
    assert counts(report) == {"doubled_marked": 1}


def test_third_copy_with_one_mark_is_doubled() -> None:
    report = check(
        history([sent(1)], [seen(1), seen(1), seen(1)], [row(1, "delivered", True, False, False)])
    )
    assert counts(report) == {"doubled_unmarked": 1}


def test_copies_refused_at_the_dot_are_no_doubles() -> None:
    report = check(history([sent(1)], [seen(1, kept=False), seen(1)], [row(1)]))
    assert counts(report) == {}


def test_message_stored_twice_is_doubled() -> None:
    twice = [row(1), replace(row(1), id="m1b")]
    report = check(history([sent(1)], [seen(1), seen(1)], twice))
    assert counts(report) == {"doubled_unmarked": 1}


def test_sending_after_the_run_is_stuck() -> None:
    report = check(history([sent(1)], [seen(1)], [row(1, "sending")]))
    assert counts(report) == {"stuck": 1}


def test_claimed_after_the_run_is_stuck() -> None:
    report = check(history([sent(1)], [], [row(1, "queued", claimed=True)], finished=False))
    assert counts(report) == {"stuck": 1}


def test_two_sends_that_nobody_can_tell_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="own Message-ID"):
        history([sent(1)], [], [], sent(1))


def test_description_counts_names_and_shortens() -> None:
    numbers = range(13)
    report = check(history([sent(n) for n in numbers], [], []))
    text = report.describe(limit=10)
    assert text.splitlines()[0].startswith("lost=13 phantom=0")
    assert "lost: <0@test> to r0@example.test: acknowledged as m0" in text
    assert "lost: 3 more" in text


def test_digest_supplies_the_final_line_end_only_where_missing() -> None:
    assert content_digest(b"a\r\n.b") == content_digest(b"a\r\n.b\r\n")
    assert content_digest(b"a\r\n") != content_digest(b"a\r\n\r\n")


@st.composite
def clean_histories(draw: st.DrawFn) -> History:
    """Any mix of delivered, retried, doubled-and-marked, refused and waiting recipients."""
    finished = draw(st.booleans())
    unseen = ENDED_UNSEEN if finished else (*ENDED_UNSEEN, *WAITING)
    kinds = draw(
        st.lists(st.sampled_from(["once", "retried", "marked", *unseen]), min_size=1, max_size=20)
    )
    acknowledged, at_sink, spool = [], [], []
    for number, kind in enumerate(kinds):
        acknowledged.append(sent(number))
        if kind in unseen:
            spool.append(row(number, kind))
            continue
        copies = 2 if kind == "marked" else 1
        at_sink += [seen(number)] * copies
        if kind == "retried":
            at_sink.append(seen(number, kept=False))
        spool.append(row(number, "delivered", *[True] * (copies - 1), False))
    return history(
        acknowledged,
        draw(st.permutations(at_sink)),
        draw(st.permutations(spool)),
        finished=finished,
    )


@given(clean_histories())
def test_any_clean_history_is_clean(clean: History) -> None:
    report = check(clean)
    assert report.clean, report.describe()


@given(clean_histories(), st.data())
def test_any_fault_planted_at_the_sink_is_found(clean: History, data: st.DataObject) -> None:
    pairs = sorted({one.pair for one in clean.seen})
    if not pairs:
        return
    pair = data.draw(st.sampled_from(pairs))
    victim = next(one for one in clean.seen if one.pair == pair and one.kept)
    rest = [one for one in clean.seen if one.pair != pair]
    own = [one for one in clean.seen if one.pair == pair]
    planted = data.draw(
        st.sampled_from(
            [
                ("lost", rest),
                ("doubled_unmarked", [*clean.seen, victim]),
                ("wrong_bytes", [*rest, *own[1:], replace(own[0], digest="other")]),
                ("phantom", [*clean.seen, replace(victim, message_id="<stranger@test>")]),
            ]
        )
    )
    rule, at_sink = planted
    report = check(replace(clean, seen=tuple(at_sink)))
    assert not report.clean
    assert [(one.message_id, one.recipient) for one in getattr(report, rule)] in (
        [pair],
        [("<stranger@test>", pair[1])],
    )


@given(clean_histories(), st.data())
def test_any_row_left_sending_is_found(clean: History, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(clean.spool) - 1))
    spool = list(clean.spool)
    spool[index] = replace(spool[index], status="sending")
    report = check(replace(clean, spool=tuple(spool)))
    assert [finding.message_id for finding in report.stuck] == [spool[index].message_id]


@given(clean_histories(), st.data())
def test_any_row_that_vanished_unseen_is_found(clean: History, data: st.DataObject) -> None:
    seen_pairs = {one.pair for one in clean.seen}
    unseen = [one for one in clean.spool if one.pair not in seen_pairs]
    if not unseen:
        return
    victim = data.draw(st.sampled_from(unseen))
    report = check(replace(clean, spool=tuple(one for one in clean.spool if one is not victim)))
    assert [finding.message_id for finding in report.lost] == [victim.message_id]
