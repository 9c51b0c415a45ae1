"""Delays in servers' own words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.policy.hint import CAP_S, retry_hint_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Greylisted, please try again in 300 seconds", 310),
        ("Greylisting in action, please come back in 00:04:57", 307),
        ("try again in 5 minutes.", 310),
        ("try again in 1 minute", 70),
        ("You are being greylisted (retry after 90s)", 100),
        ("Please retry in 2min", 130),
        ("TRY AGAIN AFTER 10 SEC", 20),
        ("deferred for 12:30 minutes", 760),
        ("wait 3 hours", 3600),
        ("try again in 99999 seconds", 3600),
        ("try again in 0 seconds", 10),
        ("greylisted: delay=60 seconds", None),
        ("try again later", None),
        ("try again in 300", None),
        ("try again in 9999999 seconds", None),
        ("message of 300 seconds ago", None),
        ("300 seconds", None),
        ("try again in ٣ minutes", None),
        ("try again in -5 minutes", None),
        ("", None),
    ],
)
def test_hint(text: str, seconds: float | None) -> None:
    assert retry_hint_s(text) == seconds


def test_a_hint_far_behind_is_not_looked_for() -> None:
    assert retry_hint_s("again " * 1000 + "in 5 minutes") is None


@given(st.text(max_size=3000))
def test_any_text_gives_nothing_or_a_bounded_delay(text: str) -> None:
    seconds = retry_hint_s(f"try again {text}")
    assert seconds is None or 10 <= seconds <= CAP_S
