"""A delivery worker that dies while it is imported, as after an upgrade that went half way.

Settings: ``{"module": NAME}``: the process ends with status 72 as soon as this module is loaded,
unless the file ``spare``, if one is named, exists.
"""

from __future__ import annotations

import os
from typing import Any

from torture_hooks import after_import

STATUS = 72


def arm(settings: dict[str, Any]) -> None:
    """End the process at this import."""
    spare = settings.get("spare")

    def end(_module: object) -> None:
        if spare is None or not os.path.exists(spare):
            os._exit(STATUS)

    after_import(str(settings["module"]), end)
