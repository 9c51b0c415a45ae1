"""TLS that is refused, stripped, injected into or broken, under every policy.

Contract. ``tls_table`` says what must become of a message at each host by policy; ``tls_cases`` has
the hosts, on real sockets, which note every octet that came in clear; here each case meets an
engine of each policy, and the views are compared with the table. A row is a case; its variants and
policies are counted in ``tried``, and the worst of their costs is told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from tests.hostile.plan import GROUPS
from tests.hostile.stand import Stand
from tests.hostile.table import MIB, Row
from tests.hostile.tls_cases import AUTH_CASES, CASES, Case
from tests.hostile.tls_certificates import Issuer
from tests.hostile.tls_table import AUTH, EXPECTED, SAID, expected
from tests.hostile.tls_talk import Make
from tests.hostile.tls_trial import RELAY, Policy, Site, Smart, Told, Tried, chosen
from tests.support.engine import PEERS, STAGES, Engine
from tests.support.network import Network
from tests.support.sockets import loopback_addresses
from tests.support.trial import Plan

GROUP = "tls"
assert GROUP in GROUPS
WAIT = "6s"
"""For each stage in the long form; longer than a machine with many sessions stands still. In the
short form no host is waited for."""
MOST = 48 * MIB
"""A worker grows by no more than this, whatever it meets."""
_VERIFY: dict[str, object] = {"verify": True}
_MX = (
    Policy(name="opportunistic", column="may"),
    Policy(name="opportunistic + require_tls", column="may", demand=True),
    Policy(name="require", column="must", tls={"require": True}),
    Policy(name="verify", column="sure", tls=_VERIFY),
)
_RELAYS = (
    Policy(name="relay none", column="none", relay={"tls": "none"}),
    Policy(name="relay opportunistic", column="may", relay={"tls": "opportunistic"}),
    Policy(name="relay required", column="must", relay={"tls": "required"}),
    Policy(name="relay required + verify", column="sure", tls=_VERIFY, relay={"tls": "required"}),
    Policy(name="relay implicit", column="implicit", relay={"tls": "implicit"}),
    Policy(name="relay implicit + verify", column="implicit+", tls=_VERIFY,
           relay={"tls": "implicit"}),
)  # fmt: skip
POLICIES = (
    *_MX,
    *_RELAYS,
    *(replace(one, name=f"{one.name} + login", login=True) for one in _RELAYS[2:]),
)
SHORT = {
    "opportunistic": 2,
    "opportunistic + require_tls": 1,
    "verify": 1,
    "relay implicit + verify": 1,
    "relay required + login": 2,
}
"""Policies of the short form, and how many variants of a case."""
WAITED = frozenset({"mute", "unsure"})
"""Outcomes that come when a stage was waited for to its end: not in the short form."""
ALL = 1000
FEW = {"none": 2, "may": 2, "must": 2, "sure": 2, "implicit": 4, "implicit+": 4}
"""Variants with a relay, in the long form: they are tried one after the other."""


@dataclass(slots=True)
class Gathered:
    """All trials of one case."""

    wanted: dict[str, list[str]] = field(default_factory=dict)
    seen: dict[str, list[str]] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    tried: int = 0
    seconds: float = 0.0
    cpu_s: float = 0.0
    memory: int = 0

    def row(self, name: str) -> Row:
        """What is told of them."""
        return Row(
            group=GROUP, case=name, wanted=_words(self.wanted), seen=_words(self.seen),
            tried=self.tried, seconds=self.seconds, cpu_s=self.cpu_s, memory=self.memory,
            findings=tuple(self.findings),
        )  # fmt: skip


def _words(by_word: Mapping[str, list[str]]) -> str:
    if len(by_word) == 1:
        return next(iter(by_word))
    return "; ".join(f"{', '.join(policies)}: {word}" for word, policies in by_word.items())


def run(plan: Plan) -> Iterator[Row]:
    """Every case under every policy of the form."""
    gathered: dict[str, Gathered] = {}
    issuer = Issuer(plan.folder / "certificates")
    for policy in POLICIES:
        if not plan.long and policy.name not in SHORT:
            continue
        for name, one in tried(plan, policy, issuer):
            found = gathered.setdefault(name, Gathered())
            _gather(found, one, policy)
        plan.say(f"{policy.name}: done")
    for name, found in gathered.items():
        yield found.row(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class One:
    """A case under one policy."""

    wanted: tuple[str, ...]
    told: Told
    row: Row


def _gather(into: Gathered, one: One, policy: Policy) -> None:
    wanted = " or ".join(dict.fromkeys(SAID[word] for word in one.wanted))
    wrong = {name: word for name, word in one.told.words.items() if word not in one.wanted}
    seen = wanted
    if wrong or not one.told.words:
        word = next(iter(wrong.values()), "no outcome")
        seen = SAID.get(word, word)
        into.findings += [f"{policy.name}: {name}: {word}" for name, word in wrong.items()]
    into.wanted.setdefault(wanted, []).append(policy.name)
    into.seen.setdefault(seen, []).append(policy.name)
    into.findings += [f"{policy.name}: {text}" for text in (*one.told.findings, *one.row.findings)]
    into.tried += len(one.told.words)
    into.seconds = max(into.seconds, one.row.seconds or 0.0)
    into.cpu_s = max(into.cpu_s, one.row.cpu_s or 0.0)
    into.memory = max(into.memory, one.row.memory or 0)
    if into.memory > MOST:
        into.findings.append(f"{policy.name}: the worker grew by {into.memory // MIB} MiB")


def tried(
    plan: Plan, policy: Policy, issuer: Issuer, only: tuple[str, ...] = ()
) -> Iterator[tuple[str, One]]:
    """Every case that is to be tried under a policy.

    Args:
        only: these cases, if there are any.
    """
    folder = plan.folder / policy.name.replace(" ", "-")
    folder.mkdir()
    most = SHORT.get(policy.name, 1)
    if plan.long:
        most = ALL if policy.relay is None or policy.login else FEW[policy.column]
    with _engaged(policy, issuer, folder, WAIT if plan.long else PEERS) as (stand, kind):
        for name, case, wanted in _cases(policy, plan.long):
            variants = chosen(case.variants, plan.long, most)
            if not variants or (only and name not in only):
                continue
            plan.say(f"{policy.name}: {name}")
            told = Told()
            row = stand.measured(name, "told", partial(_told, kind, case, variants, told))
            yield name, One(wanted=wanted, told=told, row=row)


def _told(kind: Tried, case: Case, variants: dict[str, Make], into: Told) -> str:
    found = kind(case, variants)
    into.words, into.findings = found.words, found.findings
    return "told"


def _cases(policy: Policy, long: bool) -> list[tuple[str, Case, tuple[str, ...]]]:
    table, known = (AUTH, AUTH_CASES) if policy.login else (EXPECTED, CASES)
    cases = [
        (name, known[name], columns[policy.column])
        for name, columns in expected(table).items()
        if policy.column in columns
    ]
    if policy.demand:
        return [(name, case, ("asked",)) for name, case, wanted in cases if wanted == ("clear",)]
    if long:
        return cases
    quick = [case for case in cases if not WAITED.intersection(case[2])]
    return quick if policy.relay is None or policy.login else quick[::3]


@contextmanager
def _engaged(
    policy: Policy, issuer: Issuer, folder: Path, wait: str
) -> Iterator[tuple[Stand, Tried]]:
    """An engine under a policy, and how cases are tried with it."""
    (address,) = loopback_addresses()
    with Network() as network:
        tables = _tables(policy, issuer, folder, network.port)
        tables["timeouts"] = dict.fromkeys(STAGES, wait) | {"quit": "1s"}
        with Engine(network, folder, workers=1, settings=tables) as engine:
            stand = Stand(network=network, engine=engine)
            if policy.relay is None:
                yield stand, Site(stand, policy, issuer, folder).tried
            else:
                network.zone(RELAY, {"A": [address]})
                yield stand, Smart(stand, policy, issuer, folder, address).tried
            left = stand.let_go()
            assert left.clean, left
            assert engine.stop() == 0
            assert engine.ms.check() == []


def _tables(
    policy: Policy, issuer: Issuer, folder: Path, port: int
) -> dict[str, dict[str, object]]:
    pause = "1h" if policy.relay is None else "500ms"  # a relay is well again behind each case
    tables: dict[str, dict[str, object]] = {
        "tls": dict(policy.tls),
        "delivery": {"max_connections": 400},
        "sites": {"idle": "0s", "suspend": [pause]},
        "retry": {"schedule": [pause]},
    }
    if policy.tls.get("verify"):
        tables["tls"]["ca_file"] = str(issuer.roots)
    if policy.relay is not None:
        tables["delivery"]["mode"] = "relay"
        tables["relay"] = {"hosts": [f"{RELAY}:{port}"], **policy.relay}
        if policy.login:
            tables["relay"]["username"] = "joe"
            password = folder / "password"
            password.write_text("open sesame\n")
            password.chmod(0o600)
            tables["relay"]["password_file"] = str(password)
    return tables
