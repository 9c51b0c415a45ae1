"""A relay that refuses, breaks off or mishandles AUTH, alone and with a spare one behind it.

Contract. Host trouble, by the failure policy: a refusal there speaks of our credentials (reason
``local``), so nobody is charged, no mail is begun, and the spare one gets it. One engine is told
each relay by a reload; what waits from one case is cancelled before the next.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

from mailstrom.testing.script import Act, Rule, Script
from tests.hostile.servers_judge import Trial, family, settled
from tests.hostile.servers_stages import SETTINGS as FIRST_LOOK
from tests.hostile.stand import Stand, standing
from tests.hostile.table import Row
from tests.support.engine import DEADLINE_S
from tests.support.sockets import eventually
from tests.support.trial import Plan

USER, PASSWORD = "joe", "open sesame"
PATIENCE_S = 2
NOT_NOW, OURS = "deferred remote, 0 charged", "deferred local, 0 charged"
FAULTS: tuple[tuple[str, Mapping[str, object], str], ...] = (
    ("421, then FIN,", {"code": 421, "close": True}, NOT_NOW),
    ("454, 535 or 554", {"code": 454, "enhanced": "4.7.0"}, OURS),
    ("454, 535 or 554", {"code": 535, "enhanced": "5.7.8"}, OURS),
    ("454, 535 or 554", {"code": 554}, OURS),
    ("FIN, RST or half a reply", {"act": Act.CLOSE}, NOT_NOW),
    ("FIN, RST or half a reply", {"act": Act.RESET}, NOT_NOW),
    ("FIN, RST or half a reply", {"act": Act.GARBAGE, "data": "23", "close": True}, NOT_NOW),
    ("garbage or 354", {"act": Act.GARBAGE, "data": "certainly no SMTP\r\n"}, NOT_NOW),
    ("garbage or 354", {"code": 354}, NOT_NOW),
    ("235, then FIN,", {"close": True}, NOT_NOW),
    ("silence", {"act": Act.SILENCE}, NOT_NOW),
)


def run(plan: Plan) -> Iterator[Row]:
    """A row for each kind of fault."""
    folder = plan.folder / "relay"
    folder.mkdir()
    password = folder / "password"
    password.write_text(f"{PASSWORD}\n")
    timeouts = {**FIRST_LOOK["timeouts"], "auth": f"{PATIENCE_S}s"}
    place = folder / "engine"
    place.mkdir()
    with standing(place, {**FIRST_LOOK, "timeouts": timeouts, **_nowhere(password)}) as stand:
        for name in dict.fromkeys(name for name, _, _ in FAULTS):
            if name == "silence" and not plan.long:
                continue  # two times to be waited for
            faults = [(fault, wanted) for one, fault, wanted in FAULTS if one == name]
            yield family(
                stand, f"a relay: {name} in reply to AUTH",
                f"{faults[0][1]}; delivered by the spare relay where there is one",
                lambda faults=faults: _tried(stand, password, faults),
            )  # fmt: skip


def _nowhere(password: Path) -> dict[str, dict[str, object]]:
    return _relays(password, ["127.0.0.1:9"])


def _relays(password: Path, hosts: list[str]) -> dict[str, dict[str, object]]:
    login = {"username": USER, "password_file": str(password), "mechanism": "plain"}
    return {
        "delivery": {"mode": "relay", "max_connections": 400},
        "relay": {"hosts": hosts, "tls": "none", **login},
    }


def _tried(
    stand: Stand, password: Path, faults: list[tuple[Mapping[str, object], str]]
) -> Iterator[Trial]:
    network, engine = stand.network, stand.engine
    for fault, wanted in faults:
        rule = Rule(stage="auth", **fault)  # type: ignore[arg-type]
        for spare in (False, True):
            first = network.host(Script(rules=(rule,), auth={USER: PASSWORD}))
            hosts = [first, *([network.host(Script(auth={USER: PASSWORD}))] if spare else [])]
            relays = _relays(password, [f"{host.host}:{network.port}" for host in hosts])
            _reload(stand, relays)
            id = engine.send("a@elsewhere.test")
            # the worker takes the new settings over in its own time
            eventually(lambda first=first: first.connections, DEADLINE_S, what="the new relay")
            settled(stand, [id])
            seen = stand.outcome(id, "a@elsewhere.test"), first.transactions
            engine.ms.cancel(id)
            told = "delivered, 1 charged" if spare else wanted
            yield Trial(name=f"{fault}, spare {spare}", wanted=(told, []), seen=seen)


def _reload(stand: Stand, tables: Mapping[str, Mapping[str, object]]) -> None:
    engine = stand.engine
    before = len(engine.log("config.reloaded"))
    engine.configure({**engine.settings, **tables})
    engine.signal(signal.SIGHUP)
    engine.wait_log("config.reloaded", count=before + 1)
