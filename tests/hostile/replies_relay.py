"""A relay that wants credentials, and lies about how: mechanisms, prompts, verdicts.

Contract. Whatever it does before MAIL is host trouble: the site is left alone, no recipient is
charged. One relay, another behaviour for each case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.hostile.rawhost import OFFER, Act, Connection, Manners, RawHost, drip, flood, silence
from tests.hostile.replies_stage import DELIVERED, MOST_CPU_S, MOST_MEMORY, together
from tests.hostile.replies_told import NASTY, look
from tests.hostile.stand import Stand
from tests.hostile.table import MIB, Row
from tests.support.engine import DEADLINE_S, Tables
from tests.support.sockets import eventually, loopback_addresses
from tests.support.trial import Plan

REMOTE, LOCAL = "deferred remote, 0 charged", "deferred local, 0 charged"
ADDRESS = loopback_addresses()[0]
WANTED = "credentials refused or not understood: host trouble, uncharged"


SLOW = frozenset({"one octet now and then", "1 GB in lines", "an empty challenge, then nonsense"})


def settings(folder: Path, port: int, base: Tables) -> Tables:
    """Those of an engine whose mail all goes to the relay."""
    secret = folder / "password"
    secret.write_text("open sesame\n")
    secret.chmod(0o600)
    relay = {"hosts": [f"{ADDRESS}:{port}"], "username": "joe", "password_file": str(secret)}
    return {**base, "delivery": {"mode": "relay"}, "relay": relay}


async def _asks_for_ever(connection: Connection) -> None:
    """A prompt for each answer."""
    for _ in range(1000):
        await connection.write(b"334 VXNlcm5hbWU6\r\n")
        if not await connection.reader.readline():
            return


def cases() -> Mapping[str, tuple[str, Act, str]]:
    """Name: the mechanisms, what is said to AUTH, what is wanted."""
    welcome, many = b"235 2.7.0 welcome\r\n", " ".join(f"X{n}" for n in range(500))
    return {
        "PLAIN, taken": ("PLAIN", welcome, DELIVERED),
        "PLAIN among 500": (f"{many} PLAIN", welcome, DELIVERED),
        "500 unknown ones": (many, welcome, LOCAL),
        "none": ("", welcome, LOCAL),
        "a name of 3,000 octets": ("M" * 3000, welcome, LOCAL),
        "ESC and controls in names": ("\x1b[2J\x07 \u202ePLAIN", welcome, LOCAL),
        "a challenge that is no base64": ("CRAM-MD5", b"334 !!!\r\n", LOCAL),
        "a challenge in UTF-8 garbage": ("CRAM-MD5", b"334 \xff\xfe\xc3\x28\r\n", REMOTE),
        "an empty challenge, then nonsense": ("CRAM-MD5", b"334 \r\nwhat?\r\n", LOCAL),
        "a prompt for ever": ("LOGIN", _asks_for_ever, REMOTE),
        "334 to PLAIN": ("PLAIN", b"334 \r\n", REMOTE),
        "250 in place of 235": ("PLAIN", b"250 ok\r\n", REMOTE),
        "354 in place of 235": ("PLAIN", b"354 go on\r\n", REMOTE),
        "no reply": ("PLAIN", silence, REMOTE),
        "one octet now and then": ("PLAIN", drip(b"235 " + b"a" * 3000, 0.05), REMOTE),
        "1 GB in one line": ("PLAIN", flood(b"x" * 65536, 1 << 30, head=b"235 "), REMOTE),
        "1 GB in lines": ("PLAIN", flood(b"235-x\r\n" * 9000, 1 << 30), REMOTE),
        "mixed codes": ("PLAIN", b"535-no\r\n235 yes\r\n", REMOTE),
        "refused in nasty words": ("PLAIN", b"535 5.7.8 " + NASTY + b"\r\n", LOCAL),
        "the password in the refusal": ("PLAIN", b"535 5.7.8 open sesame is wrong\r\n", LOCAL),
    }


def rows(stand: Stand, plan: Plan) -> Iterator[Row]:
    """One row of all."""
    host = RawHost(ADDRESS, stand.network.port, Manners())
    stand.network.serve(host)
    tried: list[Row] = []
    for name, (mechanisms, said, wanted) in cases().items():
        if not plan.long and name in SLOW:
            continue
        tried.append(_one(stand, host, name, (mechanisms, said), wanted))
    yield together("AUTH of a relay", WANTED, tried)
    wrong = [
        text
        for line in stand.engine.log_file.read_text("utf-8", "surrogateescape").split("\n")
        if (text := look(line)) is not None or (text := _secret(line)) is not None
    ]
    yield Row(
        case="... in the log's lines", wanted="no control character, no password",
        seen="no control character, no password", findings=tuple(wrong),
    )  # fmt: skip


def _secret(line: str) -> str | None:
    return "the password is told" if "open sesame" in line else None


def _one(stand: Stand, host: RawHost, name: str, how: tuple[str, Act], wanted: str) -> Row:
    mechanisms, said = how
    engine = stand.engine
    sent: list[str] = []

    def change() -> None:
        offer = (*OFFER, f"AUTH {mechanisms}") if mechanisms else OFFER
        host.manners = Manners(says={"auth": said}, offer=offer)

    stand.network.on_loop(change)

    def tried() -> str:
        before = host.connections
        address = f"a@{stand.network.new_domain()}"
        engine.tamper("UPDATE site SET suspended_until_ms = 0")
        id = engine.send(address)
        sent.append(id)
        eventually(lambda: host.connections > before, DEADLINE_S, what=f"a session: {name}")
        sql = (
            "SELECT 1 FROM recipients WHERE message_id = ? AND status NOT IN ('queued', 'sending')"
        )
        engine.until(sql, id)
        return stand.outcome(id, address)

    row = stand.measured(name, wanted, tried)
    for id in sent:
        engine.ms.cancel(id)  # it is not to be tried with the next
    findings = list(row.findings)
    if (row.memory or 0) > MOST_MEMORY:
        findings.append(f"{name}: {(row.memory or 0) / MIB:.1f} MiB of memory")
    if (row.cpu_s or 0.0) > MOST_CPU_S:
        findings.append(f"{name}: {row.cpu_s:.1f} s of processor")
    return Row(
        case=name, wanted=wanted, seen=row.seen, seconds=row.seconds, cpu_s=row.cpu_s,
        memory=row.memory, findings=tuple(findings),
    )  # fmt: skip
