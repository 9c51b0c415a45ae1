"""Measures Mailstrom, alone or beside its peers, and prints a table of what was found.

Names: accept listener drain connections e2e latency sites depth stalls idle memory profile, or all.
Mailstrom is the one that this interpreter imports. Loopback only; each run has a temporary
directory that is removed. What is recorded (--record) is what docs/performance.md is made of,
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
from tools.bench.listener import listener  # noqa: E402
from tools.bench.plan import PEERS, Plan  # noqa: E402
from tools.bench.profile import profile  # noqa: E402
from tools.bench.sites import sites  # noqa: E402
from tools.bench.stalls import stalls  # noqa: E402

RECORD = ROOT / "docs" / "data" / "bench.jsonl"
SMOKE = 0.005
MOST = 100_000_000  # of anything that is counted; more is a slip of the finger
MOST_WORKERS = 256  # as the configuration takes them

BENCHES: dict[str, Callable[[Plan], Iterator[Figure]]] = {
    "accept": accept,
    "listener": listener,
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
    kept = True
    try:
        for name in names:
            for figure in BENCHES[name](plan):
                taken.append(figure)
                lines.append(as_line(figure, about))
                _tell(figure)
                if options.json:
                    kept &= _append(options.json, lines[-1])
    except KeyboardInterrupt:
        print("stopped; what was measured until then:", file=sys.stderr)
        options.record = None
    if options.record:
        _record(options.record, {figure.bench for figure in taken}, lines)
    kept &= _print(table(taken))
    return 1 if not kept or any(figure.error for figure in taken) else 0


def _count(text: str, most: int = MOST) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is no whole number") from None
    if not 1 <= number <= most:
        raise argparse.ArgumentTypeError(f"{number} is not from 1 to {most:,}")
    return number


def _workers(text: str) -> int:
    return _count(text, MOST_WORKERS)


def _lines_file(text: str) -> Path:
    """A file that lines can be appended to: what cannot be kept need not be measured."""
    file = Path(text)
    try:
        with file.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: cannot be written ({error.strerror})") from None
    return file


def _record_file(text: str) -> Path:
    """A file of measurements, or one that can be made."""
    file = Path(text)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _lines_file(text)
        if not file.is_file():  # a device may have no end
            raise argparse.ArgumentTypeError(f"{text}: is no regular file; name another")
        old = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise argparse.ArgumentTypeError(f"{text}: holds no measurements; name another") from None
    for number, line in enumerate(old, 1):
        try:
            from_lines([line])
        except (ValueError, TypeError, AttributeError):
            raise argparse.ArgumentTypeError(
                f"{text}: line {number} is no measurement; name another file"
            ) from None
    return file


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
    options.add_argument(
        "--workers", type=_workers, default=2, help="delivery processes (default 2)"
    )
    options.add_argument("--queued", type=_count, default=1_000_000, help="the deepest queue")
    options.add_argument("--smoke", action="store_true", help="a few messages of everything")
    options.add_argument(
        "--json", type=_lines_file, metavar="FILE", help="append one JSON object a run"
    )
    options.add_argument(
        "--record", nargs="?", const=str(RECORD), type=_record_file, metavar="FILE",
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


def _print(lines: Iterator[str]) -> bool:
    """Whether standard output took them."""
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except OSError as error:
        print(f"standard output cannot be written ({error.strerror})", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _append(file: Path, line: str) -> bool:
    """Whether it was written: a disk that fills up does not take the other figures away."""
    try:
        with file.open("a", encoding="utf-8") as out:
            out.write(line + "\n")
    except OSError as error:
        print(f"{file}: not written ({error.strerror}): {line}", file=sys.stderr)
        return False
    return True


def _record(file: Path, benches: set[str], lines: list[str]) -> None:
    """Older lines of other measurements stay."""
    kept = []
    if file.exists():
        old = file.read_text(encoding="utf-8").splitlines()
        kept = [line for line in old for one in from_lines([line]) if one.bench not in benches]
    file.write_text("".join(line + "\n" for line in (*kept, *lines)), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
