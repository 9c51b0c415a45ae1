"""The command line on the fake spool."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mailstrom.cli import main
from tests.unit.cli import fake as fake_spool
from tests.unit.cli.house import House


class Done(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Done]


class Keyboard(io.TextIOWrapper):
    """Standard input with a person before it."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    fake_spool.FakeClient.reset()
    for module in ("store", "spool"):
        loaded = importlib.import_module(f"mailstrom.cli.{module}")
        monkeypatch.setattr(loaded, "client_class", lambda: fake_spool.FakeClient)
    monkeypatch.setattr(
        loaded, "require_spool", lambda config, store, create=False: None
    )  # it has no file
    yield fake_spool
    fake_spool.FakeClient.reset()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """run(*arguments, stdin=b"", person=False) -> (code, out, err)."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("MAILSTROM_STORE", "MAILSTROM_CONFIG", "MAILSTROM_LOG_LEVEL"):
        monkeypatch.delenv(variable, raising=False)

    def call(*arguments: str, stdin: bytes = b"", person: bool = False) -> Done:
        stream = (Keyboard if person else io.TextIOWrapper)(io.BytesIO(stdin), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", stream)
        capsys.readouterr()
        code = main(arguments)
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return call


@pytest.fixture
def house(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[House]:
    """A spool in the environment; see ``House``. Behind ``run``, which clears the environment."""
    del run
    path = str(tmp_path / "spool.db")
    monkeypatch.setenv("MAILSTROM_STORE", path)
    house = House(path)
    yield house
    house.close()
