"""A supervisor process whose children are scripted: ``python -P serve_fake.py CONFIG.toml JSON``.

The JSON object has ``workers``, ``commands`` (argv by kind) and ``timing`` (seconds by name).
Everything else is the real thing: configuration, spool, lock, loop, log.
"""

from __future__ import annotations

import json
import sys

from mailstrom.config import load
from mailstrom.supervisor.run import serve
from mailstrom.supervisor.supervision import Timing

if __name__ == "__main__":
    script = json.loads(sys.argv[2])
    sys.exit(
        serve(
            load(sys.argv[1]),
            script["workers"],
            commands=script["commands"],
            timing=Timing(**script["timing"]),
        )
    )
