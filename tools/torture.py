"""Breaks Mailstrom on purpose; exits 0 where nothing was lost or doubled in silence.

The parts are in tests/torture; the test suite runs their short forms. Loopback only, everything in
a temporary directory that is removed, each part bounded in time, number and disk.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for tests.*; the packages come from site-packages (-P)

import apsw  # noqa: E402

import mailstrom  # noqa: E402
from tests.torture.plan import PARTS, Plan, part  # noqa: E402
from tests.torture.table import Row, as_json, markdown  # noqa: E402

LIMIT_S = {"short": 600, "long": 7_200}


def main() -> int:
    """Run the parts that were asked for; 1 if any row is not clean."""
    options = _options()
    rows: list[Row] = []
    for name in options.parts or PARTS:
        rows += _run(name, options)
    print()
    print(markdown(rows), end="")
    if options.json:
        _keep(options.json, rows, options)
    dirty = [row for row in rows if not row.clean]
    print(f"\n{sum(row.tried for row in rows):,} faults, {len(dirty)} rows that are not clean")
    for row in dirty:
        for text in row.findings:
            print(f"  {row.part}: {row.fault}: {text}")
    return 1 if dirty else 0


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("parts", nargs="*", metavar="PART", help=f"of: {' '.join(PARTS)}; or all")
    options.add_argument(
        "--long", action="store_true", help="the long form (up to two hours a part)"
    )
    options.add_argument("--seed", type=int, default=1, help="repeats a run (default 1)")
    options.add_argument(
        "--json", metavar="FILE", help="write the rows here, one JSON object a line"
    )
    found = options.parse_args()
    unknown = [name for name in found.parts if name not in PARTS]
    if unknown:
        options.error(f"no part is called {unknown[0]}; there are: {' '.join(PARTS)}")
    return found


def _run(name: str, options: argparse.Namespace) -> list[Row]:
    started = time.monotonic()
    limit = LIMIT_S["long" if options.long else "short"]

    def say(line: str) -> None:
        print(f"{name} {time.monotonic() - started:7.1f} s  {line}", file=sys.stderr, flush=True)

    def over() -> None:
        say(f"not done after {limit} s: stopped")
        os.kill(os.getpid(), signal.SIGINT)  # whatever it started is ended on the way out

    clock = threading.Timer(limit, over)
    clock.daemon = True
    clock.start()
    rows = []
    try:
        with tempfile.TemporaryDirectory(prefix=f"mailstrom-torture-{name}-") as folder:
            plan = Plan(folder=Path(folder), seed=options.seed, long=options.long, say=say)
            for row in part(name)(plan):
                rows.append(row)
                verdict = "clean" if row.clean else "NOT CLEAN"
                say(f"{verdict}: {row.fault}: {row.tried} tried, {row.lost} lost, {row.silent}"
                    f" silent, {row.marked} marked")  # fmt: skip
    finally:
        clock.cancel()
    return rows


def _keep(file: str, rows: list[Row], options: argparse.Namespace) -> None:
    head = {
        "mailstrom": mailstrom.__version__,
        "python": platform.python_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "form": "long" if options.long else "short",
        "seed": options.seed,
    }
    with open(file, "a", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps({**head, **as_json(row)}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
