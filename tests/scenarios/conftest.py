"""A network and engines for every scenario; what they hold is printed when a test fails.

An engine is ended after its test (or its module, where tests share one), and its spool must then
be sound: no scenario may leave a broken invariant behind.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mailstrom import Mailstrom
from tests.support.engine import Engine, Tables, running
from tests.support.listening import Listening, MakeListening, certify
from tests.support.network import Network
from tests.support.sockets import free_port

MakeEngine = Callable[..., Engine]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections += [("engine", engine.describe()) for engine in running()]
    return report


@contextmanager
def sound(engine: Engine) -> Iterator[Engine]:
    """The engine, ended afterwards and its spool checked."""
    try:
        yield engine
        if engine.process is not None and engine.process.poll() is None:
            assert engine.stop() == 0
        assert engine.ms.check() == []
    finally:
        engine.close()


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine")


@pytest.fixture
def make_engine(network: Network, tmp_path: Path) -> Iterator[MakeEngine]:
    """Make an engine of this test's own; not yet started."""
    made: list[Engine] = []

    def make(*, workers: int = 2, settings: Tables | None = None) -> Engine:
        place = tmp_path / f"engine{len(made)}"
        place.mkdir()
        engine = Engine(network, place, workers=workers, settings=settings)
        made.append(engine)
        return engine

    yield make
    try:
        for engine in made:
            if engine.process is not None and engine.process.poll() is None:
                assert engine.stop() == 0
            assert engine.ms.check() == []
    finally:
        for engine in made:
            engine.close()


@pytest.fixture(params=["memory", "file"])
def ms(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mailstrom]:
    """A client on a spool of each kind; sound at the end."""
    with Mailstrom("memory:" if request.param == "memory" else tmp_path / "spool.db") as ms:
        yield ms
        ms.stop()
        assert ms.check() == []


@pytest.fixture
def file_ms(tmp_path: Path) -> Iterator[Mailstrom]:
    with Mailstrom(tmp_path / "spool.db") as ms:
        yield ms
        ms.stop()
        assert ms.check() == []


@pytest.fixture
def make_listening(make_engine: MakeEngine, tmp_path: Path) -> Iterator[MakeListening]:
    """Start an engine with ``[listener]``; ``tls`` adds a certificate and users."""
    made: list[Listening] = []

    def make(*, tls: bool = False, start: bool = True, **listener: object) -> Listening:
        port = free_port()
        table: dict[str, object] = {"bind": [f"127.0.0.1:{port}"], **listener}
        if tls:
            certify(tmp_path)
            table |= {name: str(tmp_path / file) for name, file in (
                ("tls_cert", "cert.pem"), ("tls_key", "key.pem"), ("auth_file", "users"),
            )}  # fmt: skip
        engine = make_engine(workers=1, settings={"listener": table})
        if start:
            engine.start()
        made.append(Listening(engine, port))
        return made[-1]

    yield make
    for listening in made:
        listening.hang_up()
