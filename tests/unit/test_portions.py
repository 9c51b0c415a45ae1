"""How an exchange is cut: by rows, in order, never through what was asked at once."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mailstrom.storage.base import ClaimRequest, Open, Work
from mailstrom_workers.portions import MOST_ROWS, portions, rows


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
