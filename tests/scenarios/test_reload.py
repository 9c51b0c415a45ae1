"""Stories of HUP: each part of the configuration changes without a restart, or nothing does.

``config.reloaded`` says that the file was taken over; when the workers go by it is seen from what
they do, so that is what is waited for. Limits of sites, demands of TLS and nameservers have their
stories in ``test_hosts`` and ``test_resolvers``.
"""

from __future__ import annotations

import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from mailstrom.testing.script import Act, Rule, Script
from tests.scenarios.conftest import MakeEngine
from tests.support.engine import DEADLINE_S, Engine, Tables, mail
from tests.support.network import Network
from tests.support.sockets import eventually

HOUR_MS = 3_600_000


def reload(engine: Engine, settings: Tables) -> None:
    """Write these tables, send HUP, and wait until the file is in force."""
    before = len(engine.log("config.reloaded"))
    engine.configure(settings)
    engine.signal(signal.SIGHUP)
    engine.wait_log("config.reloaded", count=before + 1)


def later(engine: Engine, stream: str) -> tuple[str, int, int]:
    """Priority and age of a message of a stream that is sent now, to go out tomorrow."""
    id = engine.send("a@later.test", stream=stream, send_at=datetime.now(UTC) + timedelta(days=1))
    ((priority, age),) = engine.rows(
        "SELECT priority, expires_ms - send_ms FROM messages WHERE id = ?", id
    )
    assert engine.ms.cancel(id) == 1
    return str(priority), age // HOUR_MS, len(id)


def test_streams_change(network: Network, make_engine: MakeEngine) -> None:
    settings: dict[str, dict[str, object]] = {"stream.bulk": {"priority": "low", "max_age": "2h"}}
    engine = make_engine(settings=settings).start()
    workers = set(engine.live())
    assert later(engine, "bulk")[:2] == ("low", 2)
    assert later(engine, "undeclared")[:2] == ("normal", 120)

    reload(engine, {"stream.news": {"priority": "high"}, "retry": {"max_age": "3h"}})

    eventually(lambda: later(engine, "news")[0] == "high", DEADLINE_S, what="the new stream")
    assert later(engine, "bulk")[:2] == ("normal", 3)  # declared no more
    assert set(engine.live()) == workers


def test_the_retry_schedule_changes(network: Network, make_engine: MakeEngine) -> None:
    engine = make_engine(workers=1, settings={"retry": {"schedule": ["1h"]}}).start()
    domain, _ = network.site(Script(rules=(Rule(stage="rcpt", code=450, last=1),)))
    id = engine.send(f"a@{domain}")
    engine.until("SELECT 1 FROM recipients WHERE message_id = ? AND attempts = 1", id)

    reload(engine, {"retry": {"schedule": ["1s"]}, "log": {"level": "debug"}})
    _wait_for_debug(engine, network)

    other, _ = network.site(Script(rules=(Rule(stage="rcpt", code=450, last=1),)))
    assert engine.final(engine.send(f"b@{other}")).succeeded
    (waiting,) = engine.rows(
        "SELECT next_attempt_ms - last_attempt_ms AS pause FROM recipients WHERE message_id = ?",
        id,
    )
    assert waiting.pause > HOUR_MS // 2  # what was promised before stays


def _wait_for_debug(engine: Engine, network: Network) -> None:
    """Until the only worker goes by a configuration that logs sessions."""
    probe, _ = network.site(None)

    def opened() -> bool:
        assert engine.final(engine.send(f"probe@{probe}")).succeeded
        return bool(engine.log("session.opened"))

    eventually(opened, DEADLINE_S, what="a session in the log")


def test_the_logs_level_changes(network: Network, make_engine: MakeEngine) -> None:
    engine = make_engine(workers=1).start()
    domain, _ = network.site(None)
    assert engine.final(engine.send(f"a@{domain}")).succeeded
    assert engine.log(level="debug") == []

    reload(engine, {"log": {"level": "debug"}})
    _wait_for_debug(engine, network)

    reload(engine, {"log": {"level": "warning"}})
    (pid,) = engine.live()
    count = len(engine.log(pid=pid))

    def quiet() -> bool:
        nonlocal count
        assert engine.final(engine.send(f"b@{domain}")).succeeded
        before, count = count, len(engine.log(pid=pid))
        return count == before

    eventually(quiet, DEADLINE_S, what="silence of the worker")


