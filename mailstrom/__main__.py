"""``python -m mailstrom`` is the command line."""

from __future__ import annotations

import sys

from mailstrom.cli import main

if __name__ == "__main__":
    sys.exit(main())
