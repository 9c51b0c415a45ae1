"""Runs first in every process that has this folder on its PYTHONPATH: arms the faults named there.

``TORTURE`` is a JSON object: names of modules of this folder, each with the object that its
``arm(settings)`` is called with, as ``{"torture_points": {"point": "lane.opened", "do": "kill"}}``.
Without it nothing happens. A fault that cannot be armed ends the process loudly: a case that
injects nothing must never look like one that was survived.
"""

from __future__ import annotations

import importlib
import json
import os
import sys


def _arm() -> None:
    told = os.environ.get("TORTURE")
    if not told:
        return
    try:
        for name, settings in json.loads(told).items():
            importlib.import_module(name).arm(settings)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(86)


_arm()
