"""The control protocol: every value survives the pipe, nothing else does, lines are bounded."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.control import (
    COMMAND_LIMIT,
    REPORT_LIMIT,
    Beat,
    Command,
    ControlError,
    Drain,
    Drained,
    Hello,
    Lapse,
    LineBuffer,
    Ready,
    Reload,
    Report,
    Stop,
    decode_command,
    decode_report,
    encode_command,
    encode_report,
)

numbers = st.integers(min_value=-(2**63), max_value=2**63)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(), lambda inner: st.lists(inner), max_leaves=8
)
configs = st.dictionaries(st.text(), json_values, max_size=5)
commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(
        Hello,
        kind=st.text(),
        slot=numbers,
        restarts=numbers,
        supervisor_pid=numbers,
        status_fd=numbers,
        store=st.text(),
        config=configs,
    ),
    st.just(Drain()),
    st.just(Stop()),
    st.builds(Reload, config=configs),
    st.builds(Lapse, pid=numbers),
)
reports: st.SearchStrategy[Report] = st.one_of(
    st.builds(Ready, worker=numbers),
    st.builds(Beat, monotonic_ms=numbers),
    st.just(Drained()),
)


@given(commands)
def test_a_command_is_one_line_and_comes_back_equal(command: Command) -> None:
    line = encode_command(command)

    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode_command(line) == command


@given(reports)
def test_a_report_is_one_line_and_comes_back_equal(report: Report) -> None:
    line = encode_report(report)

    assert line.count(b"\n") == 1
    assert decode_report(line) == report


@pytest.mark.parametrize(
    ("command", "fields"),
    [
        (Drain(), {"command": "drain"}),
        (Stop(), {"command": "stop"}),
        (Reload(config={"port": 25}), {"command": "reload", "config": {"port": 25}}),
        (Lapse(pid=7), {"command": "lapse", "pid": 7}),
    ],
)
def test_the_words_on_the_wire_are_fixed(command: Command, fields: dict[str, object]) -> None:
    assert json.loads(encode_command(command)) == fields


@given(st.lists(commands, max_size=6), st.lists(st.integers(1, 40), min_size=1))
def test_lines_come_out_whole_however_the_stream_is_cut(
    sent: list[Command], cuts: list[int]
) -> None:
    stream = b"".join(map(encode_command, sent))
    lines = LineBuffer(COMMAND_LIMIT)
    received: list[Command] = []
    position = turn = 0
    while position < len(stream):
        size = cuts[turn % len(cuts)]
        received += map(decode_command, lines.feed(stream[position : position + size]))
        position += size
        turn += 1

    assert received == sent


@given(st.binary(max_size=300))
def test_no_bytes_do_anything_but_decode_or_be_refused(line: bytes) -> None:
    for decode in (decode_command, decode_report):
        with contextlib.suppress(ControlError):
            assert isinstance(decode(line), Command | Report)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"17",
        b"{",
        b'{"command": "dance"}',
        b'{"command": 3}',
        b'{"command": "lapse"}',
        b'{"command": "lapse", "pid": true}',
        b'{"command": "lapse", "pid": "7"}',
        b'{"command": "reload", "config": []}',
        b'{"hello": {"kind": "delivery"}}',
        b'{"hello": null}',
        b"[" * 100_000,
    ],
)
def test_a_broken_command_is_refused(line: bytes) -> None:
    with pytest.raises(ControlError):
        decode_command(line)


@pytest.mark.parametrize(
    "line", [b"", b"{}", b'{"beat": 1.5}', b'{"ready": true}', b'{"drained": false}', b'{"x": 1}']
)
def test_a_broken_report_is_refused(line: bytes) -> None:
    with pytest.raises(ControlError):
        decode_report(line)


def test_an_endless_line_is_refused_at_the_limit_and_not_before() -> None:
    lines = LineBuffer(REPORT_LIMIT)
    assert lines.feed(b"x" * (REPORT_LIMIT - 1)) == []
    assert lines.feed(b"\n") == [b"x" * (REPORT_LIMIT - 1)]
    for _ in range(REPORT_LIMIT - 1):
        lines.feed(b"x")
    with pytest.raises(ControlError, match="limit is 4096"):
        lines.feed(b"x")


def test_a_configuration_too_large_for_a_line_is_refused_before_it_is_written() -> None:
    with pytest.raises(ControlError, match="limit"):
        encode_command(Reload(config={"key": "x" * COMMAND_LIMIT}))
