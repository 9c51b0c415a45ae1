"""The fuzz in its short form finds nothing; each of its judges finds a fault that is planted."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mailstrom.message.address import Address
from mailstrom.smtp.progress import Progress
from mailstrom.smtp.reply import ReplyParser
from mailstrom.smtp.server_order import ORDER, Phase
from tests.hostile import fuzz, fuzz_growth, fuzz_headers, fuzz_messages, fuzz_shapes
from tests.hostile.fuzz_growth import SHAPES
from tests.hostile.fuzz_shapes import Shape
from tests.hostile.fuzz_targets import TARGETS, corpus
from tests.support.trial import Plan

Patch = pytest.MonkeyPatch


@pytest.mark.timeout(300)
def test_any_octets_are_borne(tmp_path: Path) -> None:
    rows = list(fuzz.run(Plan(folder=tmp_path)))
    assert [row for row in rows if not row.clean] == []
    assert len(rows) >= len(TARGETS) + len({shape.target for shape in SHAPES})
    assert sum(row.tried for row in rows) > 1500
    assert {shape.target for shape in SHAPES} < set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_every_file_of_the_corpus_is_borne(name: str) -> None:
    files = corpus(name)
    assert files
    for file in files:
        TARGETS[name](file.read_bytes())


def test_the_corpus_is_small() -> None:
    assert sum(file.stat().st_size for name in TARGETS for file in corpus(name)) < 400_000
    assert {folder.name for folder in fuzz.CORPUS.iterdir()} == set(TARGETS)


# The judges


def replies_that_go_lost(patch: Patch) -> None:
    feed = ReplyParser.feed
    patch.setattr(ReplyParser, "feed", lambda self, data: feed(self, data)[:2])


def said_to_be_sent(patch: Patch) -> None:
    end = Progress.end

    def lying(self: Progress, *given: Any) -> Any:
        self.dot_written = True
        return end(self, *given)

    patch.setattr(Progress, "end", lying)


def delivered_by_a_refusal(patch: Patch) -> None:
    judge = sys.modules["tests.hostile.fuzz_client"].judge  # type: ignore[attr-defined]

    def lying(end: Any, index: int, **given: Any) -> Any:
        from msgspec.structs import replace

        from mailstrom.smtp.reply import Reply

        return judge(replace(end, dot=Reply(250, None, ("ok",))), index, **given)

    patch.setattr("tests.hostile.fuzz_client.judge", lying)


def recipients_without_a_sender(patch: Patch) -> None:
    patch.setitem(ORDER, (Phase.READY, "RCPT"), Phase.RCPT)


def content_that_ends_with_lf(patch: Patch) -> None:
    patch.setattr("mailstrom.smtp.inbox._END", b"\r\n.\n\n")


def a_header_of_any_length(patch: Patch) -> None:
    patch.setattr("mailstrom.smtp.proxy.LINE_OCTETS", 1 << 16)


def line_breaks_in_values(patch: Patch) -> None:
    patch.setattr("mailstrom.message.header_value.LINE_BREAK", re.compile("(?!)"))
    patch.setattr("mailstrom.message.header.LINE_BREAK", re.compile("(?!)"))


def another_domain(patch: Patch) -> None:
    parse = fuzz_headers.parse_address

    def lying(text: str) -> Address:
        found = parse(text)
        evil = "evil.example" in text
        return Address(local=found.local, domain="evil.example") if evil else found

    patch.setattr(fuzz_headers, "parse_address", lying)


def bcc_that_leaves(patch: Patch) -> None:
    patch.setattr(importlib.import_module("mailstrom.message.compose"), "_REMOVED", frozenset())


def parts_run_together(patch: Patch) -> None:
    split = fuzz_messages.split_parts

    def lying(body: bytes, boundary: str) -> tuple[list[bytes], bool]:
        parts, closed = split(body, boundary)
        return [body] if len(parts) > 1 else parts, closed

    patch.setattr(fuzz_messages, "split_parts", lying)


def words_as_they_are(patch: Patch) -> None:
    patch.setattr(
        "mailstrom.message.report_status._Writing._printable",
        lambda self, text, most: text.encode("utf-8", "replace").decode()[:most],
    )


def one_boundary_for_all(patch: Patch) -> None:
    patch.setattr("mailstrom.message.report._boundary", lambda digest, parts: "=_b")


def blind_copies_in_sight(patch: Patch) -> None:
    patch.setattr("mailstrom.message.head._REMOVED", frozenset())


def a_relay_that_changes_the_rest(patch: Patch) -> None:
    patch.setattr("mailstrom.message.submission.CRLF", b"\r\n\r\n")


def any_name_is_a_host(patch: Patch) -> None:
    patch.setattr("mailstrom_workers.resolver.is_host_name", lambda name: True)


def keys_as_they_are(patch: Patch) -> None:
    patch.setattr("mailstrom.config.loading._name", lambda foreign: foreign)


def escapes_that_pass(patch: Patch) -> None:
    patch.setattr("mailstrom.printable._UNSAFE", re.compile("[\r\n\ud800-\udfff]"))


FAULTS: dict[str, tuple[str, Callable[[Patch], None]]] = {
    "replies": ("replies", replies_that_go_lost),
    "client, sent": ("client", said_to_be_sent),
    "client, delivered": ("client", delivered_by_a_refusal),
    "server": ("server", recipients_without_a_sender),
    "framing": ("framing", content_that_ends_with_lf),
    "proxy": ("proxy", a_header_of_any_length),
    "headers": ("headers", line_breaks_in_values),
    "addresses": ("addresses", another_domain),
    "messages": ("messages", bcc_that_leaves),
    "mime": ("mime", parts_run_together),
    "reports": ("reports", words_as_they_are),
    "reports, boundary": ("reports", one_boundary_for_all),
    "submission": ("submission", blind_copies_in_sight),
    "submission, relayed": ("submission", a_relay_that_changes_the_rest),
    "dns": ("dns", any_name_is_a_host),
    "configuration": ("configuration", keys_as_they_are),
    "printing": ("printing", escapes_that_pass),
}


@pytest.mark.parametrize("planted", FAULTS)
def test_a_planted_fault_is_found(
    planted: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name, plant = FAULTS[planted]
    plant(monkeypatch)
    row = fuzz.searched(name, Plan(folder=tmp_path))
    assert not row.clean
    assert row.seen == "a finding"
    assert "input" in row.findings[0]


def test_every_target_has_a_fault_that_its_judge_finds() -> None:
    assert {name for name, _ in FAULTS.values()} == set(TARGETS)


def test_what_no_file_of_the_corpus_shows_is_searched_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known = {file.read_bytes() for file in corpus("printing")}

    def fragile(data: bytes) -> None:
        assert data in known or len(data) % 7, "seven"

    monkeypatch.setitem(fuzz.TARGETS, "printing", fragile)  # type: ignore[arg-type]
    row = fuzz.searched("printing", Plan(folder=tmp_path))
    assert "AssertionError: seven" in row.findings[0]


# How what is spent grows


def squared(n: int) -> fuzz_shapes.Done:
    return lambda: [len("") for _ in range(n * n // 64)]


def hoarding(n: int) -> fuzz_shapes.Done:
    return lambda: bytearray(n * n * 8)


@pytest.mark.parametrize(("made", "words"), [(squared, "steps, then"), (hoarding, "octets, then")])
def test_what_grows_by_the_square_is_found(
    made: Callable[[int], fuzz_shapes.Done], words: str, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(fuzz_growth, "SMALL", 1 << 9)
    monkeypatch.setattr(fuzz_growth, "GREAT", 1 << 9)
    shape = Shape(target="mime", name="planted", octets=1, made=made)
    found = fuzz_growth.tried(shape, long=False)
    assert [text for text in found.wrong if words in text]
    row = fuzz.grown("mime", [(shape.name, found)])
    assert not row.clean


@pytest.mark.parametrize(("power", "found"), [(1, False), (2, True)])
def test_time_by_the_square_is_found_and_time_in_proportion_is_not(
    power: int, found: bool, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(fuzz_growth, "_cpu_s", lambda done: done())  # by no clock
    shape = Shape(
        target="mime", name="planted", octets=1, made=lambda n: lambda: 1e-6 * float(n) ** power
    )
    wrong = fuzz_growth.tried(shape, long=True).wrong
    assert bool([text for text in wrong if " s for 16 times" in text]) is found


def test_a_child_that_hangs_is_told_and_the_next_shape_is_tried() -> None:
    shapes = SHAPES[:3]
    code = (
        "import json,os,signal,sys\n"
        "for n in range(int(sys.argv[2]), 3):\n"
        "    if n == 1: os.kill(os.getpid(), signal.SIGXCPU)\n"
        "    print(json.dumps({'cpu_s': 0.1, 'memory': 1, 'wrong': []}), flush=True)\n"
    )
    found = list(fuzz_growth.measured(shapes, long=False, command=(sys.executable, "-c", code)))
    assert [shape for shape, _ in found] == list(shapes)
    assert [bool(spent.wrong) for _, spent in found] == [False, True, False]


# What libFuzzer says


def test_a_run_without_a_finding_is_read() -> None:
    output = "#8\tINITED\nstat::number_of_executed_units: 43030\nstat::peak_rss_mb:  58\n"
    assert fuzz.told(output, 0) == (43030, 58 << 20, [])


@pytest.mark.parametrize(
    ("output", "code", "words"),
    [
        ("AssertionError: two ends\n==1== ERROR: libFuzzer: fuzz target exited\n", 77, "two ends"),
        ("==1== ERROR: libFuzzer: timeout after 11 seconds\n", 70, "timeout"),
        ("==1== ERROR: libFuzzer: out-of-memory (used: 601Mb)\n", 71, "out-of-memory"),
        ("", -9, "code -9"),
    ],
)
def test_a_finding_of_any_kind_is_read(output: str, code: int, words: str) -> None:
    count, _, findings = fuzz.told("#881\tNEW\n" + output, code)
    assert count == 881
    assert words in findings[0]


def test_what_a_child_found_is_in_the_row(tmp_path: Path) -> None:
    def child(name: str, folder: Path) -> list[str]:
        code = (
            "import pathlib,sys; pathlib.Path(sys.argv[1], 'found-crash-1').write_bytes(b'evil');"
            "print('#5\\tNEW'); print('AssertionError: planted'); sys.exit(77)"
        )
        return [sys.executable, "-c", code, str(folder)]

    row = fuzz.fuzzed("mime", Plan(folder=tmp_path), child)
    assert (row.tried, row.seen, row.clean) == (5, "a finding", False)
    assert "planted" in row.findings[0]
    assert "evil" in row.findings[1]
