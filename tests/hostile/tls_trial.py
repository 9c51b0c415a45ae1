"""One case under one policy: hosts, messages, what the views say of them.

Contract. ``Site`` tries a case with MX hosts: for each variant a domain whose only host it is, and
one with a second host that is well; all variants at once. ``Smart`` tries it with a relay, one
variant after the other, and lets the relay be well behind each: what waited must be delivered then.
Both tell the word of ``tls_table.WORDS`` that fits, or the facts where none does, and note as
findings whatever was said in clear, and sessions that the views tell wrongly.

Must not know: which word is wanted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.hostile.stand import Stand
from tests.hostile.tls_cases import EVIL, SLOW, Case
from tests.hostile.tls_certificates import Issuer
from tests.hostile.tls_line import MARK, Act, Host
from tests.hostile.tls_table import WORDS, Facts
from tests.hostile.tls_talk import Make, Setting, secured
from tests.support.engine import DEADLINE_S
from tests.support.sockets import eventually, loopback_addresses

Verdict = tuple[str, str, str, int]
RELAY = "relay.test"
LEAK = frozenset({"MAIL", "RCPT", "DATA", "BDAT", "AUTH", "content"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the configuration demands.

    Args:
        name: in a word or two.
        column: of the table.
        tls: the table [tls].
        relay: the table [relay], without its hosts; None: to MX hosts.
        login: whether it is about credentials, and nothing else.
        demand: each message is sent with ``require_tls``; about that, and nothing else.
    """

    name: str
    column: str
    tls: dict[str, object] = field(default_factory=dict)
    relay: dict[str, object] | None = None
    login: bool = False
    demand: bool = False

    @property
    def wanted(self) -> str:
        """The word of ``sessions.tls_wanted``."""
        base = {"none": "none", "may": "opportunistic", "must": "required", "sure": "required"}
        word = base.get(self.column, "implicit")
        return f"{word}+verify" if self.column in ("sure", "implicit+") else word

    @property
    def reached(self) -> tuple[str, int]:
        """``sessions.tls_reached`` and ``tls_verified`` where TLS was reached."""
        return ("verified", 1) if self.column in ("sure", "implicit+") else ("encrypted", 0)


@dataclass(slots=True, kw_only=True)
class Told:
    """What came of one case.

    Args:
        words: by variant.
        findings: what else was wrong.
    """

    words: dict[str, str] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)


class Trial:
    """What both kinds share.

    Args:
        stand: its engine runs under the policy.
        issuer: trusted by the engine.
        folder: for key logs.
    """

    def __init__(self, stand: Stand, policy: Policy, issuer: Issuer, folder: Path) -> None:
        self.stand, self.policy, self.issuer, self.folder = stand, policy, issuer, folder
        self.engine = stand.engine

    def setting(self, name: str) -> Setting:
        return Setting(
            name=name,
            implicit=self.policy.column.startswith("implicit"),
            issuer=self.issuer,
            folder=self.folder,
        )

    def host(self, address: str, act: Act, window: int | None = None) -> Host:
        return Host(address, self.stand.network.port, act, window=window)

    def send(self, address: str, text: str) -> str:
        demand = self.policy.demand
        return self.engine.send(address, text=text, sender="a@sender.test", require_tls=demand)

    def verdict(self, id: str) -> Verdict:
        """The first verdict on a message: status, reason, doubt, attempts."""
        (row,) = self.engine.until(
            "SELECT status, coalesce(reason, ''), iif(in_doubt, 'in doubt', ''), attempts"
            " FROM recipients WHERE message_id = ? AND status NOT IN ('queued', 'sending')",
            id,
        )
        return row[0], row[1], row[2], row[3]

    def sessions(self, host: Host, least: int = 1) -> list[tuple[object, ...]]:
        """All sessions with a host, once they ended."""

        def ended() -> list[tuple[object, ...]] | None:
            rows = self.engine.rows(
                "SELECT tls_wanted, tls_reached, tls_verified, end_cause, ended_ms, ehlo, tls_peer,"
                " tls_version FROM sessions WHERE address = ? ORDER BY started_ms, id",
                host.address,
            )
            over = len(rows) >= least and all(row.ended_ms is not None for row in rows)
            return rows if over else None

        return eventually(ended, DEADLINE_S, what=f"the end of the sessions with {host.address}")

    def facts(self, verdict: Verdict, domain: str, session: tuple[object, ...]) -> Facts:
        """What the views say of a domain's site besides; which host was asked is not told there."""
        waits = self.engine.rows(
            "SELECT d.reason FROM destinations AS d JOIN domains AS m ON m.site = d.site"
            " WHERE m.name = ? AND d.suspended_until_ms IS NOT NULL",
            domain,
        )
        return Facts(*verdict, waits[0].reason if waits else "", "", *_ended(session))

    def wrong(self, session: tuple[object, ...]) -> list[str]:
        """What a session's row tells that cannot be."""
        wanted, reached, verified, end, _, ehlo, peer, version = session
        found = []
        if wanted != self.policy.wanted:
            found.append(f"tls_wanted is {wanted}")
        if (reached, verified) not in (("none", 0), self.policy.reached):
            found.append(f"tls_reached is {reached}, tls_verified {verified}")
        if (reached == "none") is not (version is None) and not str(end).startswith("greeting"):
            found.append(f"tls_reached is {reached}, tls_version {version}")
        if reached != "none" and EVIL in str(ehlo):
            found.append("the EHLO reply from before TLS is told of a session under TLS")
        if peer is not None and not str(peer).isprintable():
            found.append("tls_peer has control characters")
        return found


