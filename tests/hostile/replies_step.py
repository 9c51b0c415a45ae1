"""Replies out of step: early, late, doubled, missing, exchanged, merged, of a wrong code.

Contract. Two messages to a host, the first to three recipients of whom one is refused, over one
session where it lasts. The host's reply at one place is spoilt. Which exact verdict follows depends
on the place and the way; what is judged is what may never be: *delivered* where the host has no
content for the recipient or refused it, *failed* for a recipient who was never refused, a second
copy without a doubt, a recipient who was left behind. A wrong code for its stage has one outcome.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tests.hostile.rawhost import Act, Manners, RawHost, close, late, silence, then
from tests.hostile.replies_stage import (
    BOUNCED,
    DELIVERED,
    DOUBT,
    HOST,
    LATER,
    MOST_CPU_S,
    MOST_MEMORY,
    Trial,
    judged,
    together,
)
from tests.hostile.replies_words import GOOD, WAYS
from tests.hostile.stand import Stand
from tests.hostile.table import MIB, Row
from tests.support.engine import DEADLINE_S, mail
from tests.support.sockets import eventually, loopback_addresses
from tests.support.trial import Plan

IN_STEP = "nobody gets another's verdict; doubt where there is any"
REFUSED = b"550 5.1.1 no such user\r\n"


def _spoilt(good: bytes) -> Mapping[str, Act]:
    other = {b"2": b"550 5.1.1 nobody\r\n", b"3": b"250 2.0.0 ok\r\n", b"5": b"250 2.1.5 ok\r\n"}
    return {
        "a reply doubled": good * 2,
        "a reply doubled, the second later": then(good, late(good, 0.02)),
        "a reply three times": good * 3,
        "a reply three times, one after the other": then(good, late(good, 0.02), late(good, 0.02)),
        "a reply missing": b"",
        "a reply missing, and silence": silence,
        "a reply late": late(good, 0.3),
        "a 250 too many before a reply": b"250 2.0.0 ok\r\n" + good,
        "a refusal too many before a reply": b"550 5.1.1 nobody\r\n" + good,
        "a refusal too many behind a reply": good + b"550 5.1.1 nobody\r\n",
        "a refusal too many behind a reply, later": then(good, late(b"550 5.1.1 nobody\r\n", 0.02)),
        "a 354 too many behind a reply": good + b"354 go on\r\n",
        "the contrary in the place of a reply": other[good[:1]],
        "421 behind a reply, and a close": then(good + b"421 4.3.2 closing\r\n", close),
    }


def _places(way: str) -> list[tuple[str, bytes]]:
    ends = ("bdat",) if way == "bdat" else ("data", "dot")
    return [
        ("mail", GOOD["mail"]), ("rcpt:a", GOOD["rcpt"]), ("rcpt:no", REFUSED),
        ("rcpt:z", GOOD["rcpt"]), *((stage, GOOD[stage]) for stage in ends),
        ("ehlo", b""), ("greeting", GOOD["greeting"]), ("rset", b"250 2.0.0 ok\r\n"),
    ]  # fmt: skip


def _ehlo(way: str) -> bytes:
    lines = ["mx.test", *WAYS[way]]
    return b"".join(b"250-%b\r\n" % one.encode() for one in lines[:-1]) + b"250 %b\r\n" % (
        lines[-1].encode()
    )


_LATER = "a refusal too many behind a reply, later"
_OWN = {(_LATER, "data"), (_LATER, "mail")}
"""What comes first behind a content is its verdict: to take it all the same is the host's lie. And
what a lone recipient gets is his own, though his MAIL got it behind a consent."""


@dataclass(slots=True, kw_only=True)
class Spoilt:
    """One place, one way, under way.

    Args:
        name: of it.
        host: whose reply is spoilt.
        domain: whose only host that is.
        refusing: a reply of it refuses somebody who was not meant.
        ids: of the messages, in order.
    """

    name: str
    host: RawHost
    domain: str
    refusing: bool
    ids: tuple[str, ...] = ()


def begin(stand: Stand, kind: str, way: str, place: str, good: bytes) -> Spoilt:
    """Start a host."""
    network = stand.network
    domain = network.new_domain()
    says: dict[str, Act] = {"rcpt:no": REFUSED}
    says[place] = _spoilt(good or _ehlo(way))[kind]
    host = RawHost(loopback_addresses()[0], network.port, Manners(says=says, offer=WAYS[way]))
    network.serve(host)
    network.route(domain, [host.address])
    return Spoilt(
        name=f"{kind} at {place}, {way}", host=host, domain=domain,
        refusing=kind in _REFUSING or place == "rcpt:no"
        or (kind.startswith("a refusal too many behind") and place == "data"),  # of the content
    )  # fmt: skip


def spoilt(stand: Stand, kinds: Mapping[str, Sequence[str]]) -> list[Row]:
    """Each kind at each place, in its ways, all at once; figures are those of all."""
    under_way = {
        kind: [
            begin(stand, kind, way, place, good)
            for way in ways for place, good in _places(way) if (kind, place) not in _OWN
        ]
        for kind, ways in kinds.items()
    }  # fmt: skip
    engine = stand.engine
    everything = [one for some in under_way.values() for one in some]

    def tried() -> str:
        # where BDAT is offered, it is known to work behind a first message, unless spoilt
        engine.ms.send_many(
            mail(f"first@{one.domain}") for one in everything if one.name.endswith("bdat")
        )
        for one in everything:
            one.ids = (
                engine.ms.send(mail(*(f"{name}@{one.domain}" for name in ("a", "no", "z")))),
                engine.ms.send(mail(f"b@{one.domain}")),
            )
        sql = "SELECT 1 FROM recipients WHERE domain = ? AND status IN ('queued', 'sending')"
        for one in everything:
            eventually(
                lambda one=one: not engine.rows(sql, one.domain),  # type: ignore[misc]
                DEADLINE_S,
                what=f"outcomes of {one.name}",
            )
        return IN_STEP

    whole = stand.measured("all", IN_STEP, tried)
    dear: list[str] = []
    if (whole.memory or 0) > MOST_MEMORY * len(everything):
        dear.append(f"{(whole.memory or 0) / MIB:.1f} MiB of memory")
    if (whole.cpu_s or 0.0) > MOST_CPU_S * len(everything):
        dear.append(f"{whole.cpu_s:.1f} s of processor")
    rows: list[Row] = []
    for kind, some in under_way.items():
        found = [f"{one.name}: {text}" for one in some if one.ids for text in _judged(stand, one)]
        rows.append(
            replace(
                whole, case=kind, tried=len(some),
                findings=(*whole.findings, *dear, *found),
            )
        )  # fmt: skip
    for one in everything:
        stand.network.on_loop(one.host.over.set)
    return rows


def configured(stand: Stand, plan: Plan, name: str) -> Row:
    """The same, with other settings, as one row.

    With a window of flights a reply that is left out is not always seen (docs/known-issues.md).
    """
    window = "pipeline_depth" in name
    kinds = [kind for kind in _spoilt(b"2") if not (window and kind == "a reply missing")]
    ways = tuple(WAYS) if plan.long else ("bdat",)
    quick = [kind for kind in kinds if kind.startswith(("a reply doubled", "a refusal", "421"))]
    rows = spoilt(stand, dict.fromkeys(kinds if plan.long else quick, ways))
    row = together(f"replies early, doubled, missing, exchanged, with {name}", IN_STEP, rows)
    return replace(row, tried=sum(one.tried or 0 for one in rows))


_REFUSING = frozenset({"a refusal too many before a reply", "the contrary in the place of a reply"})
"""Where a reply in its place refuses somebody: by the order of replies it may be so."""


def _judged(stand: Stand, one: Spoilt) -> Iterator[str]:
    """What may never be."""
    rows = stand.engine.rows("SELECT * FROM recipients WHERE message_id IN (?, ?)", *one.ids)
    for row in rows:
        name = row.address.partition("@")[0]
        taken = [it for it in one.host.contents if not it.refused and name in it.recipients]
        if row.status == "delivered" and not taken:
            yield f"{name} is told delivered, and the host has nothing for it"
        if row.status == "failed" and name != "no" and not one.refusing:
            yield f"{name} is told failed ({row.reply_text}), and was never refused"
        if taken and name != "no" and row.status != "delivered" and not row.in_doubt:
            yield f"{name} is {row.status}, the host may have it, and no doubt is marked"
        if len(taken) > 1 and not stand.engine.rows(
            "SELECT 1 FROM attempts WHERE message_id = ? AND recipient = ? AND in_doubt",
            row.message_id, row.address,
        ):  # fmt: skip
            yield f"{name} had {len(taken)} copies, and no doubt was marked"
    # who is answered twice goes on before its time, and cannot know
    yield from [text for text in one.host.violations if not text.startswith("sent ahead")][:2]


WRONG: Mapping[str, tuple[tuple[str, bytes, str], ...]] = {
    "a consent of another code, 2xx": (
        ("mail", b"220 ok", DELIVERED), ("rcpt", b"251 will forward", DELIVERED),
        ("rcpt", b"220 ok", DELIVERED), ("dot", b"200 ok", DELIVERED),
        ("dot", b"299 ok", DELIVERED),
    ),
    "3xx where none belongs": (
        ("greeting", b"354 go on", HOST), ("ehlo", b"334 ", HOST), ("mail", b"354 go on", LATER),
        ("rcpt", b"334 more", LATER), ("data", b"334 more", LATER), ("dot", b"354 go on", DOUBT),
    ),
    "2xx in place of 354": (("data", b"250 ok", LATER), ("data", b"220 ready", LATER)),
    "another's 2xx before MAIL": (
        ("greeting", b"250 hello", HOST), ("greeting", b"235 hello", HOST),
        ("ehlo", b"220 hi", HOST), ("ehlo", b"221 bye", HOST),
    ),
    "refusals of unknown codes": (
        ("mail", b"499 hm", LATER), ("mail", b"599 no", BOUNCED), ("rcpt", b"400 hm", LATER),
        ("rcpt", b"535 auth", BOUNCED), ("data", b"454 tls", LATER), ("dot", b"530 no", BOUNCED),
        ("dot", b"499 hm", LATER),
    ),
}  # fmt: skip
WRONG_BDAT = (
    ("bdat", b"220 2.0.0 ok", DELIVERED), ("bdat", b"299 2.6.0 ok", DELIVERED),
    ("bdat", b"354 go on", DOUBT), ("bdat", b"334 more", DOUBT),
    ("bdat", b"400 4.3.0 hm", LATER), ("bdat", b"499 4.3.0 hm", LATER),
    ("bdat", b"530 5.7.0 no", BOUNCED), ("bdat", b"599 5.7.1 no", BOUNCED),
    ("mail", b"354 go on", DOUBT), ("rcpt", b"334 more", DOUBT),
)  # fmt: skip
"""Behind a message that proved BDAT: the content left in one flight with its envelope."""


def _says(stage: str, octets: bytes) -> Mapping[str, Act]:
    """This, and what a server says behind a refused MAIL."""
    no = b"503 5.5.1 no MAIL\r\n"
    behind = {"rcpt": no, "data": no} if stage == "mail" and octets[:1] in b"45" else {}
    return {**behind, stage: octets + b"\r\n"}


def rows(stand: Stand, plan: Plan) -> Iterator[Row]:
    """Each kind as a row."""
    ways = tuple(WAYS)
    chosen = {
        kind: ways if plan.long else ways[number % 3 : number % 3 + 1]
        for number, kind in enumerate(_spoilt(b"2"))
    }
    if plan.long:
        for kind, some in chosen.items():
            yield from spoilt(stand, {kind: some})
    else:
        yield from spoilt(stand, chosen)
    for kind, cases in WRONG.items():
        yield judged(stand, kind, "by its first digit, in its place", [
            Trial(
                name=f"{octets.decode()} at {stage}, {way}",
                manners=Manners(says=_says(stage, octets), offer=WAYS[way]),
                wanted=wanted,
            )
            for way in ways[: plan.pick(1, 2)] for stage, octets, wanted in cases
        ])  # fmt: skip
    yield judged(stand, "a wrong code in a flight by BDAT", "by its first digit, in its place", [
        Trial(
            name=f"{octets.decode()} at {stage}, bdat", warm=True, wanted=wanted,
            manners=Manners(says={stage: octets + b"\r\n"}, offer=WAYS["bdat"]),
        )
        for stage, octets, wanted in WRONG_BDAT
    ])  # fmt: skip
    for manners, kind in (
        (Manners(joined=True), "replies merged into one segment"),
        (Manners(split=True), "replies split at each octet"),
    ):
        yield judged(stand, kind, "delivered", [
            Trial(
                name=f"{kind}, {way}",
                manners=Manners(joined=manners.joined, split=manners.split, offer=WAYS[way]),
                wanted=DELIVERED,
            )
            for way in ways
        ])  # fmt: skip
