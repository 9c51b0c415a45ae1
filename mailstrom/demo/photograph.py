"""``Photograph``: the live display as a picture for a page, in SVG.

Contract. It is a display around another one: whatever is shown is passed on, and the snapshot with
the most going on is kept. ``save`` has rich draw that snapshot with the function that draws the
terminal, so that the picture cannot differ from it, and adds the line that the run ended with. The
file stands alone: no script, no font or image from elsewhere, the same bytes for the same snapshot.
"""

from __future__ import annotations

import html
import io
import re
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.text import Text

from mailstrom.demo.display import Display, Snapshot, draw
from mailstrom.types import FINAL, Status

WIDTH = 82
"""Columns: the display needs no more, and a page shows no more."""

_SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" \
aria-labelledby="title description">
<title id="title">mailstrom demo</title>
<desc id="description">The terminal while the demonstration runs: for each destination, how it \
behaves and how many recipients are queued, sending, deferred, delivered and failed; below, the \
line that it ended with.</desc>
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; \
font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-family: ui-sans-serif, system-ui, sans-serif; font-size: 16px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" \
height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" \
clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""


_TEXT = re.compile(
    r'(?P<head><text class="[^"]*") x="(?P<x>[^"]*)" y="(?P<y>[^"]*)"'
    r' textLength="(?P<length>[^"]*)"(?P<tail>[^>]*)>(?P<text>[^<\n]+)</text>'
)


class Photograph:
    """A display that remembers its busiest moment.

    Args:
        around: the display that is shown meanwhile.
    """

    def __init__(self, around: Display) -> None:
        self._around = around
        self._best: Snapshot | None = None

    def __enter__(self) -> Self:
        self._around.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._around.__exit__(kind, error, trace)

    def show(self, snapshot: Snapshot) -> None:
        """Show it, and keep it if more is going on than before."""
        self._around.show(snapshot)
        if self._best is None or _liveliness(snapshot) > _liveliness(self._best):
            self._best = snapshot

    def save(self, file: Path, *, command: str, ending: str) -> None:
        """Write the picture.

        Args:
            file: where to.
            command: what a person types to see it.
            ending: the last line of the run.

        Raises:
            OSError: it cannot be written.
            ValueError: nothing was shown.
        """
        if self._best is None:
            raise ValueError("nothing was shown, so there is nothing to photograph")
        console = Console(
            record=True,
            width=WIDTH,
            file=io.StringIO(),
            force_terminal=True,
            color_system="truecolor",
        )
        console.print(Text.assemble(("$ ", "dim"), (command, "bold")))
        console.print(draw(self._best))
        console.print(Text(ending, style="bold green"))
        picture = console.export_svg(title="mailstrom demo", code_format=_SVG, unique_id="demo")
        lines = (line.strip() for line in _TEXT.sub(_bare, picture).splitlines())
        file.write_text("".join(f"{line}\n" for line in lines if line), encoding="utf-8")


def _bare(found: re.Match[str]) -> str:
    """A text element without the spaces around it: some renderers drop those and move nothing."""
    text = html.unescape(found["text"])
    inner = text.strip("\xa0")
    cell = float(found["length"]) / len(text)
    x = float(found["x"]) + cell * (len(text) - len(text.lstrip("\xa0")))
    words = html.escape(inner).replace("\xa0", "&#160;")
    return f'{found["head"]} x="{x:g}" y="{found["y"]}" textLength="{cell * len(inner):g}"' + (
        f"{found['tail']}>{words}</text>"
    )


def _liveliness(snapshot: Snapshot) -> tuple[int, int]:
    """How much there is to see: kinds of status at once, then recipients that are under way."""
    kinds = {status for (_, status), number in snapshot.counts.items() if number}
    sending = sum(
        number for (_, status), number in snapshot.counts.items() if status == Status.SENDING
    )
    waiting = len({status for status in kinds if Status(status) not in FINAL})
    far = snapshot.final * 2 >= snapshot.recipients > 0
    return (waiting if far else 0, sending)
