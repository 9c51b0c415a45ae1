"""Many messages over few connections, some refused at every stage: nobody gets another's mail.

Contract. Each message names its recipients after itself (``m7.0@``, ``m7.1@``) and carries its
number in its content, so a host's own record tells a recipient of one message in another's
transaction, and content under another's envelope. A few hosts, each with ten connections at most;
what they refuse by name they refuse for good.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mailstrom.testing.records import Dot
from mailstrom.testing.script import Act, Per, Rule, Script
from mailstrom.testing.smtp import SMTPServer
from tests.hostile.servers_judge import Trial, family
from tests.hostile.servers_trains import OFFERS
from tests.hostile.stand import Stand, standing
from tests.hostile.table import Row
from tests.support.checker import content_digest
from tests.support.engine import Tables, mail
from tests.support.sockets import eventually
from tests.support.trial import Plan

SETTINGS: Tables = {"sites": {"connections": 10, "idle": "2s", "suspend": ["1s"]}}
LIMITED = 100
PORTION = 2_000
PATIENCE_S = 400.0
RULES = (
    Rule(stage="mail", code=550, sender="nomail@*"),
    Rule(stage="rcpt", code=550, enhanced="5.1.1", recipient="norcpt*"),
    Rule(stage="dot", code=554, enhanced="5.7.1", recipient="nodot*"),
    # now and then a session ends, by the server's words or without
    Rule(stage="mail", code=421, close=True, per=Per.CONNECTION, first=97),
)
KINDS = ("yes", "yes", "yes", "norcpt", "yes", "nodot", "yes", "nomail", "half")
"""In turn; of ``half`` one recipient is refused."""


def run(plan: Plan) -> Iterator[Row]:
    """Messages over reused connections, then a host that limits connections."""
    folder = plan.folder / "reuse"
    folder.mkdir()
    count = plan.pick(900, 40_000)
    with standing(folder, SETTINGS) as stand:
        yield family(
            stand, "refuses some messages at MAIL, RCPT and dot, and keeps the connections",
            "each recipient by his own message's verdict; no recipient of one message in another",
            lambda: mixed(stand, count),
        )  # fmt: skip
        yield family(
            stand, "takes two connections, 421 to a third",
            "all delivered once; two are kept, the site is not suspended",
            lambda: _crowded(stand),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One that was sent.

    Args:
        name: of its recipients.
        digest: of its content.
        domain: of its host.
    """

    name: str
    digest: str
    domain: str

    @property
    def kind(self) -> str:
        """What the host does with it."""
        return self.name.partition("-")[0]

    @property
    def addresses(self) -> tuple[str, str]:
        """Its recipients."""
        other = "norcpt" if self.kind == "half" else self.name
        return f"{self.name}.0@{self.domain}", f"{other}-{self.name}.1@{self.domain}"

    def wanted(self, address: str) -> str:
        """The status that a recipient ends in."""
        refused = self.kind in ("nomail", "norcpt", "nodot") or address.startswith("norcpt")
        return "failed" if refused else "delivered"


def mixed(stand: Stand, count: int) -> Iterator[Trial]:
    """Send so many over the hosts of three domains; a trial a message."""
    placed = {}
    for offer in OFFERS.values():
        script = replace(offer, rules=RULES, magic=False)
        domain, (host,) = stand.network.site(script)
        placed[domain] = host
    sent = [
        message
        for start in range(0, count, PORTION)
        for message in _portion(stand, list(placed), start, min(PORTION, count - start))
    ]
    eventually(lambda: _idle(stand), PATIENCE_S, what="the end of all", interval=0.2)
    found = {}
    for domain in placed:
        for row in stand.engine.ms.query(
            "SELECT address, status FROM recipients WHERE domain = ?", (domain,)
        ):
            found[row.address] = row.status
    dots: dict[str, list[Dot]] = {}
    for host in placed.values():
        for dot in host.dots:
            dots.setdefault(dot.digest, []).append(dot)
    for message in sent:
        wanted = {address: message.wanted(address) for address in message.addresses}
        seen = {address: found[address] for address in message.addresses}
        strange = _strange(message, dots.get(message.digest, []), wanted)
        yield Trial(name=message.name, wanted=(wanted, ""), seen=(seen, strange))
    for domain, host in placed.items():
        yield Trial(name=domain, wanted="", seen=unsound(host))


def _portion(stand: Stand, domains: list[str], start: int, count: int) -> Iterator[Message]:
    made = []
    for number in range(start, start + count):
        name = f"{KINDS[number % len(KINDS)]}-{number}"
        message = Message(name=name, digest="", domain=domains[number % len(domains)])
        sender = "nomail@sender.test" if message.kind == "nomail" else "a@sender.test"
        text = f"For {name} alone.\n"
        made.append((message, mail(*message.addresses, sender=sender, text=text)))
    ids = stand.engine.ms.send_many(one for _, one in made)
    for (message, _), id in zip(made, ids, strict=True):
        yield replace(message, digest=content_digest(stand.engine.ms.raw(id)))


def _idle(stand: Stand) -> bool:
    return not stand.engine.rows("SELECT 1 FROM recipients WHERE finished_ms IS NULL LIMIT 1")


def _strange(message: Message, dots: list[Dot], wanted: dict[str, str]) -> str:
    """What the hosts tell of a message's content, if it is not as it should be."""
    taken = sorted(name for dot in dots if dot.kept for name in dot.recipients)
    due = sorted(address for address, status in wanted.items() if status == "delivered")
    return "" if taken == due else f"taken for {taken}"


def unsound(host: SMTPServer) -> str:
    """A transaction with recipients of more than one message, if the host saw one."""
    for transaction in host.transactions:
        names = {
            name.partition("@")[0].rpartition(".")[0].removeprefix("norcpt-half")
            for name, _ in transaction.recipients
        }
        numbers = {name.rpartition("-")[2] for name in names}
        if len(numbers) > 1:
            return f"recipients of {sorted(numbers)} in one transaction"
    return ""


def _crowded(stand: Stand) -> Iterator[Trial]:
    slow = Rule(stage="rcpt", act=Act.REPLY, delay=0.02, recipient="*")
    domain, (host,) = stand.network.site(Script(rules=(slow,), connection_limit=2))
    stand.engine.ms.send_many(mail(f"u{number}@{domain}") for number in range(LIMITED))
    eventually(lambda: _idle(stand), PATIENCE_S, what="the end of all", interval=0.1)
    statuses = Counter(
        row.status
        for row in stand.engine.rows("SELECT status FROM recipients WHERE domain = ?", domain)
    )
    copies = Counter(address for dot in host.dots for address in dot.recipients)
    (site,) = stand.engine.rows(
        "SELECT lanes_limit, site FROM destinations WHERE site LIKE ?", f"%.{domain}:%"
    )
    suspended = stand.engine.rows(
        "SELECT 1 FROM events WHERE type = 'site.suspended' AND detail LIKE ?",
        f"%{json.dumps(site.site)[1:-1]}%",
    )
    seen = (dict(statuses), max(copies.values()), site.lanes_limit, len(suspended))
    yield Trial(name=domain, wanted=({"delivered": LIMITED}, 1, 2, 0), seen=seen)
