"""The picture of the demonstration: the display's own drawing, whole, the same for the same run."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mailstrom.demo.display import Silent, Snapshot
from mailstrom.demo.photograph import Photograph


def snapshot(accepted: int, counts: dict[tuple[str, str], int]) -> Snapshot:
    return Snapshot(
        elapsed_s=1.5, messages=40, accepted=accepted, counts=counts, per_s=3, connections=2
    )


LATE = snapshot(
    40,
    {
        ("prompt.example", "delivered"): 23,
        ("prompt.example", "sending"): 7,
        ("greylist.example", "deferred"): 5,
        ("strict.example", "failed"): 6,
    },
)
OVER = snapshot(40, {("prompt.example", "delivered"): 41})


def words(file: Path) -> list[str]:
    elements = ElementTree.fromstring(file.read_text("utf-8")).iter()
    return [" ".join((e.text or "").split()) for e in elements if e.tag.endswith("}text")]


def taken(folder: Path, *snapshots: Snapshot) -> Path:
    with Photograph(Silent()) as photograph:
        for one in snapshots:
            photograph.show(one)
    file = folder / "demo.svg"
    photograph.save(file, command="mailstrom demo", ending="demo: <all> is well")
    return file


def test_the_moment_with_the_most_going_on_is_kept(tmp_path: Path) -> None:
    shown = words(taken(tmp_path, snapshot(3, {("prompt.example", "queued"): 3}), LATE, OVER))
    assert {"23", "7", "5", "6"} <= set(shown)
    assert "41" not in shown
    assert "demo: <all> is well" in shown


def test_the_same_snapshot_gives_the_same_bytes(tmp_path: Path) -> None:
    assert taken(tmp_path, LATE).read_bytes() == taken(tmp_path, LATE).read_bytes()


def test_numbers_end_where_their_column_ends(tmp_path: Path) -> None:
    text = taken(tmp_path, LATE).read_text("utf-8")
    element = r'x="([\d.]+)" y="[\d.]+" textLength="([\d.]+)"[^>]*>{}<'
    ends = {}
    for word in ("23", "delivered"):
        found = re.search(element.format(word), text)
        assert found is not None, word
        ends[word] = round(float(found[1]) + float(found[2]), 3)
    assert ends["23"] == ends["delivered"]


def test_a_run_that_showed_nothing_cannot_be_photographed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing was shown"):
        taken(tmp_path)
    assert not (tmp_path / "demo.svg").exists()
