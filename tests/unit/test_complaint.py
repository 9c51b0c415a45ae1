"""Trouble that lasts is told at once, and then once a minute."""

from __future__ import annotations

import pytest

from mailstrom import events
from mailstrom_workers.complaint import Complaint


def test_the_same_trouble_is_told_once_a_minute_and_other_trouble_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr(events, "engine_failed", lambda *, where, error: told.append(str(error)))
    now_s = [0.0]
    complaint = Complaint("store", lambda: now_s[0])
    for now_s[0] in (0.0, 1.0, 59.0, 60.0, 61.0):
        complaint.say("damaged")
    assert told == ["damaged", "damaged"]
    complaint.say(ValueError("full"))
    assert told[2:] == ["full"]
    complaint.over()
    complaint.say(ValueError("full"))
    assert told[3:] == ["full"], "it went well in between: it is news"
