"""Passwords checked beside the loop; guessing is slow, and costs no more than is bounded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from mailstrom_workers import logins
from mailstrom_workers.logins import Login, Logins
from tests.support.looped import looped


class Checked:
    """Stands in for the hash: counts, and may be made to wait."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.running = self.most = 0
        self.go = threading.Event()
        self.go.set()
        self._lock = threading.Lock()

    def __call__(self, password: str, hashed: str) -> bool:
        with self._lock:
            self.asked.append((password, hashed))
            self.running += 1
            self.most = max(self.most, self.running)
        self.go.wait(30)
        with self._lock:
            self.running -= 1
        return hashed == f"hash of {password}"


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Checked]:
    found = Checked()
    monkeypatch.setattr(logins, "_matches", found)
    monkeypatch.setattr(logins, "FAILURE_S", 0.001)
    yield found
    found.go.set()


USERS = {"joe": "hash of secret", "ann": "hash of other"}


def _ask(made: Logins, user: str, password: str, client: str = "c") -> asyncio.Future[Login]:
    told: asyncio.Future[Login] = asyncio.get_running_loop().create_future()
    made.check(USERS, user, password, client, told.set_result)
    return told


@looped
async def test_right_wrong_and_unknown_cost_the_same_and_a_right_one_is_known(
    checked: Checked,
) -> None:
    made = Logins(asyncio.get_running_loop())
    assert await _ask(made, "joe", "secret") is Login.RIGHT
    assert await _ask(made, "joe", "other") is Login.WRONG
    assert await _ask(made, "nobody", "secret") is Login.WRONG  # though that is somebody's
    assert len(checked.asked) == 3
    assert await _ask(made, "joe", "secret") is Login.RIGHT
    assert len(checked.asked) == 3
    changed = dict(USERS, joe="hash of new")
    told: asyncio.Future[Login] = asyncio.get_running_loop().create_future()
    made.check(changed, "joe", "secret", "c", told.set_result)
    assert await told is Login.WRONG  # what was known is not, once the file has another hash
    made.close()


@looped
async def test_unknown_users_cost_what_the_known_ones_do_between_them(checked: Checked) -> None:
    made = Logins(asyncio.get_running_loop())
    for _ in range(2):
        for number in range(30):
            assert await _ask(made, f"nobody{number}", "x", f"c{number}") is Login.WRONG
    against = [hashed for _, hashed in checked.asked]
    assert set(against) == set(USERS.values())  # else a name's cost would tell that it is none
    assert against[:30] == against[30:]  # and a name's would change
    made.close()


@looped
async def test_a_flood_runs_two_at_a_time_and_the_rest_is_told_to_come_again(
    checked: Checked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logins, "MOST_WAITING", 6)
    checked.go.clear()
    made = Logins(asyncio.get_running_loop())
    asked = [_ask(made, "joe", "secret", f"c{number % 4}") for number in range(40)]
    busy = asked[8:]
    assert {await one for one in busy} == {Login.BUSY}
    checked.go.set()
    assert {await one for one in asked[:8]} == {Login.RIGHT}
    assert checked.most <= logins.AT_ONCE
    made.close()


@looped
async def test_a_client_that_fails_again_and_again_is_not_looked_at(
    checked: Checked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logins, "MOST_FAILURES", 3)
    made = Logins(asyncio.get_running_loop())
    assert await _ask(made, "ann", "other") is Login.RIGHT
    for _ in range(3):
        assert await _ask(made, "joe", "guess") is Login.WRONG
    asked = len(checked.asked)
    assert await _ask(made, "joe", "secret") is Login.BARRED
    assert len(checked.asked) == asked
    assert await _ask(made, "ann", "other") is Login.RIGHT  # known from before
    assert await _ask(made, "joe", "secret", "another") is Login.RIGHT
    made.close()
