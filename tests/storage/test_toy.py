"""A store that somebody else wrote: what it claims of the conformance suite, and that it delivers.

It claims the table of a recipient's life, turns, changes, finding and streams, without the few
cases named below. Not claimed: routes, lanes, settling, doubt and upkeep as a whole (their cases
look into the views), jumps of the clock, copies, retention, and durability, which it has none of.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mailstrom.storage.base import Claimed, Lane
from tests.storage.contract_changes import ChangeContract
from tests.storage.contract_facts import FactsContract
from tests.storage.contract_finding import FindingContract
from tests.storage.contract_lifecycle import LifecycleContract
from tests.storage.contract_notices import NoticeContract
from tests.storage.contract_streams import StreamContract
from tests.storage.contract_turns import TurnContract
from tests.storage.machine import MACHINE_SETTINGS, SpoolMachine
from tests.storage.spool import DAY, T0, Spool, submission
from tests.storage.toy import toy_store

_numbers = itertools.count(1)


class ToyStores:
    """Stores on one spool of the toy."""

    def __init__(self) -> None:
        self.spool = toy_store.Spool()

    def client(self) -> toy_store.ToyClient:
        """A new client store."""
        return toy_store.ToyClient(self.spool)

    def worker(self) -> toy_store.ToyWorker:
        """A new worker store."""
        return toy_store.ToyWorker(self.spool, toy_store.DOUBT_DELAYS_MS)


class ToySpool(Spool):
    """The suite's short words, of which one asks the views."""

    def sending(self, *recipients: str, **changes: Any) -> tuple[str, Lane, list[Claimed]]:
        """A message on the wire."""
        id = self.send(*recipients, **changes)
        ours = {address.rpartition("@")[2] for address in self.status(id)}
        for due in self.engine.due_domains(self.worker, 1_000, T0):
            if due.name in ours:
                self.engine.put_routes(self.worker, [self.answer(due.name)], T0)
            else:
                self.engine.give_back(self.worker, {due.name: 0})
        lane = self.lane()
        rows = self.claim(lane)
        assert self.open(lane, rows) == {row.recipient for row in rows}
        return id, lane, rows


class TestToy(
    LifecycleContract,
    TurnContract,
    ChangeContract,
    FindingContract,
    FactsContract,
    StreamContract,
    NoticeContract,
):
    """What the toy claims."""

    # These ask the views.
    test_resolve_ends_what_is_in_doubt_and_keeps_its_history = None
    test_a_stream_fills_in_what_a_message_leaves_open = None
    test_the_streams_of_now_replace_those_before = None
    test_stats_count_what_waits_by_the_words_of_the_view = None
    test_statuses_and_reasons_are_those_of_the_view_for_the_same_recipient = None
    # The toy keeps no sessions, no words of a suspension, and asks for routes at every claim.
    test_facts_of_the_wire_name_worker_lane_and_session = None
    test_facts_of_a_suspended_site_say_who_until_when_and_why = None
    test_facts_tell_a_stamp_that_holds_no_more = None
    test_facts_count_who_is_due_before = None
    # The toy shows what waits at a suspended site as what it is, queued.
    test_what_waits_at_a_suspended_site_is_found_as_deferred = None

    @pytest.fixture
    def spool(self) -> Spool:
        return ToySpool(ToyStores())


@contextmanager
def _spool() -> Iterator[ToyStores]:
    yield ToyStores()


class ToyMachine(SpoolMachine):
    """The machine over the toy: no clock that jumps, no copies, no views."""

    stores = staticmethod(_spool)
    tells_clocks = makes_copies = has_views = makes_reports = False


TestToyMachine = ToyMachine.TestCase
TestToyMachine.settings = MACHINE_SETTINGS


def test_its_check_finds_a_row_in_nobodys_hands() -> None:
    stores = ToyStores()
    spool = ToySpool(stores)
    spool.sending("a@example.org")
    spool.sound()
    (row,) = stores.spool.rows.values()
    row.lane = None
    assert spool.client.check() == [f"recipient {row.seq}: sending with due None and lane None"]


def test_an_idempotency_key_lapses_with_its_window() -> None:
    spool = ToySpool(ToyStores())
    first = spool.send(idempotency=("key", b"1"))
    late = {"created_ms": T0 + DAY, "send_ms": T0 + DAY}
    soon = {**late, "created_ms": T0 + DAY - 1}
    assert spool.client.enqueue([submission(idempotency=("key", b"1"), **soon)], T0) == [first]
    assert spool.send(idempotency=("key", b"2"), **late) != first
