"""The page and its plots, from recorded figures that are made up."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tools.bench import page
from tools.bench.figures import Figure, as_line, machine
from tools.bench.plots import Axis, Line, plot

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of recorded figures, as docs/data is."""
    made = [
        Figure(bench="drain", case="20 connections", uvloop=True, at=20, n=9,
               values={"rate": 9000.0, "busy_cores": 2.0}),
        Figure(bench="drain", case="20 connections", who="postfix", at=20, n=9,
               values={"rate": 1500.0, "busy_cores": 2.0}),
        Figure(bench="connections", case="1", uvloop=True, at=1, values={"rate": 900.0}),
        Figure(bench="latency", case="50 ms, 20 connections", uvloop=True, at=50,
               values={"rate": 390.0, "bound_rate": 400.0}),
        Figure(bench="profile", case="store: run (mailstrom.storage)", who="py-spy", uvloop=True,
               values={"share": 0.25}),
    ]  # fmt: skip
    about = machine()
    (tmp_path / "bench.jsonl").write_text("".join(as_line(one, about) + "\n" for one in made))
    monkeypatch.setattr(page, "DATA", tmp_path)
    return tmp_path


def test_the_page_tells_figures_goals_limits_and_profile(recorded: Path) -> None:
    text = "\n".join(page.performance())
    assert "| drain, to Postfix | at least 5 x | 6.00 | yes |" in text
    assert "| 20 connections | uvloop | postfix | 6.00 |" in text
    assert "| send_many | at least 20,000/s | not measured | no |" in text
    assert "| drain | 20 connections | uvloop | 9,000 | CPU: 2.0 of" in text
    assert "the wire: 98% of one round trip a message and connection" in text
    assert "| `store: run (mailstrom.storage)` | 25.0% |" in text
    assert "(images/performance-connections.svg)" in text
    assert "## Before" not in text


def test_an_older_version_has_its_own_section(recorded: Path) -> None:
    old = Figure(bench="drain", case="20 connections", values={"rate": 123.0})
    (recorded / "bench-before.jsonl").write_text(as_line(old, machine()) + "\n")
    text = "\n".join(page.performance())
    assert "123" in text.partition("## Before")[2]


def test_an_older_version_of_which_only_the_profile_is_known_has_no_empty_table(
    recorded: Path,
) -> None:
    old = [
        Figure(bench="profile", case="(all)", who="py-spy", uvloop=False, values={"rate": 77.0}),
        Figure(bench="profile", case="one", who="py-spy", uvloop=False, values={"share": 0.5}),
    ]
    text = "".join(as_line(one, machine()) + "\n" for one in old)
    (recorded / "bench-before.jsonl").write_text(text)
    before = "\n".join(page.performance()).partition("## Before")[2]
    assert "| case | who |" not in before
    assert "Then, asyncio, by py-spy, at 77 messages a second:" in before


def test_only_plots_with_points_are_drawn(recorded: Path) -> None:
    made = page.pages()
    assert set(made) == {
        "performance.md", "images/performance-connections.svg", "images/performance-latency.svg"
    }  # fmt: skip
    tree = ElementTree.fromstring("\n".join(made["images/performance-connections.svg"]()))
    words = {text.text for text in tree.iter(f"{SVG}text")}
    assert {"connections", "messages a second", "mailstrom, uvloop"} <= words
    assert "postfix" not in words  # one point of drain alone is no line of this plot


def test_without_figures_there_is_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "DATA", tmp_path)
    assert page.pages() == {}


def test_points_lie_where_their_values_are() -> None:
    lines = plot(
        "a < b",
        Axis(name="x", logarithmic=True),
        Axis(name="y"),
        [Line(name="one", points=((1, 0), (10, 50), (100, 100)))],
    )
    tree = ElementTree.fromstring("\n".join(lines))
    assert tree.findtext(f"{SVG}title") == "a < b"
    marks = [(float(c.get("cx", 0)), float(c.get("cy", 0))) for c in tree.iter(f"{SVG}circle")]
    (x1, y1), (x2, y2), (x3, y3) = marks[:3]
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2)
    assert x1 < x2 < x3
    assert y1 > y2 > y3


def test_nothing_to_draw_is_said() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        list(plot("none", Axis(name="x"), Axis(name="y"), [Line(name="one", points=())]))
