"""What met damage: put aside, due again after a while, said once."""

from __future__ import annotations

from typing import Any

import pytest

from mailstrom import events
from mailstrom.errors import SpoolCorrupt
from mailstrom_workers.aside import ASIDE_S, Aside
from mailstrom_workers.dbrequest import Request, nobody


def test_it_waits_and_is_taken_whole() -> None:
    now = [100.0]
    aside = Aside(lambda: now[0])
    assert (aside.wait_s(), aside.due(), aside.take()) == (None, False, [])
    first, second = Request(nobody), Request(nobody)
    aside.put(first)
    now[0] += ASIDE_S / 2
    aside.put(second)
    now[0] += ASIDE_S / 2
    assert (aside.wait_s(), aside.due()) == (ASIDE_S, False), "the newest says when"
    now[0] += ASIDE_S / 2
    assert aside.due()
    assert aside.take() == [first, second]
    assert not aside.due()


def test_lasting_damage_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    monkeypatch.setattr(events, "engine_failed", lambda **fields: said.append(fields))
    aside = Aside(lambda: 0.0)
    for _ in range(3):
        aside.say(SpoolCorrupt("a page"))
    assert [(one["where"], one["error"]) for one in said] == [("store", "a page")]
