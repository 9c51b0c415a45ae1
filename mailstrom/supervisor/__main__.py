"""``python -m mailstrom.supervisor``: guards the import path, then runs the supervisor.

``-m`` puts the working directory first on the path, and an application's own ``email/`` or
``queue/`` there would be taken for the standard library's. So before anything else is imported,
and with nothing but ``os`` and ``sys`` (both loaded before the working directory counts), that
entry goes, unless it is the very folder that holds our package (a bare checkout). Equality, not
prefix: a virtual environment often lives below the working directory.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    if not sys.flags.safe_path and sys.path:
        ours = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        if os.path.realpath(sys.path[0]) != os.path.realpath(ours):
            del sys.path[0]

    from mailstrom.supervisor.run import main

    sys.exit(main(sys.argv[1:]))
