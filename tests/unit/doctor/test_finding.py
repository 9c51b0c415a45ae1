"""Findings: their order, their names, and that what they advise can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from mailstrom.doctor.finding import AREAS, counted, note, ok, ordered, problem, size, span, warning
from tests.docs.blocks import CHECKOUT
from tests.unit.test_docs import wrong_words

SOURCES = sorted((CHECKOUT / "mailstrom" / "doctor").glob("*.py"))


def text_of(file: Path) -> str:
    """Its strings as they are put together: quotes at a line's end and the next one's start go."""
    return re.sub(r"\"\s*\n\s*f?\"", "", file.read_text("utf-8"))


def test_the_worst_comes_first_and_areas_keep_their_order() -> None:
    findings = [ok("tls.library", "a"), note("queue.sites", "b"), problem("queue.moving", "c", "d"),
                warning("spool.room", "e", "f"), problem("spool.found", "g", "h")]  # fmt: skip
    assert [one.check for one in ordered(findings)] == [
        "spool.found", "queue.moving", "spool.room", "queue.sites", "tls.library",
    ]  # fmt: skip
    assert counted(findings) == {"problem": 2, "warning": 1, "note": 1, "ok": 1}


def test_the_page_names_every_check_and_no_other() -> None:
    named: set[str] = set()
    for file in SOURCES:
        named |= set(re.findall(r"\"([a-z]+\.[a-z]+)\"", file.read_text("utf-8")))
    checks = {name for name in named if name.partition(".")[0] in AREAS}
    assert len(checks) > 45
    page = (CHECKOUT / "docs" / "howto" / "doctor.md").read_text("utf-8")
    rows = "".join(re.findall(r"^\| (`[a-z]+\.[^|]*) \|", page, re.MULTILINE))
    assert sorted(checks ^ set(re.findall(r"`([a-z]+\.[a-z]+)`", rows))) == []


def test_every_command_that_is_advised_exists() -> None:
    wrong, seen = [], 0
    for file in SOURCES:
        for command in re.findall(r"'(mailstrom [^'\"\n]*)'", text_of(file)):
            plain = re.sub(r"\{[^}]*\}", "X", command.replace("{{", ""))
            seen += 1
            if wrong_words(shlex.split(plain)[1:]):
                wrong.append((file.name, command))
    assert seen > 25
    assert wrong == []


def test_lengths_are_said_as_people_do() -> None:
    assert [size(n) for n in (0, 512, 4096, 1_572_864, 85_000_000_000)] == [
        "0 bytes", "512 bytes", "4.0 KiB", "1.5 MiB", "79 GiB",
    ]  # fmt: skip
    assert [span(n) for n in (850, 1_000, 90_000, -7_200_000, 86_400_000)] == [
        "850 ms", "1 second", "1 minute", "2 hours", "1 day",
    ]  # fmt: skip
