"""Meets Mailstrom with a hostile world; exits 0 where every outcome was the wanted one.

The groups are in tests/hostile; the test suite runs their short forms. Loopback only, everything in
a temporary directory that is removed, each group bounded in time, number and disk.
"""

from __future__ import annotations

import sys
from pathlib import Path

# for tests.* and tools.*; the packages come from site-packages (-P)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.hostile.plan import GROUPS
from tests.hostile.table import markdown
from tools.trials import Trials

if __name__ == "__main__":
    sys.exit(
        Trials(
            prog="tools/hostile",
            about=(__doc__ or "").splitlines()[0],
            package="tests.hostile",
            parts=GROUPS,
            word="group",
            markdown=markdown,
        ).main()
    )
