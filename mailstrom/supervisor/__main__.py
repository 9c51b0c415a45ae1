"""``python -m mailstrom.supervisor``: guards the import path, then runs the supervisor."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from mailstrom.pathguard import guard

    guard()
    from mailstrom.supervisor.run import main

    sys.exit(main(sys.argv[1:]))