def _ended(session: tuple[object, ...]) -> tuple[str, str]:
    """Whether a session reached TLS, and how it ended."""
    return "no TLS" if session[1] == "none" else "TLS", str(session[3]).partition(":")[0]


def word_of(facts: Facts, *, spared: bool = False) -> str:
    """The word that fits, or the facts.

    Args:
        spared: a next host was there and was not asked, so no word fits by which it is.
    """
    for word, wanted in WORDS.items():
        if spared and wanted.next_host == "next":
            continue
        if facts._replace(end=facts.end if wanted.end else None) == wanted._replace(next_host=""):
            return word
    return ", ".join(str(fact) or "-" for fact in facts)


def passed_on(facts: Facts, word: str) -> str:
    """The word for a host behind which the next one was asked.

    Args:
        facts: of the first host; the message went on, so only how its session ended counts, and
            ``charged``: the attempts that name it.
        word: of its twin that is the only host: where that waited, it was for the same.
    """
    alike = [
        name
        for name, wanted in WORDS.items()
        if wanted.next_host == "next"
        and (wanted.charged, wanted.tls) == (facts.charged, facts.tls)
        and wanted.end in (None, facts.end)
    ]
    return word if word in alike else (alike or ["passed on"])[0]


def spoken(host: Host, clear: bool) -> list[str]:
    """What a host heard in clear, though the mail did not go in clear; and its own faults."""
    found = [f"the host itself: {error!r}" for error in host.faults]
    if not clear and host.clear & LEAK:
        found.append(f"{', '.join(sorted(host.clear))} in clear")
    return found


class Site(Trial):
    """With MX hosts."""

    def tried(self, case: Case, variants: dict[str, Make]) -> Told:
        """Try these variants of a case."""
        told = Told()
        hosts: list[Host] = []
        try:
            self._tried(case, variants, told, hosts)
        finally:
            for host in hosts:
                host.stop()
        return told

    def _tried(self, case: Case, variants: dict[str, Make], told: Told, hosts: list[Host]) -> None:
        network = self.stand.network
        tries = []
        for name, make in variants.items():
            pair = []
            for spare in (False, True):
                domain = network.new_domain()
                addresses = loopback_addresses(1 + spare)
                bad = self.host(addresses[0], make(self.setting(f"mx1.{domain}")), case.window)
                hosts.append(bad)
                if spare:
                    hosts.append(self.host(addresses[1], secured()(self.setting(f"mx2.{domain}"))))
                network.route(domain, addresses)
                pair.append((domain, bad, hosts[-1]))
            tries.append((name, pair))
        ids: dict[str, str] = {}
        for _ in range(case.turns):
            for _, pair in tries:
                for domain, _, _ in pair:
                    ids[domain] = self.send(f"a@{domain}", f"{MARK}\n{case.text}")
            verdicts = {domain: self.verdict(id) for domain, id in ids.items()}
        for name, ((one, only, _), (two, first, second)) in tries:
            sessions = self.sessions(only, case.turns)
            self.sessions(first)
            passed = bool(second.connections)
            found = self.facts(verdicts[one], one, sessions[-1])
            told.words[name] = word = word_of(found)
            if passed:
                (spare,) = self.engine.rows(
                    "SELECT status, in_doubt FROM recipients WHERE message_id = ?", ids[two]
                )
                if (spare.status, spare.in_doubt) != ("delivered", 0):
                    told.findings.append(f"{name}: {spare.status} though the next host is well")
            also = self.facts(verdicts[two], two, self.sessions(first)[-1])
            if passed:
                charged = self.engine.rows(
                    "SELECT 1 FROM attempts WHERE message_id = ? AND address = ?",
                    ids[two], first.address,
                )  # fmt: skip
                word = passed_on(also._replace(charged=len(charged)), word)
            else:
                word = word_of(also, spared=True)
            told.words[f"{name}, with a next host"] = word
            wrong = [text for row in sessions for text in self.wrong(row)]
            for host in (only, first, second):
                wrong += spoken(host, told.words[name] == "clear")
            told.findings += [f"{name}: {text}" for text in dict.fromkeys(wrong)]


