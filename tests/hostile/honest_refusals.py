"""What honest servers refuse: recipients, contents, sizes; each told at once, none in doubt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from mailstrom.errors import InvalidMessage
from tests.hostile.honest_letters import NUL, exceeding, to
from tests.hostile.honest_peers import LIMIT, UNKNOWN, House
from tests.hostile.honest_sending import outcomes, send
from tests.hostile.stand import Stand
from tests.hostile.table import Row

OTHERS, REFUSED = "one", UNKNOWN


def refused_at_send(stand: Stand) -> Row:
    """A NUL never gets as far as a server."""

    def tried() -> str:
        try:
            stand.engine.ms.send(NUL, recipients=["one@nul.test"])
        except InvalidMessage as error:
            return f"refused at send: {error.rule}"
        return "accepted"

    return stand.measured("none of them: a NUL octet", "refused at send: nul", tried)


def some_refused(stand: Stand, house: House) -> Row:
    """One recipient each is refused for good, for now, and taken."""
    codes = house.refuses
    words = {5: "failed", 4: "deferred"}
    wanted = ", ".join(["one: delivered 250", *(
        f"{name}: {words[code // 100]} {code}" for name, code in codes.items()
    )])  # fmt: skip
    letter = to(house.domain, "refused", "one", *codes)

    def tried() -> str:
        (id,) = send(stand, [letter])
        rows = stand.engine.until(
            "SELECT recipient, verdict, reply_code, in_doubt FROM attempts"
            " WHERE message_id = ? GROUP BY recipient HAVING id = min(id) ORDER BY id", id,
            count=len(letter.recipients),
        )  # fmt: skip
        stand.engine.ms.cancel(id)
        told = {
            row.recipient.partition("@")[0]: f"{row.verdict} {row.reply_code}"
            f"{' in doubt' if row.in_doubt else ''}" for row in rows
        }  # fmt: skip
        return ", ".join(f"{name}: {told[name]}" for name in ("one", *codes))

    return _refusing(stand, house, "some recipients refused", wanted, tried)


def lone_refused(stand: Stand, house: House) -> Row:
    """Messages whose only recipient is unknown, between others: no connection is lost over them."""
    names = ("one", "no", "one", "no0", "no1", "one")
    letters = [to(house.domain, f"lone{n}", name) for n, name in enumerate(names)]
    wanted = "3 delivered, 3 failed bounced"

    def tried() -> str:
        ids = send(stand, letters)
        words: Counter[str] = Counter()
        for id in ids:
            words.update(outcomes(stand, [id]))
        return ", ".join(f"{words[word]} {word}" for word in sorted(words))

    row = _refusing(stand, house, "lone recipients refused between others", wanted, tried)
    return replace(row, tried=len(letters))


def many_refused(stand: Stand, house: House) -> Row:
    """Nine of ten are unknown: those fail and one has it, however often a server loses patience.

    At the first attempt: chasquid closes behind each third error.
    """
    names = [*(f"no{number}" for number in range(REFUSED)), OTHERS]
    letter = to(house.domain, "unknown", *names)

    def tried() -> str:
        (id,) = send(stand, [letter])
        stand.engine.final(id)
        found = stand.engine.rows("SELECT * FROM recipients WHERE message_id = ?", id)
        words = Counter(f"{row.status} {row.reason or ''}".strip() for row in found)
        most = max(row.attempts for row in found)
        if most > 1:
            words[f"at attempt {most}"] += 1
        if any(row.in_doubt for row in stand.engine.attempts(id)):
            words["in doubt"] += 1
        return ", ".join(f"{words[word]} {word}" for word in sorted(words))

    wanted = f"1 delivered, {REFUSED} failed bounced"
    return _refusing(stand, house, f"{REFUSED} of {REFUSED + 1} recipients unknown", wanted, tried)


def too_large(stand: Stand, house: House) -> Row:
    """Over the limit, announced or not: for good, and nothing of it in doubt."""
    letter = exceeding(house.domain, LIMIT)

    def tried() -> str:
        return " / ".join(sorted(outcomes(stand, send(stand, [letter]))))

    return _refusing(stand, house, "larger than its limit", "failed too_large", tried)


def content_refused_for_now(stand: Stand, house: House, sender: str) -> Row:
    """A 4xx behind the content: later, and nothing is in doubt."""
    letter = to(house.domain, "later", "one", sender=sender)

    def tried() -> str:
        (id,) = send(stand, [letter])
        row = stand.engine.until("SELECT * FROM attempts WHERE message_id = ?", id)[0]
        stand.engine.ms.cancel(id)
        return (
            f"{row.verdict} {row.reply_code // 100}xx at {row.stage}"
            f"{', in doubt' if row.in_doubt else ''}"
        )

    return _refusing(stand, house, "content refused for now", "deferred 4xx at dot", tried)


def _refusing(stand: Stand, house: House, case: str, wanted: str, tried: Callable[[], str]) -> Row:
    logged = len(house.log())
    row = stand.measured(f"{house.name}: {case}", wanted, tried)
    complaints = house.complaints(house.log()[logged:], refusing=True)
    return replace(row, findings=(*row.findings, *complaints))
