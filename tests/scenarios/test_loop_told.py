"""Which event loop a worker runs on is in its log: in processes, and inside an application."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mailstrom import Mailstrom
from mailstrom_workers import loops
from tests.scenarios.conftest import MakeEngine
from tests.support.embedded import heard, tables
from tests.support.engine import environment
from tests.support.network import Network
from tools.bench.engine import WITHOUT


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest) -> str:
    """The loop that is to be told."""
    name: str = request.param
    if name == "uvloop":
        pytest.importorskip("uvloop", reason="extra speed is not installed")
    return name


def test_each_process_tells_its_loop(loop: str, make_engine: MakeEngine, tmp_path: Path) -> None:
    env = environment()
    if loop == "asyncio":
        (tmp_path / "sitecustomize.py").write_text(WITHOUT)
        path = filter(None, [str(tmp_path), env.get("PYTHONPATH")])
        env["PYTHONPATH"] = os.pathsep.join(path)
    engine = make_engine(workers=1).start(env=env)
    lines = engine.wait_log("worker.ready", count=2)
    assert {line["kind"]: line["loop"] for line in lines} == {"delivery": loop, "janitor": loop}


def test_an_engine_inside_an_application_tells_its_loop(
    loop: str, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    if loop == "asyncio":
        monkeypatch.setattr(loops, "find_spec", lambda name: None)
    with heard() as records, Mailstrom("memory:") as ms:
        ms.start(config=tables(network))
        ms.stop()
    ready = [record for record in records.kept if record.msg == "worker.ready"]
    assert [record.__dict__["fields"]["loop"] for record in ready] == [loop, loop]
