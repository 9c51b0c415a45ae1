"""``python -m mailstrom`` is the command line; guards the import path first."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from mailstrom.pathguard import guard

    guard()
    from mailstrom.cli import main

    sys.exit(main())
