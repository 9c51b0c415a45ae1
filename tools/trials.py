"""Runs parts that try Mailstrom hard, tells their rows, and writes them down.

A part is a module whose ``run(plan)`` yields rows (``tests.support.trial``). Loopback only; each
has a temporary directory that is removed, and is stopped at a limit of time. The exit code is 1 if
any row is not clean, 130 if it was stopped.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import apsw

import mailstrom
from tests.support.trial import Plan

LIMIT_S = {"short": 600, "long": 7_200}


class Row(Protocol):
    """What one kind of trial came to; a dataclass with a ``seed``."""

    @property
    def clean(self) -> bool:
        """Whether all was as it should be."""

    @property
    def findings(self) -> Sequence[str]:
        """What was not."""

    @property
    def title(self) -> str:
        """What was tried, in a few words."""

    def told(self) -> str:
        """What came of it, in one line."""


@dataclass(frozen=True, slots=True)
class Trials:
    """One tool.

    Args:
        tool: its name, and that of its package in ``tests``, which has ``plan`` and ``table``.
        word: what a part is called.
        about: one line of help.
        parts: their names, in order: modules of the package.
    """

    tool: str
    word: str
    about: str
    parts: Sequence[str]

    def main(self) -> int:
        """Run the parts that were asked for."""
        options = self._options()
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is ended
        rows: list[Row] = []
        with contextlib.ExitStack() as opened:
            stream = None
            if options.json:
                stream = opened.enter_context(Path(options.json).open("a", encoding="utf-8"))
            try:
                for name in options.parts or self.parts:
                    for row in self._run(name, options):
                        rows.append(row)
                        if stream is not None:
                            stream.write(json.dumps(_line(row, options)) + "\n")
                            stream.flush()
            except KeyboardInterrupt:
                print("stopped; what was done until then:", file=sys.stderr)
                self._tell(rows)
                return 130
        return self._tell(rows)

    def _tell(self, rows: list[Row]) -> int:
        """The table, and each finding in full."""
        print()
        table = import_module(f"tests.{self.tool}.table")
        print(table.markdown(rows), end="")
        dirty = [row for row in rows if not row.clean]
        verdict = "every row is clean" if not dirty else f"{len(dirty)} rows are not clean"
        print(f"\n{len(rows)} rows; {verdict}")
        for row in dirty:
            for text in row.findings:
                print(f"  {row.title}: {text}")
        return 1 if dirty else 0

    def _options(self) -> argparse.Namespace:
        options = argparse.ArgumentParser(prog=f"tools/{self.tool}", description=self.about)
        word = self.word
        options.add_argument(
            "parts", nargs="*", metavar=word.upper(), help=f"of: {' '.join(self.parts)}; or all"
        )
        options.add_argument(
            "--long", action="store_true", help=f"the long form (up to two hours a {word})"
        )
        options.add_argument("--seed", type=int, default=1, help="repeats a run (default 1)")
        options.add_argument(
            "--json", metavar="FILE", help="add the rows to this file, one JSON object a line"
        )
        found = options.parse_args()
        unknown = [name for name in found.parts if name not in self.parts]
        if unknown:
            options.error(f"no {word} is called {unknown[0]}; there are: {' '.join(self.parts)}")
        return found

    def _run(self, name: str, options: argparse.Namespace) -> Iterator[Row]:
        started = time.monotonic()
        limit = LIMIT_S["long" if options.long else "short"]

        def say(line: str) -> None:
            spent = time.monotonic() - started
            print(f"{name} {spent:7.1f} s  {line}", file=sys.stderr, flush=True)

        def over() -> None:
            say(f"not done after {limit} s: stopped")
            os.kill(os.getpid(), signal.SIGINT)  # whatever it started is ended on the way out

        clock = threading.Timer(limit, over)
        clock.daemon = True
        clock.start()
        run: Callable[[Plan], Iterator[Any]] = import_module(f"tests.{self.tool}.{name}").run
        try:
            with tempfile.TemporaryDirectory(prefix=f"mailstrom-{self.tool}-{name}-") as folder:
                plan = Plan(folder=Path(folder), seed=options.seed, long=options.long, say=say)
                for found in run(plan):
                    row = replace(found, seed=options.seed, **{self.word: name})
                    say(f"{'clean' if row.clean else 'NOT CLEAN'}: {row.title}: {row.told()}")
                    yield row
        finally:
            clock.cancel()


def main(tool: str, word: str, about: str) -> int:
    """Run a tool as its arguments say; returns the exit code.

    Args:
        tool: its name, and that of its package in ``tests``.
        word: what its parts are called there (``PARTS`` of ``plan`` for ``part``).
        about: what it does; the first line is told.
    """
    parts = getattr(import_module(f"tests.{tool}.plan"), f"{word.upper()}S")
    return Trials(tool, word, about.splitlines()[0], parts).main()


def _line(row: Row, options: argparse.Namespace) -> dict[str, object]:
    return {
        "mailstrom": mailstrom.__version__,
        "python": platform.python_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "form": "long" if options.long else "short",
        **asdict(row),  # type: ignore[call-overload]
        "clean": row.clean,
    }


def rows_of(path: Path, kind: type[Any]) -> tuple[list[Any], list[str]]:
    """What a tool wrote with ``--json``: the rows, and on what machines they were made."""
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = set(kind.__dataclass_fields__)
    rows = [
        kind(**{key: tuple(value) if isinstance(value, list) else value
                for key, value in one.items() if key in names})
        for one in found
    ]  # fmt: skip
    said = {
        tuple(str(one[key]) for key in ("mailstrom", "python", "sqlite", "system")) for one in found
    }
    return rows, [
        f"Mailstrom {version}, Python {python}, SQLite {sqlite}, {system}."
        for version, python, sqlite, system in sorted(said)
    ]