def test_mail_that_waits_for_a_dead_relay_goes_to_the_new_one(
    network: Network, make_engine: MakeEngine
) -> None:
    """It does not wait until the dead one would be tried again."""
    dead, alive = network.nobody(), network.host()

    def through(host: str) -> Tables:
        return {
            "delivery": {"mode": "relay"},
            "relay": {"hosts": [f"{host}:{network.port}"]},
            "sites": {"suspend": ["1h"]},
        }

    engine = make_engine(workers=1, settings=through(dead)).start()
    ids = engine.ms.send_many(mail(f"a@d{number}.test") for number in range(3))
    waits = "SELECT 1 FROM recipients WHERE message_id = ? AND reason = 'connect'"
    for id in ids:
        engine.until(waits, id)

    reload(engine, through(alive.host))

    assert all(engine.final(id).succeeded for id in ids)
    assert len(alive.dots) == 3


def test_the_relay_changes(network: Network, make_engine: MakeEngine) -> None:
    first, second = network.host(), network.host()

    def through(host: str) -> Tables:
        return {
            "delivery": {"mode": "relay"},
            "relay": {"hosts": [f"{host}:{network.port}"]},
        }

    engine = make_engine(settings=through(first.host)).start()
    assert engine.final(engine.send("a@anywhere.test")).succeeded

    reload(engine, through(second.host))

    def arrived() -> bool:
        assert engine.final(engine.send("b@anywhere.test")).succeeded
        return bool(second.dots)

    eventually(arrived, DEADLINE_S, what="mail at the second relay")
    before = len(first.dots)
    ids = [engine.send(f"c{number}@anywhere.test") for number in range(10)]
    assert all(engine.final(id).succeeded for id in ids)
    assert len(first.dots) == before


def test_renewed_authorities_are_taken_over(
    network: Network, make_engine: MakeEngine, tmp_path: Path
) -> None:
    """The file changed and its name did not."""
    roots = tmp_path / "roots.pem"
    trustme.CA().cert_pem.write_to_path(str(roots))
    settings: Tables = {
        "tls": {"verify": True, "ca_file": str(roots)},
        "sites": {"suspend": ["1s"]},
        "retry": {"schedule": ["1s"]},
    }
    engine = make_engine(workers=1, settings=settings).start()
    domain, (host,) = network.site(Script(), tls=True)
    id = engine.send(f"a@{domain}")
    engine.until("SELECT 1 FROM recipients WHERE message_id = ? AND reason = 'tls'", id)
    assert host.transactions == []
    network.authority.cert_pem.write_to_path(str(roots))

    reload(engine, settings)

    assert engine.final(id).succeeded
    assert len(host.dots) == 1


def test_the_pause_behind_a_second_loss_on_the_wire_follows_the_schedule(
    network: Network, make_engine: MakeEngine
) -> None:
    """The janitor that takes back what a killed worker held goes by the new schedule."""
    engine = make_engine(workers=1, settings={"retry": {"schedule": ["1h"]}}).start()
    reload(engine, {"retry": {"schedule": ["1s"]}})
    domain, (host,) = network.site(Script(rules=(Rule(stage="dot", act=Act.SILENCE, last=2),)))
    id = engine.send(f"a@{domain}")
    for losses in (1, 2):
        eventually(lambda n=losses: len(host.dots) == n, DEADLINE_S, what=f"dot {losses}")
        pid = engine.pid_at(f"mx1.{domain}")
        os.kill(pid, signal.SIGKILL)
        engine.wait_log("claim.lapsed", lost_pid=pid)

    (recipient,) = engine.final(id).recipients.values()

    assert (str(recipient.status), recipient.attempts, recipient.in_doubt) == ("delivered", 3, True)


