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
    assert aside.wait_s() == ASIDE_S
    now[0] += ASIDE_S / 2
    aside.put(second)
    assert (aside.wait_s(), aside.due()) == (ASIDE_S / 2, False), "the first says when"
    now[0] += ASIDE_S / 2
    assert (aside.wait_s(), aside.due()) == (0.0, True)
    now[0] += ASIDE_S
    assert aside.wait_s() == 0.0
    assert aside.take() == [first, second]
    assert (aside.wait_s(), aside.due()) == (None, False)
    aside.put(first)
    assert (aside.wait_s(), aside.due()) == (ASIDE_S, False), "a time of its own"


def test_others_that_meet_damage_all_the_time_put_nobody_off() -> None:
    now = [100.0]
    aside = Aside(lambda: now[0])
    aside.put(Request(nobody))
    for _ in range(5):
        now[0] += ASIDE_S / 4
        if aside.due():
            break
        aside.put(Request(nobody))
    assert now[0] == 100.0 + ASIDE_S


def test_lasting_damage_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    monkeypatch.setattr(events, "engine_failed", lambda **fields: said.append(fields))
    aside = Aside(lambda: 0.0)
    for _ in range(3):
        aside.say(SpoolCorrupt("a page"))
    assert [(one["where"], one["error"]) for one in said] == [("store", "a page")]