class Smart(Trial):
    """With a relay, which is one host under one name.

    Args:
        address: the relay's.
    """

    def __init__(
        self, stand: Stand, policy: Policy, issuer: Issuer, folder: Path, address: str
    ) -> None:
        super().__init__(stand, policy, issuer, folder)
        self.address = address
        offers = ("PIPELINING", "AUTH PLAIN LOGIN")
        self._well = secured(outside=("STARTTLS", *offers), offers=offers)(self.setting(RELAY))
        self._numbers = itertools.count(1)

    def tried(self, case: Case, variants: dict[str, Make]) -> Told:
        """Try these variants of a case, each followed by a relay that is well."""
        told = Told()
        for name, make in variants.items():
            self._tried(name, make, case, told)
        return told

    def _tried(self, name: str, make: Make, case: Case, told: Told) -> None:
        host = self.host(self.address, make(self.setting(RELAY)), case.window)
        before = len(self._rows())
        try:
            for _ in range(case.turns):
                id = self.send(f"a@d{next(self._numbers)}.test", f"{MARK}\n{case.text}")
                verdict = self.verdict(id)
            rows = eventually(
                lambda: len(found := self._rows()) > before and found[before][4] and found,
                DEADLINE_S,
                what="the end of the session",
            )
            session = rows[-1] if case.turns > 1 else rows[before]
            told.words[name] = self._seen(verdict, session)
            wrong = [text for row in rows[before:] for text in self.wrong(row)]
            wrong += spoken(host, told.words[name] == "clear")
        finally:
            host.stop()
        good = self.host(self.address, self._well)
        try:
            final = ("delivered", "failed")
            eventually(
                lambda: (
                    self.engine.rows("SELECT status FROM recipients WHERE message_id = ?", id)[
                        0
                    ].status
                    in final
                ),
                DEADLINE_S,
                what="delivery by a relay that is well again",
            )
            eventually(
                lambda: not self.engine.rows("SELECT 1 FROM sessions WHERE ended_ms IS NULL"),
                DEADLINE_S,
                what="the end of all sessions",
            )
            wrong += spoken(good, self.policy.column == "none")
        finally:
            good.stop()
        told.findings += [f"{name}: {text}" for text in dict.fromkeys(wrong)]

    def _rows(self) -> list[tuple[object, ...]]:
        return self.engine.rows(
            "SELECT tls_wanted, tls_reached, tls_verified, end_cause, ended_ms, ehlo, tls_peer,"
            " tls_version FROM sessions WHERE address = ? ORDER BY started_ms, id",
            self.address,
        )

    def _seen(self, verdict: Verdict, session: tuple[object, ...]) -> str:
        waits = self.engine.rows(
            "SELECT reason FROM destinations WHERE suspended_until_ms IS NOT NULL"
        )
        return word_of(Facts(*verdict, waits[0].reason if waits else "", "", *_ended(session)))


def chosen(variants: Mapping[str, Make], long: bool, most: int) -> dict[str, Make]:
    """At most so many of them, evenly; in the short form none that waits."""
    names = [name for name in variants if long or not name.startswith(SLOW)]
    step = max(1, -(-len(names) // most))
    return {name: variants[name] for name in names[::step]}


Tried = Callable[[Case, dict[str, Make]], Told]
