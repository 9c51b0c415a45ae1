"""Breaks Mailstrom on purpose; exits 0 where nothing was lost or doubled in silence.

The parts are in tests/torture; the test suite runs their short forms. Loopback only, everything in
a temporary directory that is removed, each part bounded in time, number and disk. As root, full
disks are small tmpfs mounts; otherwise limits on the size of files stand in for them.
"""

import sys
from pathlib import Path

# for tests.* and tools.*; the packages come from site-packages (-P)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.trials import main

if __name__ == "__main__":
    sys.exit(main("torture", "part", __doc__))
