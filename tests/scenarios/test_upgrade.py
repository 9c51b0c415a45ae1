"""The released 0.1.0 beside the present: its clients go on in a spool that a newer engine migrated.

Version 0.1.0 runs from its own wheel (``tests/data``), unpacked, in processes of its own; its
dependencies are those of this interpreter. Such a process is told what to do line by line, so that
it can hold a spool open from before the migration to long after it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mailstrom import Mailstrom
from mailstrom.storage.sqlite import schema
from mailstrom.testing.script import Script
from tests.scenarios.conftest import sound
from tests.support.engine import DEADLINE_S, Engine, environment
from tests.support.network import Network
from tests.support.sockets import eventually

WHEEL = Path(__file__).parents[1] / "data" / "mailstrom-0.1.0-py3-none-any.whl"
OLD_SCHEMA = 3

_CLIENT = """
import json, sys
import mailstrom
from mailstrom.errors import MailstromError
assert mailstrom.__version__ == "0.1.0", mailstrom.__version__
ms = mailstrom.Mailstrom(sys.argv[1])
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    verb, arguments, options = json.loads(line)
    try:
        if verb == "send":
            arguments[0] = arguments[0].encode()
        answer = getattr(ms, verb)(*arguments, **options)
        if verb == "status":
            answer = answer.to_dict()
        print(json.dumps(["ok", answer]), flush=True)
    except MailstromError as error:
        print(json.dumps([type(error).__name__, str(error)]), flush=True)
ms.close()
"""
_VERSION = """
import sys, apsw
connection = apsw.Connection(sys.argv[1], flags=apsw.SQLITE_OPEN_READWRITE)
connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
print(connection.execute("PRAGMA user_version").fetchall()[0][0])
"""


def text(recipient: str, subject: str = "news") -> str:
    return f"From: a@sender.test\nTo: {recipient}\nSubject: {subject}\n\nGood morning.\n"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where version 0.1.0 is unpacked."""
    folder = tmp_path_factory.mktemp("mailstrom-0.1.0")
    with zipfile.ZipFile(WHEEL) as wheel:
        wheel.extractall(folder)
    return folder


def _environment(old: Path) -> dict[str, str]:
    return environment() | {"PYTHONPATH": str(old)}


def user_version(spool: Path) -> int:
    """The schema's version, read by another process: this one may have the spool open."""
    argv = [sys.executable, "-P", "-c", _VERSION, str(spool)]
    ran = subprocess.run(argv, env=environment(), capture_output=True, check=True)
    return int(ran.stdout)


class OldClient:
    """A process with a 0.1.0 client on a spool that it keeps open."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert self._read() == "ready"

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def call(self, verb: str, *arguments: object, **options: object) -> Any:
        """A method's answer; the name of an error and its sentence where it raised one."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([verb, arguments, options]) + "\n")
        self._process.stdin.flush()
        error, answer = self._read()
        return answer if error == "ok" else (error, answer)

    def send(self, recipient: str, subject: str = "news", **options: object) -> Any:
        """The id of a small message, sent as bytes."""
        return self.call("send", text(recipient, subject), **options)


@contextmanager
def old_client(old: Path, spool: Path) -> Iterator[OldClient]:
    argv = [sys.executable, "-P", "-c", _CLIENT, str(spool)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment(old)
    ) as process:
        try:
            yield OldClient(process)
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(DEADLINE_S) == 0
        finally:
            process.kill()


def test_an_old_client_goes_on_in_a_spool_that_a_new_engine_migrates(
    network: Network, old: Path, tmp_path: Path
) -> None:
    domain, (host,) = network.site(Script())
    spool = tmp_path / "spool.db"
    with old_client(old, spool) as client:
        before = [client.send(f"u{n}@{domain}", idempotency_key=f"before-{n}") for n in range(5)]
        assert user_version(spool) == OLD_SCHEMA

        with sound(Engine(network, tmp_path, workers=2)) as engine:
            assert user_version(spool) == schema.VERSION > OLD_SCHEMA
            engine.start()
            while_running = [
                client.send(f"v{n}@{domain}", idempotency_key=f"while-{n}") for n in range(5)
            ]
            assert all(engine.final(id).succeeded for id in before + while_running)

            again = [client.send(f"u{n}@{domain}", idempotency_key=f"before-{n}") for n in range(5)]
            assert again == before
            assert client.send(f"other@{domain}", idempotency_key="before-0")[0] == (
                "IdempotencyConflict"
            )
            for id in before + while_running:
                status = client.call("status", id)
                assert (status["status"], status["succeeded"]) == ("delivered", True)
                assert status == engine.ms.status(id).to_dict()
            held = client.send(f"late@{domain}")
            assert engine.final(held).succeeded
            assert client.call("check") == []
            waiting = network.new_domain()
            network.zone(waiting, "SERVFAIL")
            doomed = client.send(f"nobody@{waiting}")
            assert client.call("cancel", doomed) == 1
            assert str(engine.final(doomed).status) == "cancelled"
    assert len(host.dots) == 11, "each once"


