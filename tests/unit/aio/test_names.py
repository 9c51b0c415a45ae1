"""``AsyncMailstrom`` is ``Mailstrom`` with awaits: the same names, the same parameters."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from mailstrom import AsyncMailstrom, Mailstrom
from mailstrom.aio.api import AsyncSuppressions
from mailstrom.client.asking import Suppressions

PUBLIC = sorted(name for name in dir(Mailstrom) if name[0] != "_")
METHODS = [name for name in PUBLIC if callable(getattr(Mailstrom, name))]


def test_the_names_are_the_same() -> None:
    """``path`` is an attribute there and a property here."""
    assert sorted({*PUBLIC, "path"}) == [name for name in dir(AsyncMailstrom) if name[0] != "_"]


@pytest.mark.parametrize("name", METHODS)
def test_the_parameters_are_the_same(name: str) -> None:
    ours = inspect.signature(getattr(AsyncMailstrom, name)).parameters
    theirs = inspect.signature(getattr(Mailstrom, name)).parameters
    if name == "send_many":  # takes asynchronous iterables, too
        assert [(p.name, p.kind) for p in ours.values()] == [
            (p.name, p.kind) for p in theirs.values()
        ]
    else:
        assert ours == theirs


def test_every_verb_is_awaited_but_the_stream() -> None:
    plain = [name for name in METHODS if not inspect.iscoroutinefunction(
        inspect.unwrap(getattr(AsyncMailstrom, name)))]  # fmt: skip
    assert plain == ["follow"]


def test_the_constructors_and_suppressions_agree() -> None:
    assert list(inspect.signature(AsyncMailstrom).parameters) == list(
        inspect.signature(Mailstrom).parameters
    )
    for name in ("list", "get"):
        assert (
            inspect.signature(getattr(AsyncSuppressions, name)).parameters
            == inspect.signature(getattr(Suppressions, name)).parameters
        )


def test_every_method_has_a_docstring() -> None:
    for cls in (Mailstrom, AsyncMailstrom):
        for name in PUBLIC:
            assert (inspect.getdoc(getattr(cls, name)) or "").strip(), name


@pytest.mark.parametrize(
    "name",
    [
        "AsyncMailstrom", "Cause", "Change", "EngineState", "Event", "Mailstrom", "OnDoubt",
        "Priority", "QueueStats", "Suppression", "Waiting", "WorkerStatus",
    ],
)  # fmt: skip
def test_the_package_gives_each_name_and_the_client_loads_no_loop(name: str) -> None:
    script = f"import sys; from mailstrom import {name} as it; print(it.__name__, *sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-P", "-S", "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    first, *modules = ran.stdout.split()
    assert first == name
    assert ("asyncio" in modules) == (name == "AsyncMailstrom")