BAD: dict[str, tuple[Tables, str, str]] = {
    "unknown key": (
        {"stream.bulk": {"priorty": "low"}}, "[stream.bulk] priorty", "did you mean",
    ),
    "bad size": ({"stream.bulk": {"max_size": "25 apples"}}, "[stream.bulk] max_size", "25MiB"),
    "bad value": ({"log": {"level": "loud"}}, "[log] level", '"debug"'),
    "contradiction": ({"delivery": {"mode": "relay"}}, "[relay] hosts", "write hosts ="),
    "missing file": ({"tls": {"ca_file": "none.pem"}}, "[tls] ca_file", "No such file"),
}  # fmt: skip


def test_a_bad_file_is_rejected_by_name_and_the_old_one_stays(
    network: Network, make_engine: MakeEngine
) -> None:
    settings: dict[str, dict[str, object]] = {"stream.bulk": {"priority": "low"}}
    engine = make_engine(workers=1, settings=settings).start()
    workers = set(engine.live())
    domain, _ = network.site(None)

    for number, (bad, key, advice) in enumerate(BAD.values(), 1):
        engine.configure(bad)
        engine.signal(signal.SIGHUP)
        rejected = engine.wait_log("config.rejected", count=number)[-1]
        assert rejected["file"] == str(engine.config)
        for words in (str(engine.config), key, advice):
            assert words in rejected["error"], rejected["error"]

    engine.config.write_text("[delivery\n")
    engine.signal(signal.SIGHUP)
    assert "not TOML" in engine.wait_log("config.rejected", count=len(BAD) + 1)[-1]["error"]
    engine.config.unlink()
    engine.signal(signal.SIGHUP)
    rejected = engine.wait_log("config.rejected", count=len(BAD) + 2)[-1]
    assert "no such configuration file" in rejected["error"]

    assert engine.log("config.reloaded") == []
    assert later(engine, "bulk")[0] == "low"
    assert engine.final(engine.send(f"a@{domain}")).succeeded
    assert set(engine.live()) == workers
    engine.configure(settings)


def test_a_file_cut_off_while_mail_goes_to_a_relay_sends_none_of_it_elsewhere(
    network: Network, make_engine: MakeEngine
) -> None:
    """Without the rule: mode "mx", and the domain, which the DNS does not know, bounces."""
    relay = network.host()
    engine = make_engine(
        workers=1,
        settings={
            "delivery": {"mode": "relay"},
            "relay": {"hosts": [f"{relay.host}:{network.port}"], "tls": "none"},
        },
    ).start()
    whole = engine.config.read_text()
    cuts = [0, whole.index("[delivery]"), whole.index("[relay]"), whole.index('tls = "none"')]

    for number, end in enumerate(cuts, 1):
        engine.config.write_text(whole[:end])
        engine.signal(signal.SIGHUP)
        rejected = engine.wait_log("config.rejected", count=number)[-1]["error"]
        assert "is empty" in rejected or "no longer says" in rejected or "needs" in rejected
        assert engine.final(engine.send(f"u{number}@anywhere.test")).succeeded

    assert len(relay.dots) == len(cuts)
    assert engine.log("config.reloaded") == []
    engine.config.write_text(whole)


@pytest.mark.parametrize("how", ["sizes", "recipients"])
def test_a_stream_refuses_what_is_too_much_from_the_reload_on(
    network: Network, make_engine: MakeEngine, how: str
) -> None:
    from mailstrom import InvalidMessage

    engine = make_engine(workers=1).start()
    limit = {"sizes": {"max_size": "2kB"}, "recipients": {"max_recipients": 2}}[how]
    reload(engine, {"stream.small": limit})

    def refused() -> bool:
        names = [f"u{number}@later.test" for number in range(3)]
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        try:
            id = engine.send(*names, text="x" * 3000, stream="small", send_at=tomorrow)
        except InvalidMessage as error:
            return "small" in str(error)
        assert engine.ms.cancel(id) == 3
        return False

    eventually(refused, DEADLINE_S, what="the refusal")
