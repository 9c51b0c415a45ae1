"""The conformance suite that every store must pass.

A store's test module defines a fixture ``stores`` (a ``tests.storage.spool.Stores`` on a fresh
spool) and a class that derives from ``StoreContract``; everything else is here.
"""

from __future__ import annotations

import pytest

from tests.storage.contract_changes import ChangeContract
from tests.storage.contract_clients import ClientContract
from tests.storage.contract_clock import ClockContract
from tests.storage.contract_copies import CopyContract
from tests.storage.contract_doubt import DoubtContract
from tests.storage.contract_facts import FactsContract
from tests.storage.contract_finding import FindingContract
from tests.storage.contract_freshness import FreshnessContract
from tests.storage.contract_lanes import LaneContract
from tests.storage.contract_lifecycle import LifecycleContract
from tests.storage.contract_notices import NoticeContract
from tests.storage.contract_reports import ReportContract
from tests.storage.contract_retention import RetentionContract
from tests.storage.contract_routes import RouteContract
from tests.storage.contract_settling import SettlingContract
from tests.storage.contract_streams import StreamContract
from tests.storage.contract_turns import TurnContract
from tests.storage.contract_upkeep import UpkeepContract
from tests.storage.spool import Spool, Stores


class StoreContract(
    ClientContract,
    NoticeContract,
    ReportContract,
    ChangeContract,
    FindingContract,
    FactsContract,
    StreamContract,
    CopyContract,
    RouteContract,
    FreshnessContract,
    LaneContract,
    TurnContract,
    SettlingContract,
    DoubtContract,
    UpkeepContract,
    ClockContract,
    RetentionContract,
    LifecycleContract,
):
    """Everything that the Protocols of ``mailstrom.storage.base`` promise."""

    @pytest.fixture
    def spool(self, stores: Stores) -> Spool:
        """A fresh spool with one registered worker."""
        return Spool(stores)
