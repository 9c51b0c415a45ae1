"""What was asked for: which runs, beside whom, how large; and directories and failures of a run.

Contract. A measurement is a generator of figures; each run gets a directory of its own, removed
after it, and a run that fails is a figure that says why: one peer that cannot be had does not take
the others' figures away.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tools.bench.figures import Figure

PEERS = ("postfix", "huey", "post-office")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure with.

    Args:
        runs: of each case.
        peers: measured in turn with Mailstrom, a subset of ``PEERS``.
        loops: forms of Mailstrom: with uvloop (True), without (False).
        workers: delivery processes of Mailstrom.
        scale: 1, or a small share of it for a smoke test.
        queued: recipients of the deepest queue.
    """

    runs: int = 1
    peers: tuple[str, ...] = ()
    loops: tuple[bool, ...] = (False,)
    workers: int = 2
    scale: float = 1.0
    queued: int = 1_000_000

    def many(self, n: int) -> int:
        """So many messages, or the smoke test's share of them (at least 20)."""
        return max(20, int(n * self.scale))

    def few(self, n: int) -> int:
        """So many repetitions, or the smoke test's three."""
        return n if self.scale == 1 else min(n, 3)

    def long(self, seconds: float) -> float:
        """So many seconds, or the smoke test's share of them (at least 0.3)."""
        return max(0.3, seconds * self.scale)

    @property
    def fastest(self) -> bool:
        """Whether the form that is measured alone, where one is enough, has uvloop."""
        return any(self.loops)


@contextmanager
def folder() -> Iterator[Path]:
    """A directory for one run; others may enter it, as Postfix gives up root."""
    with tempfile.TemporaryDirectory(prefix="mailstrom-bench-", ignore_cleanup_errors=True) as name:
        home = Path(name)
        home.chmod(0o755)
        yield home


def installed(environ: Mapping[str, str], home: Path) -> dict[str, str]:
    """An environment in which programs start as installed ones do: with .pyc files.

    Args:
        environ: of those who start them, who may keep such files out of a checkout.
        home: a directory of the run; the first start writes them there.
    """
    chosen = {**environ, "PYTHONPYCACHEPREFIX": str(home / "pyc")}
    chosen.pop("PYTHONDONTWRITEBYTECODE", None)
    return chosen


def attempt(blank: Figure, measure: Callable[[Figure], Figure]) -> Figure:
    """A run's figure, or the blank one with the reason why there is none."""
    try:
        return measure(blank)
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return replace(blank, error=text[:500])
