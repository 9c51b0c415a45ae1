"""Breaks Mailstrom on purpose; exits 0 where nothing was lost or doubled in silence.

The parts are in tests/torture; the test suite runs their short forms. Loopback only, everything in
a temporary directory that is removed, each part bounded in time, number and disk. As root, full
disks are small tmpfs mounts; otherwise limits on the size of files stand in for them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended
    rows: list[Row] = []
    with contextlib.ExitStack() as opened:
        stream = None
        if options.json:
            stream = opened.enter_context(Path(options.json).open("a", encoding="utf-8"))
        try:
            for name in options.parts or PARTS:
                for row in _run(name, options):
                    rows.append(row)
                    if stream is not None:
                        stream.write(json.dumps(_line(row, options)) + "\n")
                        stream.flush()
        except KeyboardInterrupt:
            print("stopped; what was done until then:", file=sys.stderr)
            _tell(rows)
            return 130
    return _tell(rows)


def _tell(rows: list[Row]) -> int:
    """The table, and each finding in full."""
    print()
    print(markdown(rows), end="")
    dirty = [row for row in rows if not row.clean]
    verdict = "every row is clean" if not dirty else f"{len(dirty)} rows are not clean"
    print(f"\n{len(rows)} rows; {verdict}")
    for row in dirty:
        for text in row.findings:
            print(f"  {row.part}: {row.fault}: {text}")
    return 1 if dirty else 0


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="tools/torture", description=(__doc__ or "").splitlines()[0]
    )
    options.add_argument("parts", nargs="*", metavar="PART", help=f"of: {' '.join(PARTS)}; or all")
    options.add_argument(
        "--long", action="store_true", help="the long form (up to two hours a part)"
    )
    options.add_argument("--seed", type=int, default=1, help="repeats a run (default 1)")
    options.add_argument(
        "--json", metavar="FILE", help="add the rows to this file, one JSON object a line"
    )
    found = options.parse_args()
    unknown = [name for name in found.parts if name not in PARTS]
    if unknown:
        options.error(f"no part is called {unknown[0]}; there are: {' '.join(PARTS)}")
    return found


def _run(name: str, options: argparse.Namespace) -> Iterator[Row]:
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
    try:
        with tempfile.TemporaryDirectory(prefix=f"mailstrom-torture-{name}-") as folder:
            plan = Plan(folder=Path(folder), seed=options.seed, long=options.long, say=say)
            for found in part(name)(plan):
                row = replace(found, part=name, seed=options.seed)
                verdict = "clean" if row.clean else "NOT CLEAN"
                say(
                    f"{verdict}: {row.fault}: {row.tried:,} tried, {row.lost} lost, {row.silent}"
                    f" silent, {row.marked} marked"
                )
                yield row
    finally:
        clock.cancel()


def _line(row: Row, options: argparse.Namespace) -> dict[str, object]:
    return {
        "mailstrom": mailstrom.__version__,
        "python": platform.python_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "form": "long" if options.long else "short",
        **as_json(row),
    }


if __name__ == "__main__":
    sys.exit(main())
