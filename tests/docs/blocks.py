"""The fenced blocks of README and docs/, for the tests that hold them to the truth.

A fence says what a block is by its first word, and by a second word ``run`` that it is executed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]

_FENCE = re.compile(r"^(`{3,})([^\n]*)\n(.*?)^\1[ ]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block.

    Args:
        kind: the first word behind the fence.
        run: whether the second word is ``run``.
    """

    page: str
    line: int
    kind: str
    run: bool
    text: str


def name_of(page: Path) -> str:
    return page.relative_to(CHECKOUT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for match in _FENCE.finditer(text):
        kind, _, rest = match[2].strip().partition(" ")
        line = text.count("\n", 0, match.start()) + 1
        yield Block(page=name_of(page), line=line, kind=kind, run=rest == "run", text=match[3])


ALL = [block for page in PAGES for block in blocks(page)]


def of_kind(*kinds: str, run: bool = False) -> list[object]:
    return [
        pytest.param(block, id=f"{block.page}:{block.line}")
        for block in ALL
        if block.kind in kinds and (block.run or not run)
    ]


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text("utf-8"))
