"""Meets Mailstrom with a hostile world; exits 0 where every outcome was the wanted one.

The groups are in tests/hostile; the test suite runs their short forms. Loopback only, everything in
a temporary directory that is removed, each group bounded in time, number and disk.
"""

import sys
from pathlib import Path

# for tests.* and tools.*; the packages come from site-packages (-P)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.trials import main

if __name__ == "__main__":
    sys.exit(main("hostile", "group", __doc__))
