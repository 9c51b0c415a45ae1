"""Hands mail to Mailstrom's servers by the programs that people use; exits 0 where all was well.

The clients are in tests/clients; the test suite runs them, too. Loopback only, everything in a
temporary directory that is removed; Debian's packages are unpacked there, not installed.
"""

import sys
from pathlib import Path

# for tests.* and tools.*; the packages come from site-packages (-P)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.trials import main

if __name__ == "__main__":
    sys.exit(main("clients", "client", __doc__))
