"""Environment of a child process with faults in it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from tests.support.engine import environment

INJECT = Path(__file__).resolve().parent / "inject"


def with_faults(faults: Mapping[str, Mapping[str, object]]) -> dict[str, str]:
    """``environment()`` with ``inject`` first on the path and these modules of it armed.

    Args:
        faults: settings by module of ``inject``, as ``{"torture_clock": {"file": "/tmp/offset"}}``.
    """
    found = environment()
    own = found.get("PYTHONPATH")
    found["PYTHONPATH"] = os.pathsep.join([str(INJECT), own] if own else [str(INJECT)])
    found["TORTURE"] = json.dumps(faults)
    return found
