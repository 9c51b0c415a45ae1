"""A lane's bounds: what it holds for another host, what goes alone, and who is cut off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from mailstrom.types import OnDoubt
from mailstrom_workers.context import READ_AHEAD_BYTES
from mailstrom_workers.engine import Engine
from mailstrom_workers.feed import SILENT_S
from mailstrom_workers.lane import LaneRun
from tests.unit.lane_rig import LATER, Rig, Server, cut, end, refused, row, until


def server_of(rig: Rig, outgoing: Any) -> Server:
    """Whose transaction it is."""
    return next(one for one in reversed(rig.opened) if outgoing in one.wire)


@pytest.mark.parametrize("octets", [None, 100_000])
def test_what_waits_for_the_second_host_is_bounded(
    monkeypatch: pytest.MonkeyPatch, octets: int | None
) -> None:
    """The first host defers everybody: the second is asked before all that is due is claimed."""
    body = None if octets is None else b"A: b\r\n\r\n".ljust(octets, b"c") + b"\r\n"
    rig = Rig(monkeypatch, *(row(n, body=body, chunks=1) for n in range(1, 2001)))
    rig.store.chunks = [b"A: b\r\n\r\nc\r\n"]
    rig.reply_s = 0.005

    def says(outgoing: Any) -> Any:
        first = server_of(rig, outgoing).facts.host == "mx1.test"
        return refused(LATER) if first else end(1)

    rig.says = says  # type: ignore[method-assign]
    later = held = 0

    async def beside(lane: LaneRun) -> None:
        nonlocal later, held
        while not lane.parted:
            later = max(later, len(lane.stock.later))
            held = max(held, lane.ctx._held_bytes)
            await asyncio.sleep(0.01)

    rig.run(beside)
    assert set(rig.store.states.values()) == {"delivered"}
    assert later <= 200
    assert held <= READ_AHEAD_BYTES * 1.5


def test_nothing_stands_beside_what_may_not_be_sent_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(
        monkeypatch, *(row(n, on_doubt=OnDoubt.HOLD if n == 3 else None) for n in range(1, 9))
    )
    beside: list[list[int]] = []

    def says(outgoing: Any) -> Any:
        numbers = [one.of.recipients[0].recipient for one in server_of(rig, outgoing).wire]
        if 3 in numbers and len(numbers) > 1:
            beside.append(numbers)
        return end(1)

    rig.says = says  # type: ignore[method-assign]
    rig.run()
    assert beside == []
    assert set(rig.store.states.values()) == {"delivered"}


def test_a_cut_session_may_tell_its_end_some_turns_of_the_loop_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TLS takes two; who looks in between finds it closed, and no bug."""
    rig = Rig(monkeypatch, row(1))
    rig.script = {1: [None]}

    def later(step: Callable[[], None], turns: int) -> None:
        rig.loop.call_soon(later if turns else step, *((step, turns - 1) if turns else ()))

    def lose(server: Server) -> None:
        while server.wire:
            outgoing = server.wire.popleft()
            assert server.source is not None
            server.source.ended(outgoing, cut(answered=True, dotted=True))

    def break_off(server: Server) -> None:
        server.usable = False
        later(lambda: lose(server), 3)

    monkeypatch.setattr(Server, "break_off", break_off, raising=False)

    async def beside(lane: LaneRun) -> None:
        await until(lambda: rig.begun)
        await asyncio.sleep(SILENT_S * 1.5)
        lane.ctx.draining.set()
        lane.break_off()
        lane.look()

    rig.run(beside)


def test_who_says_goodbye_is_cut_off_with_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, row(1))

    async def quit(server: Server) -> None:
        server.quits = True
        await until(lambda: server.aborted)

    monkeypatch.setattr(Server, "quit", quit)

    async def main() -> None:
        lane = rig.lane()
        engine = Engine(lane.ctx)
        task = asyncio.ensure_future(lane.run())
        engine._lanes[task] = lane
        await until(lambda: rig.opened and rig.opened[0].quits)
        engine.hang_up()
        assert rig.opened[0].aborted
        await asyncio.sleep(1.0)

    try:
        rig.loop.run_until_complete(main())
    finally:
        rig.loop.close()
