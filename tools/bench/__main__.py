"""Measures Mailstrom beside its peers: tools/bench/run --help.

Names: accept drain connections e2e latency sites depth stalls idle memory profile, or all.
Mailstrom is the one that this interpreter imports. Loopback only; each run has a temporary
directory that is removed. What is recorded (``--record``) is what docs/performance.md is made of,
by tools/gendocs.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = str(Path(__file__).resolve().parent)
# for tests.support and tools.bench, behind the packages that are measured; this folder itself
# holds names of the standard library
sys.path[:] = [entry for entry in sys.path if str(Path(entry or ".").resolve()) != HERE]
sys.path.append(str(ROOT))
if "PYTHONPATH" in os.environ:  # what is started runs in other directories
    os.environ["PYTHONPATH"] = os.pathsep.join(
        os.path.abspath(entry) for entry in os.environ["PYTHONPATH"].split(os.pathsep) if entry
    )

from tools.bench.accept import accept  # noqa: E402
from tools.bench.depth import depth, memory  # noqa: E402
from tools.bench.drain import connections, drain, e2e, latency  # noqa: E402
from tools.bench.figures import (  # noqa: E402
    Figure,
    as_line,
    from_lines,
    machine,
    table,
)
from tools.bench.idle import idle  # noqa: E402
from tools.bench.plan import PEERS, Plan  # noqa: E402
from tools.bench.profile import profile  # noqa: E402
from tools.bench.sites import sites  # noqa: E402
from tools.bench.stalls import stalls  # noqa: E402

RECORD = ROOT / "docs" / "data" / "bench.jsonl"
SMOKE = 0.005

BENCHES: dict[str, Callable[[Plan], Iterator[Figure]]] = {
    "accept": accept,
    "drain": drain,
    "connections": connections,
    "e2e": e2e,
    "latency": latency,
    "sites": sites,
    "depth": depth,
    "stalls": stalls,
    "idle": idle,
    "memory": memory,
    "profile": profile,
}
ALL = tuple(name for name in BENCHES if name != "memory")  # depth measures it on its way


def main() -> int:
    """Run what was asked for; 1 if any run failed."""
    options = _options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended
    loops = (options.uvloop,) if options.uvloop is not None else _loops()
    plan = Plan(
        runs=options.runs,
        peers=_peers(options.peer),
        loops=loops,
        workers=options.workers,
        scale=SMOKE if options.smoke else 1.0,
        queued=options.queued,
    )
    names = list(dict.fromkeys(
        name for asked in options.names for name in (ALL if asked == "all" else (asked,))
    ))  # fmt: skip
    about, taken = machine(), []
    lines: list[str] = []
    try:
        for name in names:
            for figure in BENCHES[name](plan):
                taken.append(figure)
                lines.append(as_line(figure, about))
                _tell(figure)
                if options.json:
                    with Path(options.json).open("a", encoding="utf-8") as out:
                        out.write(lines[-1] + "\n")
    except KeyboardInterrupt:
        print("stopped; what was measured until then:", file=sys.stderr)
        options.record = None
    for line in table(taken):
        print(line)
    if options.record:
        _record(Path(options.record), {figure.bench for figure in taken}, lines)
    return 1 if any(figure.error for figure in taken) else 0


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too few; at least 1")
    return number


def _options() -> argparse.Namespace:
    text = (__doc__ or "").splitlines()
    options = argparse.ArgumentParser(
        prog="tools/bench/run", description=text[0], epilog=" ".join(text[2:])
    )
    options.add_argument("names", nargs="+", choices=(*BENCHES, "all"), metavar="NAME")
    options.add_argument("--runs", type=_count, default=1, help="of each case (default 1)")
    options.add_argument(
        "--peer", action="append", default=[], choices=(*PEERS, "all", "none"),
        help="beside whom, in turn; may be repeated (default none)",
    )  # fmt: skip
    options.add_argument(
        "--uvloop", action=argparse.BooleanOptionalAction, default=None,
        help="with it or without it alone (default: both where it is installed)",
    )  # fmt: skip
    options.add_argument("--workers", type=_count, default=2, help="delivery processes (default 2)")
    options.add_argument("--queued", type=_count, default=1_000_000, help="the deepest queue")
    options.add_argument("--smoke", action="store_true", help="a few messages of everything")
    options.add_argument("--json", metavar="FILE", help="append one JSON object a run")
    options.add_argument(
        "--record", nargs="?", const=str(RECORD), metavar="FILE",
        help="put these measurements in the place of older ones of the same names"
        " (default docs/data/bench.jsonl)",
    )  # fmt: skip
    return options.parse_args()


def _loops() -> tuple[bool, ...]:
    return (True, False) if find_spec("uvloop") else (False,)


def _peers(asked: list[str]) -> tuple[str, ...]:
    if "all" in asked:
        return PEERS
    return tuple(peer for peer in PEERS if peer in asked)


def _tell(figure: Figure) -> None:
    loop = {True: " uvloop", False: " asyncio", None: ""}[figure.uvloop]
    values = ", ".join(f"{name} {value:,.3f}" for name, value in figure.values.items())
    noise = f"; foreign load {figure.foreign_cores:.2f} cores" if figure.noisy else ""
    print(
        f"{time.strftime('%H:%M:%S')} {figure.bench}: {figure.case}: {figure.who}{loop}"
        f" #{figure.run}: {(figure.error and 'FAILED ' + figure.error) or values}{noise}",
        file=sys.stderr,
        flush=True,
    )


def _record(file: Path, benches: set[str], lines: list[str]) -> None:
    """Older lines of other measurements stay."""
    kept = []
    if file.exists():
        old = file.read_text(encoding="utf-8").splitlines()
        kept = [line for line in old if from_lines([line])[0].bench not in benches]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(line + "\n" for line in (*kept, *lines)), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
