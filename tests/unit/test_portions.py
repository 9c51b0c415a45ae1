"""How an exchange is put together, cut, and shared out: nothing lost, nobody's claims another's."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from mailstrom.storage.base import MOST_ROWS, Claimed, ClaimRequest, Exchange, Open, Work
from mailstrom_workers.portions import joined, learned, parts, portions, rows


@given(st.lists(st.integers(0, 3 * MOST_ROWS)))
def test_every_piece_is_within_the_bound_or_one_alone(sizes: list[int]) -> None:
    pieces = list(portions(sizes, lambda size: size))
    assert [size for piece in pieces for size in piece] == sizes
    assert all(piece and (sum(piece) <= MOST_ROWS or len(piece) == 1) for piece in pieces)


@given(st.lists(st.integers(0, 3 * MOST_ROWS)))
def test_no_two_pieces_side_by_side_would_go_together(sizes: list[int]) -> None:
    pieces = list(portions(sizes, lambda size: size))
    for before, after in pairwise(pieces):
        assert sum(before) + after[0] > MOST_ROWS


def test_rows_are_what_is_opened_and_claimed() -> None:
    work = Work()
    work.opens.append(Open(lane=1, session="s", recipients=(1, 2, 3)))
    work.claims.append(ClaimRequest(lane=1, limit=5, max_bytes=1))
    assert rows(work) == 8
    assert rows(work, 60.0) == 3 + 300
    assert rows(work, 1e9) == 3 + MOST_ROWS, "more than that no claim is given"


def test_how_many_recipients_messages_have_is_learned_at_once_and_forgotten_slowly() -> None:
    claims = [ClaimRequest(lane=lane, limit=8, max_bytes=1) for lane in (1, 2, 3)]
    many = [cast(Claimed, SimpleNamespace(lane=1)) for _ in range(480)]
    few = many[:4]
    each = learned(1.0, claims, many)
    assert each == 60.0, "by those that were served alone"
    assert learned(each, claims, []) == 60.0
    seen = [each := learned(each, claims, few) for _ in range(60)]
    assert all(1.0 <= after <= before for before, after in pairwise(seen))
    assert 50.0 < seen[0] < 60.0
    assert seen[-1] == 1.0


def asking(*lanes: int) -> Work:
    work = Work(claims=[ClaimRequest(lane=lane, limit=1, max_bytes=1) for lane in lanes])
    work.opens.append(Open(lane=lanes[0], session="s", recipients=lanes))
    return work


def test_what_is_joined_is_all_that_was_asked_and_leaves_each_as_it_was() -> None:
    works = [asking(1, 2), asking(3), Work()]
    whole = joined(works)
    assert [claim.lane for claim in whole.claims] == [1, 2, 3]
    assert [one.lane for one in whole.opens] == [1, 3]
    assert [len(work.claims) for work in works] == [2, 1, 0]
    assert joined([]).empty


def test_each_gets_what_its_own_lanes_claimed_and_all_the_rest() -> None:
    rows_of = [
        cast(Claimed, SimpleNamespace(lane=lane, n=n)) for n, lane in enumerate((3, 1, 2, 1))
    ]
    done = Exchange(
        frozenset({7}), frozenset({8}), rows_of, frozenset({2}), 1.0, 2.0, frozenset({3})
    )
    first, second, third = parts(done, [asking(1, 2), asking(3), Work()])
    assert [row.lane for row in first.claimed] == [1, 1, 2]
    assert [row.lane for row in second.claimed] == [3]
    assert third.claimed == []
    assert [one.ended for one in (first, second, third)] == [{2}, set(), set()]
    assert [one.more for one in (first, second, third)] == [set(), {3}, set()]
    for one in (first, second, third):
        assert (one.settled, one.opened, one.locked_s, one.freed_s) == ({7}, {8}, 1.0, 2.0)
