"""A lane that raises whenever it claimed mail of one domain, before anything of it is opened.

Settings: ``{"domain": NAME, "spare": FILE}``; the name of a domain, or an address. Once the file
exists nothing is raised any more.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from torture_hooks import after_import


def arm(settings: dict[str, Any]) -> None:
    """Break ``mailstrom_workers.settling.Settling.sift``."""
    name, spare = str(settings["domain"]), str(settings["spare"])

    def broken(module: ModuleType) -> None:
        real = module.Settling.sift

        def sift(self: Any, rows: Any) -> Any:
            met = any(name in (row.domain, row.address) for row in rows)
            if met and not os.path.exists(spare):
                raise RuntimeError("injected: nobody foresaw this")
            return real(self, rows)

        module.Settling.sift = sift

    after_import("mailstrom_workers.settling", broken)
