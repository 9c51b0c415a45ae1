"""Every store of ours passes the same cases: none is left out, renamed or skipped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

from tests.storage import machine, spool
from tests.storage.contract import StoreContract
from tests.storage.test_memory import TestMemory as Memory
from tests.storage.test_memory_machine import MemoryMachine
from tests.storage.test_sqlite import TestSQLite as SQLite
from tests.storage.test_sqlite_machine import SQLiteMachine

HERE = Path(__file__).parent
STORES = ("sqlite", "memory")


def test_the_collected_cases_are_the_same() -> None:
    root = HERE.parent.parent
    paths = [str(HERE / f"test_{store}.py") for store in STORES]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "--collect-only", "-q", "-p", "no:randomly", *paths],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=root,
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    cases: dict[str, set[str]] = {}
    for line in done.stdout.splitlines():
        file, _, case = line.partition("::")
        if case:
            cases.setdefault(Path(file).stem, set()).add(case.partition("::")[2])
    assert set(cases) == {f"test_{store}" for store in STORES}
    assert cases["test_sqlite"] == cases["test_memory"]
    assert len(cases["test_memory"]) > 300


def test_shared_modules_are_rewritten_whoever_imports_them_first() -> None:
    """Else pytest warns, and an assertion in them says nothing when it fails."""
    root = HERE.parent.parent
    paths = [root / "tests" / "unit" / "cli", HERE / "test_memory.py"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "--collect-only", "-q", *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=root,
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    for module in (spool, machine, *contracts()):
        assert type(module.__loader__).__name__ == "AssertionRewritingHook", module.__name__


def contracts() -> list[ModuleType]:
    """The modules that the suite is put together from."""
    return [sys.modules[part.__module__] for part in StoreContract.__mro__[1:-1]]


def test_no_store_changes_or_marks_a_case() -> None:
    for store in (SQLite, Memory):
        assert store.__mro__[1] is StoreContract
        own = [name for name in vars(store) if not name.startswith("__")]
        assert own == [], f"{store}: {own}"
    for case in (SQLiteMachine, MemoryMachine):
        public = [name for name in vars(case) if not name.startswith("_")]
        assert [n for n in public if n not in ("TestCase", "settings")] == ["stores"]