def test_an_old_client_starts_on_a_migrated_spool(
    network: Network, old: Path, tmp_path: Path
) -> None:
    domain, (host,) = network.site(Script())
    settings = {"stream.news": {"max_recipients": 1, "max_age": "1h"}}
    engine = Engine(network, tmp_path, workers=1, settings=settings).start()
    with sound(engine):
        with old_client(old, engine.store) as client:
            error, sentence = client.send(f"a@{domain}, b@{domain}", stream="news")
            assert (error, "recipients" in sentence) == ("InvalidMessage", True)
            aged = engine.final(client.send(f"a@{domain}", stream="news"))
            assert (aged.expires_at - aged.created_at).total_seconds() == 3600
            id = client.send(f"a@{domain}", priority="high", tags=["old"], metadata={"n": 1})
            status = engine.final(id)
        assert (status.succeeded, status.tags, status.metadata) == (True, ("old",), {"n": 1})
        assert user_version(engine.store) == schema.VERSION
    assert len(host.dots) == 2


@pytest.mark.parametrize("subject", ["news", "Grüße"])
def test_a_key_holds_across_versions(old: Path, tmp_path: Path, subject: str) -> None:
    """During an upgrade a job may be tried again by the other version; it must not send twice."""
    spool = tmp_path / "spool.db"
    with old_client(old, spool) as client:
        first = client.send("a@x.test", subject, idempotency_key="k")
        with Mailstrom(spool) as ms:
            raw = text("a@x.test", subject).encode()
            assert ms.send(raw, idempotency_key="k") == first
            second = ms.send(raw, idempotency_key="l")
        assert client.send("a@x.test", subject, idempotency_key="l") == second


def test_an_old_engine_refuses_a_migrated_spool(old: Path, tmp_path: Path) -> None:
    spool = tmp_path / "spool.db"
    with Mailstrom(spool) as ms:
        id = ms.send(text("a@x.test").encode())
    config = tmp_path / "mailstrom.toml"
    config.write_text(f"store = {json.dumps(str(spool))}\n")
    argv = [sys.executable, "-P", "-m", "mailstrom.supervisor", "--config", str(config)]

    ran = subprocess.run(
        argv, env=_environment(old), cwd=tmp_path, capture_output=True, timeout=DEADLINE_S
    )

    assert ran.returncode == 78, ran.stderr
    sentence = ran.stderr.decode()
    assert f"schema {schema.VERSION} is newer than this Mailstrom's {OLD_SCHEMA}" in sentence
    assert "upgrade Mailstrom" in sentence
    with Mailstrom(spool) as ms:
        assert str(ms.status(id).status) == "queued"
        assert ms.check() == []


def test_an_engine_that_was_running_goes_on_when_a_new_client_migrates_its_spool(
    network: Network, old: Path, tmp_path: Path
) -> None:
    """Not the order to choose; but whoever upgrades an application first loses nothing."""
    domain, (host,) = network.site(Script())
    spool = tmp_path / "spool.db"
    with old_client(old, spool) as client:
        first = client.send(f"a@{domain}")
        with old_engine(network, old, tmp_path) as log:
            eventually(lambda: client.call("status", first)["succeeded"], what="the first")
            assert user_version(spool) == OLD_SCHEMA
            with Mailstrom(spool) as ms:
                assert user_version(spool) == schema.VERSION
                second = ms.send(text(f"b@{domain}").encode())
                third = client.send(f"c@{domain}")
                assert ms.wait(second, DEADLINE_S).succeeded
                assert ms.wait(third, DEADLINE_S).succeeded
                assert ms.check() == []
        assert "engine.failed" not in log.read_text()
    assert len(host.dots) == 3


@contextmanager
def old_engine(network: Network, old: Path, folder: Path) -> Iterator[Path]:
    """A 0.1.0 supervisor on ``spool.db`` in a folder; gives its log, and drains at the end."""
    config, log = folder / "old.toml", folder / "old.jsonl"
    config.write_text(
        f"""store = {json.dumps(str(folder / "spool.db"))}
hostname = "sender.test"
[delivery]
port = {network.port}
workers = 1
[dns]
nameservers = ["127.0.0.1:{network.dns.port}"]
allow_loopback = true
[log]
format = "json"
"""
    )
    argv = [sys.executable, "-P", "-m", "mailstrom.supervisor", "--config", str(config)]
    with (
        log.open("ab") as out,
        subprocess.Popen(
            argv, env=_environment(old), cwd=folder, stdout=out, stderr=out
        ) as process,
    ):
        try:
            eventually(lambda: "supervisor.ready" in log.read_text(), what="the old engine")
            yield log
            process.terminate()
            assert process.wait(DEADLINE_S) == 0
        finally:
            process.kill()
