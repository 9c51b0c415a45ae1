"""The command line beside a running engine, as a person uses it: real processes, real hosts."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from mailstrom.testing.script import Act, Rule, Script
from tests.scenarios.conftest import MakeEngine
from tests.support.engine import DEADLINE_S, Engine, environment
from tests.support.network import Network, dots

MAIL = "From: a@sender.test\nTo: {to}\nSubject: news\n\nGood morning.\n"


def command(engine: Engine, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "mailstrom", *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env=environment() | {"MAILSTROM_STORE": str(engine.store)},
        cwd=engine.folder,
    )


def rows(engine: Engine, *arguments: str) -> list[dict[str, Any]]:
    done = command(engine, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_mail_is_held_released_and_followed_to_its_delivery(
    make_engine: MakeEngine, network: Network
) -> None:
    domain, (host,) = network.site(Script())
    engine = make_engine().start()
    tail_options = ("-n", "1000", "--json", "--type", "message", "--type", "delivered")
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "mailstrom", "tail", *tail_options],
        stdout=subprocess.PIPE,
        text=True,
        env=environment() | {"MAILSTROM_STORE": str(engine.store)},
    ) as tail:
        try:
            assert tail.stdout is not None
            sent = command(
                engine, "send", "--at", "1h", "--tag", "t", text=MAIL.format(to=f"a@{domain}")
            )
            id = sent.stdout.strip()
            assert rows(engine, "queue", "next")[0]["message_id"] == id
            assert command(engine, "queue", "hold", "--tag", "t", "--yes").returncode == 0
            (shown,) = rows(engine, "show", id[-8:])
            assert shown["status"] == "held"
            assert "queue release" in shown["recipients"][f"a@{domain}"]["next"]
            released = command(engine, "queue", "release", id[-8:], "--yes")
            assert released.stdout == "released 1 recipient\n"
            (shown,) = rows(engine, "show", id)
            assert shown["recipients"][f"a@{domain}"]["next"].startswith("not before ")

            now = command(engine, "send", "--wait=30", text=MAIL.format(to=f"b@{domain}"))
            assert now.returncode == 0
            assert len(dots([host])) == 1
            heard: list[tuple[str, str]] = []
            while ("recipient.delivered", now.stdout.strip()) not in heard:
                event = json.loads(tail.stdout.readline())
                heard.append((event["type"], event["message_id"]))
            of_id = [word for word, message in heard if message == id]
            assert of_id == ["message.accepted", "message.held", "message.released"]
            tail.send_signal(signal.SIGINT)
            assert tail.wait(DEADLINE_S) == 0
        finally:
            tail.kill()
    assert command(engine, "queue", "cancel", id, "--yes").stdout == "cancelled 1 recipient\n"


def test_what_waits_says_why_and_reports_know_it(make_engine: MakeEngine, network: Network) -> None:
    later, _ = network.site(
        Script(rules=(Rule(stage="rcpt", act=Act.REPLY, code=451, enhanced="4.7.1", text="later"),))
    )
    refused, _ = network.site(
        Script(
            rules=(Rule(stage="rcpt", act=Act.REPLY, code=550, enhanced="5.1.1", text="nobody"),)
        )
    )
    dead = network.new_domain()
    network.route(dead, [network.nobody()])
    engine = make_engine(
        settings={"retry": {"schedule": ["1h"]}, "sites": {"suspend": ["1h"]}}
    ).start()
    ids = {domain: engine.send(f"a@{domain}") for domain in (later, refused, dead)}
    engine.until(
        "SELECT 1 FROM recipients WHERE message_id = ? AND status = 'deferred'", ids[later]
    )
    engine.until("SELECT 1 FROM recipients WHERE message_id = ? AND status = 'deferred'", ids[dead])
    engine.final(ids[refused])

    def told(domain: str) -> dict[str, Any]:
        (record,) = rows(engine, "show", ids[domain])
        found: dict[str, Any] = record["recipients"][f"a@{domain}"]
        return found

    assert told(later)["next"].startswith("next attempt ")
    assert "451 4.7.1 later" in told(later)["next"]
    (made,) = told(later)["attempts_made"]
    assert (made["stage"], made["session"]["tls_reached"]) == ("rcpt", "none")
    assert "is left alone until " in told(dead)["next"]
    assert "--status failed" in told(refused)["next"]

    (site,) = rows(engine, "destinations", "show", dead)
    assert (site["suspended"], site["queued"]) == (True, 1)
    waiting = {row["domain"]: row for row in rows(engine, "report", "domains")}
    assert (waiting[refused]["failed"], waiting[later]["deferred"], waiting[dead]["deferred"]) == (
        *(1, 1, 1),
    )
    assert {row["status"] for row in rows(engine, "report", "summary")} >= {"failed", "deferred"}
    assert any(row["stage"] == "rcpt" for row in rows(engine, "report", "latency"))
    assert command(engine, "queue", "retry", "--status", "failed", "--yes").stdout == (
        "retried 1 recipient\n"
    )
    engine.until("SELECT 1 FROM attempts WHERE message_id = ? AND number = 2", ids[refused])
    assert command(engine, "queue", "cancel", "--all", "--yes").returncode == 0


def test_a_copy_taken_while_mail_flows_is_sound_and_delivers_after_adoption(
    make_engine: MakeEngine, network: Network, tmp_path: Path
) -> None:
    domain, (host,) = network.site(Script())
    engine = make_engine().start()
    for number in range(30):
        engine.send(f"a{number}@{domain}")
    waits = command(engine, "send", "--at", "1h", text=MAIL.format(to=f"b@{domain}")).stdout.strip()
    copy = str(tmp_path / "copy.db")
    assert command(engine, "store", "backup", copy).returncode == 0
    sound, *notes = command(engine, "store", "check", copy).stdout.splitlines()
    assert sound == "ok"
    assert all(note.startswith("note: worker ") for note in notes), "what the original had in hand"
    assert "is a copy" in command(engine, "queue", "count", "--store", copy).stderr
    assert command(engine, "store", "adopt", copy, "--yes").returncode == 0
    assert rows(engine, "status", waits, "--store", copy)[0]["status"] == "queued"
    engine.until("SELECT 1 FROM recipients WHERE status = 'delivered'", count=30)
    assert len(dots([host])) == 30
    assert command(engine, "queue", "cancel", waits, "--yes").returncode == 0
