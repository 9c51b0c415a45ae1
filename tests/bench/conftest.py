"""``tools.bench`` for these tests: the checkout is behind the product while it is imported.

Afterwards it is off the path again, so that no other test finds more than what is installed.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])
sys.path.append(ROOT)
for _name in ("engine", "figures", "goals", "page", "plots", "processes"):
    importlib.import_module(f"tools.bench.{_name}")
sys.path.remove(ROOT)
