"""Content that a server keeps: what it costs in memory, however small its pieces are."""

from __future__ import annotations

import tracemalloc
from itertools import cycle

import pytest

from mailstrom.server.stages import Stages


@pytest.mark.parametrize("sizes", [(2,), (1, 3000, 2), (70_000, 2, 2), (5000,), (4095, 4096)])
def test_content_in_pieces_takes_hardly_more_than_its_octets(sizes: tuple[int, ...]) -> None:
    whole = bytes(range(256)) * 2048
    tracemalloc.start()
    try:
        stages, at = Stages(), 0
        for size in cycle(sizes):
            stages.on_content(whole[at : at + size])
            at += size
            if at >= len(whole):
                break
        held, _ = tracemalloc.get_traced_memory()
        kept = stages.content()
    finally:
        tracemalloc.stop()
    assert kept == whole
    assert type(kept) is bytes
    assert held < 1.2 * len(whole) + 70_000
    assert stages.content() == b""


def test_one_piece_is_given_as_it_came() -> None:
    stages, piece = Stages(), b"x" * 1000
    stages.on_content(piece)
    assert stages.content() is piece
