"""What a damaged spool may bring about, and what it must not: the wire, a salvage, ``store check``.

Contract. Compares what was accepted (``damage_spool.Truth``) with what a run sent, and with what a
salvage made. Two spools have no id, address or content in common, so whatever of another's is
seen is told from our own, and a mixture of both is a finding wherever it stands. What is known and
said in docs/known-issues.md is no finding, and is counted: mail that a damaged route led to a wrong
host, and whole mail of the spool whose -wal lies beside this one.
"""

from __future__ import annotations

from pathlib import Path

from mailstrom.errors import MailstromError, NotASpool
from mailstrom.storage.sqlite.salvage import salvage
from mailstrom.storage.sqlite.salvage_report import Salvaged
from tests.torture.damage_spool import Truth, Wire, client_at

MOST_FINDINGS = 20


def judge(
    wire: Wire,
    truth: Truth,
    foreign: Truth | None,
    path: Path,
    *,
    repeats: bool,
    routes: bool = False,
) -> list[str]:
    """What is wrong with what went on the wire.

    Args:
        foreign: of the spool whose -wal this one has: its mail may be sent whole.
        repeats: an older state may be sent again.
        routes: a route is damaged: mail may go to a wrong host (``misled``).
    """
    found = []
    if wire.crashed is not None:
        found.append(f"crashed without the file's name: {wire.crashed}")
    if wire.refused is not None and str(path) not in wire.refused:
        found.append(f"refused without the file's name: {wire.refused}")
    for one in wire.seen:
        owner = next((t for t in (truth, foreign) if t and one.address in t.by_address), None)
        if owner is None:
            found.append(f"phantom recipient {one.address}")
            continue
        mail = owner.mails[owner.by_address[one.address]]
        said = (one.sender, one.content, one.hold)
        if said != (mail.sender, mail.content, mail.hold) or one.require_tls < mail.require_tls:
            found.append(f"{one.address}: not the sender, bytes or TLS demand that were accepted")
        if one.asked != mail.asked(one.address):
            found.append(f"{one.address}: not what was asked of reports")
        if not repeats and one.address not in truth.waiting:
            found.append(f"{one.address}: was not waiting")
    if not routes:
        found += [f"{address}: went to {host}" for address, host in misled(wire)]
    addresses = [one.address for one in wire.seen]
    if len(set(addresses)) < len(addresses):
        found.append("a recipient was sent to twice in one run")
    return found


def misled(wire: Wire) -> list[tuple[str, str]]:
    """Recipients that were offered to another host than their domain's, and to which."""
    return [
        (one.address, one.host)
        for one in wire.seen
        if one.host != f"mx.{one.address.rpartition('@')[2]}"
    ]


def strangers(wire: Wire, foreign: Truth | None) -> int:
    """How many recipients of another spool were sent to."""
    return 0 if foreign is None else sum(one.address in foreign.by_address for one in wire.seen)


def salvaged(
    path: Path, truth: Truth, foreign: Truth | None, traceless: set[str], *, silent: bool
) -> tuple[list[str], set[str]]:
    """What is wrong with what is salvaged, and the ids that are in it whole.

    Args:
        foreign: of the spool whose -wal this one has: its mail may be salvaged whole, if that is
            said.
        traceless: addresses that nothing undamaged names.
        silent: nothing need be said of those.
    """
    target = path.with_name("salvaged.db")
    try:
        done = salvage(str(path), str(target), truth.now_ms)
    except NotASpool:
        named = set(truth.by_address) - traceless
        return ([f"no spool, it says, of {sorted(named)}"] if named else []), set()
    except MailstromError as error:
        return [f"salvage: {type(error).__name__}: {error}"], set()
    except Exception as error:
        return [f"salvage crashed: {type(error).__name__}: {error}"], set()
    found, kept = audit(target, done, truth, foreign)
    if foreign is not None and kept & foreign.mails.keys() and not done.replaced:
        found.append("another spool's mail is salvaged, and nothing is said of its -wal")
    return found + unnamed(target, done, truth, traceless, silent=silent), kept


def unnamed(
    target: Path, done: Salvaged, truth: Truth, traceless: set[str], *, silent: bool
) -> list[str]:
    """Recipients that were accepted, are not in the salvaged spool, and are not named."""
    client = client_at(target)
    try:
        there = {str(row[0]) for row in client.query("SELECT address FROM recipients", (), 10.0)}
    finally:
        client.close()
    named = {address for one in done.damaged for address in one.recipients}
    missing = set(truth.by_address) - there - named
    found = [f"{address} is neither salvaged nor named" for address in sorted(missing - traceless)]
    if missing & traceless and not silent and done.sound:
        found.append(f"nothing is said of {sorted(missing & traceless)}, which are lost")
    return found[:MOST_FINDINGS]


def audit(
    target: Path, done: Salvaged, truth: Truth, foreign: Truth | None
) -> tuple[list[str], set[str]]:
    """Judge a salvaged spool; the ids that are in it whole."""
    found: list[str] = []
    client = client_at(target)
    try:
        found += [f"store check of the salvaged: {text}" for text in client.check()]
        if not client.stats(truth.now_ms).copied:
            found.append("the salvaged spool is not marked as a copy")
        lost = {one.id for one in done.damaged}
        rows = client.query("SELECT message_id, address FROM recipients", (), 10.0)
        listed: dict[str, set[str]] = {}
        for id, address in rows:
            listed.setdefault(str(id), set()).add(str(address))
        late = client.query(
            "SELECT r.address, r.next_attempt_ms FROM recipients r JOIN messages m"
            " ON m.id = r.message_id WHERE r.next_attempt_ms >= m.expires_ms"
            " AND m.expires_ms > ?",
            (truth.now_ms,),
            10.0,
        )
        found += [f"{address} waits until {due}, past its expiry" for address, due in late]
        kept = set()
        for id, sender in client.query("SELECT id, sender FROM messages", (), 10.0):
            owner = next((t for t in (truth, foreign) if t and str(id) in t.mails), None)
            mail = owner.mails[str(id)] if owner else None
            own = listed.get(str(id), set())
            if mail is None or mail.sender != sender or not own <= set(mail.recipients):
                found.append(f"salvaged {id} was never accepted so")
                continue
            try:
                content = client.content(str(id))
            except MailstromError as error:
                found.append(f"salvaged {id} cannot be read: {error}")
                continue
            if content is None and id in lost:
                continue
            if content != mail.content:
                found.append(f"salvaged {id} has other bytes than were accepted")
            elif own == set(mail.recipients):
                kept.add(str(id))
    finally:
        client.close()
    return found[:MOST_FINDINGS], kept


def told(path: Path) -> bool:
    """Whether ``store check`` sees that something is wrong."""
    client = client_at(path)
    try:
        return bool(client.check())
    except MailstromError:
        return True
    finally:
        client.close()
