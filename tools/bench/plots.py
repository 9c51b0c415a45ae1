"""Line plots as SVG: axes, ticks, lines with points, a legend; nothing that a reader must load.

Contract. Pure: points in, lines of SVG out, the same for the same points. Text has a size and a
colour that read on white and on dark; colours differ in brightness, too, and every line has a point
of its own shape. Linear from 0, or logarithmic where points span decades.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 78, 40, 44, 92
COLOURS = ("#1b6ca8", "#d1495b", "#6a994e", "#8f6bb3", "#b8860b")
TICKS = 5
FINE_DECADES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a plot.

    Args:
        name: for the legend.
        points: (x, y), by x.
        dashed: what is reckoned, not measured.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis.

    Args:
        name: what it counts, with its unit.
        logarithmic: for what spans decades; all values must be above 0.
    """

    name: str
    logarithmic: bool = False


def _step(span: float) -> float:
    """A step of 1, 2 or 5 times a power of ten, of which a few fill the span."""
    rough = span / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next((power * one for one in (1, 2, 5) if power * one >= rough), power * 10)


def _ticks(axis: Axis, low: float, high: float) -> list[float]:
    if axis.logarithmic:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        digits = (1, 2, 5) if last - first <= FINE_DECADES else (1,)
        found = [10.0**power * one for power in range(first, last + 1) for one in digits]
        begin = max(number for number, tick in enumerate(found) if tick <= low)
        end = min(number for number, tick in enumerate(found) if tick >= high)
        return found[begin : max(end, begin + 1) + 1]
    step = _step(high)
    return [step * number for number in range(math.ceil(high / step) + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:g}"


def _told(across: Axis, up: Axis, lines: Sequence[Line]) -> str:
    """The plot in words, for who cannot see it."""
    return f"{up.name} against {across.name}. " + " ".join(
        f"{line.name}: {', '.join(f'{_number(y)} at {_number(x)}' for x, y in line.points)}."
        for line in lines
    )


def plot(title: str, across: Axis, up: Axis, lines: Sequence[Line]) -> Iterator[str]:
    """A plot as lines of an SVG document.

    Args:
        lines: at least one with at least one point; those without any are left out.

    Raises:
        ValueError: there is nothing to draw.
    """
    drawn = [line for line in lines if line.points]
    if not drawn:
        raise ValueError(f"nothing to draw in {title!r}")
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points]
    x_ticks = _ticks(across, min(xs), max(xs))
    y_ticks = _ticks(up, min(ys), max(ys) or 1.0)

    def place(axis: Axis, ticks: Sequence[float], value: float, start: int, length: int) -> float:
        low, high = ticks[0], ticks[-1]
        if axis.logarithmic:
            low, high, value = (math.log10(one) for one in (low, high, value))
        return start + length * (value - low) / ((high - low) or 1)

    def x_of(value: float) -> float:
        return place(across, x_ticks, value, LEFT, WIDTH - LEFT - RIGHT)

    def y_of(value: float) -> float:
        return HEIGHT - place(up, y_ticks, value, BOTTOM, HEIGHT - TOP - BOTTOM)

    bottom = HEIGHT - BOTTOM
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}"'
        f' height="{HEIGHT}" role="img" font-family="sans-serif" font-size="12">'
    )
    yield f"<title>{escape(title)}</title>"
    yield f"<desc>{escape(_told(across, up, drawn))}</desc>"
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
    yield f'<text x="{LEFT}" y="26" font-size="16" fill="#222222">{escape(title)}</text>'
    for tick in y_ticks:
        y = y_of(tick)
        yield f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>'
        yield (
            f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#444444">'
            f"{_number(tick)}</text>"
        )
    for tick in x_ticks:
        x = x_of(tick)
        yield f'<path d="M{x:.1f} {bottom}v5" stroke="#444444"/>'
        yield (
            f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle" fill="#444444">'
            f"{_number(tick)}</text>"
        )
    yield f'<path d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}" fill="none" stroke="#444444"/>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield (
        f'<text x="{middle:.1f}" y="{bottom + 40}" text-anchor="middle" fill="#222222">'
        f"{escape(across.name)}</text>"
    )
    yield (
        f'<text transform="translate(18 {(TOP + bottom) / 2:.1f}) rotate(-90)"'
        f' text-anchor="middle" fill="#222222">{escape(up.name)}</text>'
    )
    at = float(LEFT)
    for number, line in enumerate(drawn):
        colour = COLOURS[number % len(COLOURS)]
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        path = "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in line.points)
        yield f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
        if not line.dashed:
            for x, y in line.points:
                yield _mark(number, x_of(x), y_of(y), colour)
        y = HEIGHT - 22
        yield f'<path d="M{at:.1f} {y}h24" stroke="{colour}" stroke-width="2"{dash}/>'
        if not line.dashed:
            yield _mark(number, at + 12, y, colour)
        yield f'<text x="{at + 30:.1f}" y="{y + 4}" fill="#222222">{escape(line.name)}</text>'
        at += 50 + 7.2 * len(line.name)
    yield "</svg>"


def _mark(number: int, x: float, y: float, colour: str) -> str:
    """A point: circle, square, diamond, triangle, by turns."""
    shape = number % 4
    if shape == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
    corners = {
        1: ((-4, -4), (4, -4), (4, 4), (-4, 4)),
        2: ((0, -5), (5, 0), (0, 5), (-5, 0)),
        3: ((0, -5), (5, 4), (-5, 4)),
    }[shape]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon points="{points}" fill="{colour}"/>'
