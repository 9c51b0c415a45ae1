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


class Done(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    fake_spool.FakeClient.reset()
    for module in ("store", "spool"):
        loaded = importlib.import_module(f"mailstrom.cli.{module}")
        monkeypatch.setattr(loaded, "client_class", lambda: fake_spool.FakeClient)
    monkeypatch.setattr(loaded, "require_spool", lambda config, store: None)  # it has no file
    yield fake_spool
    fake_spool.FakeClient.reset()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """run(*arguments, stdin=b"") -> (code, out, err)."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("MAILSTROM_STORE", "MAILSTROM_CONFIG", "MAILSTROM_LOG_LEVEL"):
        monkeypatch.delenv(variable, raising=False)

    def call(*arguments: str, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsys.readouterr()
        code = main(arguments)
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return call
