"""What doctor says of a listener: whether it runs, and how long its certificate holds."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from mailstrom.clock import wall_ms
from mailstrom.config import Config, load
from mailstrom.doctor import engine, listener
from mailstrom.doctor.finding import Finding
from tests.unit.doctor.facts import ENGINE, NOW, ROWS, process

DAY = 86_400_000


def _config(folder: Path, hostname: str = "mx.example.org") -> Config:
    file = folder / "mailstrom.toml"
    file.write_text(
        f'hostname = "{hostname}"\n[listener]\nbind = ["127.0.0.1:25"]\n'
        'tls_cert = "cert.pem"\ntls_key = "key.pem"\n'
    )
    return load(file, environ={"HOME": str(folder)})


@pytest.fixture
def config(tmp_path: Path) -> Config:
    until = datetime.now(UTC) + timedelta(days=30)
    issued = trustme.CA().issue_cert("mx.example.org", not_after=until)
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    return _config(tmp_path)


def _judged(config: Config, now_ms: int) -> dict[str, Finding]:
    found = listener.checks(listener.look(config), config, now_ms)
    return {one.check: one for one in found}


def test_a_certificate_and_its_end(config: Config) -> None:
    now_ms = wall_ms()
    assert {name: one.level for name, one in _judged(config, now_ms).items()} == {
        "listener.certificate": "ok"
    }
    soon = _judged(config, now_ms + 20 * DAY)["listener.certificate"]
    assert (soon.level, "ends in 9d" in soon.found) == ("warning", True)
    assert _judged(config, now_ms + 31 * DAY)["listener.certificate"].level == "problem"
    assert _judged(config, now_ms - 400 * 365 * DAY)["listener.certificate"].level == "problem"


def test_a_name_that_is_not_in_it(config: Config, tmp_path: Path) -> None:
    other = _config(tmp_path, "mail.example.org")
    assert _judged(other, wall_ms())["listener.name"].level == "note"


def test_one_that_went_away(config: Config, tmp_path: Path) -> None:
    (tmp_path / "cert.pem").unlink()
    found = _judged(config, wall_ms())
    assert list(found) == ["listener.certificate"]
    assert found["listener.certificate"].level == "problem"


def test_nothing_is_said_where_nothing_listens(config: Config) -> None:
    assert listener.look(Config(store="/x", hostname="x")) is None
    names = {one.check for one in engine.checks(ENGINE, ROWS, NOW)}
    assert "engine.listeners" not in names


@pytest.mark.parametrize(("running", "level"), [(0, "problem"), (1, "warning"), (2, "ok")])
def test_listeners_that_run(running: int, level: str) -> None:
    processes = (*ENGINE.processes, *(process(10 + one, "listener") for one in range(running)))
    found = {
        one.check: one
        for one in engine.checks(replace(ENGINE, listeners=2, processes=processes), ROWS, NOW)
    }
    assert found["engine.listeners"].level == level
    assert found["engine.running"].level == "ok"
