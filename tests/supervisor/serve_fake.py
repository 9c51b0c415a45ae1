"""A supervisor process whose children are scripted: ``python -P serve_fake.py CONFIG.toml JSON``.

The JSON object has ``workers``, ``commands`` (argv by kind), ``timing`` (seconds by name) and
``clock``: a file with seconds that the supervisor's clock runs ahead; there is none while it does
not. Everything else is the real thing: configuration, spool, lock, loop, log.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mailstrom.config import load
from mailstrom.supervisor import supervision
from mailstrom.supervisor.run import serve
from mailstrom.supervisor.supervision import Timing


def put_forward(clock: Path) -> None:
    """Have the supervisor's clock run ahead by what the file says at each look."""
    real = supervision.monotonic_ms

    def monotonic_ms() -> int:
        try:
            return real() + int(1000 * float(clock.read_text()))
        except FileNotFoundError:
            return real()

    supervision.monotonic_ms = monotonic_ms


if __name__ == "__main__":
    script = json.loads(sys.argv[2])
    put_forward(Path(script["clock"]))
    sys.exit(
        serve(
            load(sys.argv[1]),
            script["workers"],
            commands=script["commands"],
            timing=Timing(**script["timing"]),
        )
    )
