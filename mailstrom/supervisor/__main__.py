"""``python -m mailstrom.supervisor``: guards the import path, keeps signals, then supervises."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from mailstrom.pathguard import guard

    guard()
    from mailstrom.supervisor.early import keep_signals

    keep_signals()
    from mailstrom.supervisor.run import main

    sys.exit(main(sys.argv[1:]))
