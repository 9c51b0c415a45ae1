"""What this machine does not give: descriptors, memory, room in a pipe; and 10,000 open sockets.

Contract. Each row has an engine of its own, whose worker pays. ``end`` tells what became of the
mail: all of it, by the spool and by the hosts, nothing twice, and that the spool is sound and the
engine ends by TERM. Where a worker is to wait for what it lacks, more than half a processor
meanwhile is a finding.
"""

from __future__ import annotations

import hashlib
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mailstrom.testing.script import Script
from mailstrom.testing.smtp import SMTPServer
from tests.hostile.limits_engine import Narrow, address_space, first_free, limit
from tests.hostile.limits_logs import logs
from tests.hostile.meter import Meter
from tests.hostile.neighbours_hosts import Hosts
from tests.hostile.stand import Stand
from tests.hostile.table import MIB, Row
from tests.support.engine import Engine, Tables, mail
from tests.support.network import Network, dots
from tests.support.sockets import eventually, loopback_addresses
from tests.support.trial import Plan

WAIT_S = 600.0
BUSY = 0.5
LOOK_S = 3.0
DELIVERED = "all delivered once"
SETTINGS: Tables = {"delivery": {"drain_timeout": "2s"}, "sites": {"suspend": ["2s"]}}


def run(plan: Plan) -> Iterator[Row]:
    """Descriptors, memory, sockets, logs."""
    yield few_files(plan, 64, plan.pick(10, 50), plan.pick(14, 60))
    if plan.long:
        yield few_files(plan, 64, 300, 0)
        yield few_files(plan, 128, 300, 0)
    yield no_files(plan)
    yield no_files(plan, "mailhost")  # EHLO says our address: that is asked for by a descriptor
    yield large(plan, plan.pick(3, 40))
    yield many_recipients(plan, plan.pick(3_000, 100_000))
    yield sockets(plan, plan.pick(400, 10_000))
    for kind in ("never answers the final dot", "never answers MAIL, with CHUNKING offered"):
        yield laden(plan, kind, plan.pick(300, 1_500))
    yield from logs(plan)


def end(engine: Engine, hosts: Sequence[SMTPServer], ids: Sequence[str]) -> str:
    """Wait until the mail is final; what came of it, by both sides."""

    def waiting() -> int:
        return sum(not one.completed for one in engine.ms.statuses(ids).values())

    eventually(lambda: waiting() == 0, WAIT_S, what="the end of all mail", interval=0.05)
    found = engine.ms.statuses(ids)
    wrong = [str(one.status) for one in found.values() if not one.succeeded]
    if wrong or len(found) != len(ids):
        return f"{len(ids) - len(found)} unknown, {len(wrong)} {wrong[:1]}"
    wanted = sum(len(one.recipients) for one in found.values())
    came = [
        (dot.message_id, address) for dot in dots(hosts) if dot.kept for address in dot.recipients
    ]
    if len(came) != len(set(came)) or len(came) < wanted:
        return f"{len(came)} came, {len(set(came))} of them different, of {wanted}"
    charged = engine.rows("SELECT count(*) AS n FROM recipients WHERE attempts > 1")[0].n
    return DELIVERED if not charged else f"{DELIVERED}, {charged} charged for a failure"


def over(engine: Engine, said: str) -> str:
    """End the engine and look at the spool."""
    code = engine.stop()
    sound = engine.ms.check() == []
    return said + (", spool sound" if sound else ", spool damaged") + f", exit {code}"


def tried(
    engine: Engine, network: Network, case: str, wanted: str, story: Callable[[], str]
) -> Row:
    """A row of an engine of its own, which is ended by the story."""
    stand = Stand(network=network, engine=engine)
    said = ""

    def inner() -> str:
        nonlocal said
        said = story()
        return said

    row = stand.measured(case, said, inner)
    return Row(
        case=case, wanted=f"{wanted}, spool sound, exit 0",
        seen=over(engine, row.seen), tried=1, seconds=row.seconds, cpu_s=row.cpu_s,
        memory=row.memory, findings=row.findings,
    )  # fmt: skip


def busy(pid: int) -> str:
    """Whether a process that can do nothing spends its time doing it."""
    meter = Meter(pid)
    time.sleep(LOOK_S)  # what is measured is what it spends in that time
    share = meter.cpu_s / meter.seconds
    return "" if share <= BUSY else f", {share:.0%} of a processor busy"


def few_files(plan: Plan, files: int, sites: int, hanging: int) -> Row:
    """Many sites, and descriptors for few of them at a time."""
    folder = _folder(plan, f"files-{files}-{hanging}")
    case = f"{files} descriptors for {sites} sites"
    if hanging:
        case += f", behind {hanging} that never greet"
    with Network() as network:
        good = [network.site(Script()) for _ in range(sites)]
        (address,) = loopback_addresses()
        engine = Narrow(network, folder, workers=1, settings=SETTINGS)
        engine.files = files
        with Hosts("never greets", network.port, [address]) as hosts, engine:

            def story() -> str:
                if hanging:
                    names = [network.new_domain() for _ in range(hanging)]
                    for name in names:
                        network.route(name, [address])
                    list(engine.ms.send_many(mail(f"a@{name}") for name in names))
                    eventually(lambda: hosts.held >= 10, WAIT_S, what="ten that hang")
                ids = list(
                    engine.ms.send_many(
                        mail(f"u{n}@{domain}") for n in range(2) for domain, _ in good
                    )
                )
                return end(engine, [host for _, servers in good for host in servers], ids)

            return tried(engine, network, case, DELIVERED, story)


def no_files(plan: Plan, hostname: str = "sender.test") -> Row:
    """Every descriptor is taken while the engine works, then some are free again."""
    folder = _folder(plan, f"no-files-{hostname}")
    named = "." in hostname
    settings: Tables = {**SETTINGS, "": {"hostname": hostname}}
    with Network() as network:
        good = [network.site(Script()) for _ in range(20)]
        with Engine(network, folder, workers=1, settings=settings) as engine:

            def story() -> str:
                first = list(engine.ms.send_many(mail(f"a@{domain}") for domain, _ in good))
                hosts = [host for _, servers in good for host in servers]
                end(engine, hosts, first)
                eventually(lambda: not any(h.open for h in hosts), WAIT_S, what="closed sessions")
                (pid,) = engine.live()
                before = limit(pid, resource.RLIMIT_NOFILE, first_free(pid))
                ids = list(engine.ms.send_many(mail(f"b@{domain}") for domain, _ in good))
                engine.until("SELECT 1 FROM sessions WHERE end_cause LIKE '%Too many open files%'")
                idle = busy(pid)
                waits = sum(not one.completed for one in engine.ms.statuses(ids).values())
                limit(pid, resource.RLIMIT_NOFILE, before)
                said = "waits" if waits else "did not wait"
                told = engine.log("engine.failed", where="connect")
                said += " and tells why" if told else " and does not tell why"
                return f"{said}{idle}, then {end(engine, hosts, [*first, *ids])}"

            case = "no descriptor is left for connections to 20 sites, then some are"
            case += "" if named else "; our hostname is no FQDN"
            return tried(engine, network, case, f"waits and tells why, then {DELIVERED}", story)


def large(plan: Plan, count: int) -> Row:
    """Messages of 25 MB, and 96 MiB of addresses for all of them."""
    folder = _folder(plan, "large")
    line = b"x" * 76 + b"\r\n"
    head = b"From: a@sender.test\r\nTo: u@large.test\r\nSubject: %d\r\n\r\n"
    with Network() as network:
        domain, hosts = network.site(Script())
        with Engine(network, folder, workers=1, settings=SETTINGS) as engine:

            def story() -> str:
                first = engine.send(f"a@{domain}")
                end(engine, hosts, [first])
                (pid,) = engine.live()
                limit(pid, resource.RLIMIT_AS, address_space(pid) + 96 * MIB)
                ids, digests = [first], []
                for number in range(count):
                    content = head % number + line * (25_000_000 // len(line))
                    ids.append(
                        engine.ms.send(content, sender="a@sender.test", recipients=[f"u@{domain}"])
                    )
                    digests.append(hashlib.sha256(engine.ms.raw(ids[-1])).hexdigest())
                said = end(engine, hosts, ids)
                equal = set(digests) <= {dot.digest for dot in dots(hosts)}
                return said + (", byte-equal" if equal else ", not byte-equal")

            case = f"{count} messages of 25 MB, 96 MiB of memory more (RLIMIT_AS)"
            return tried(engine, network, case, f"{DELIVERED}, byte-equal", story)


def many_recipients(plan: Plan, count: int) -> Row:
    """One message to very many, and 96 MiB of addresses."""
    folder = _folder(plan, "recipients")
    with Network() as network:
        domain, hosts = network.site(Script())
        with Engine(network, folder, workers=1, settings=SETTINGS) as engine:

            def story() -> str:
                (pid,) = engine.live()
                limit(pid, resource.RLIMIT_AS, address_space(pid) + 96 * MIB)
                id = engine.ms.send(
                    mail(f"all@{domain}"), sender="a@sender.test",
                    recipients=[f"u{number}@{domain}" for number in range(count)],
                )  # fmt: skip
                return end(engine, hosts, [id])

            case = f"one message to {count:,} recipients, 96 MiB of memory more (RLIMIT_AS)"
            return tried(engine, network, case, DELIVERED, story)


def sockets(plan: Plan, count: int) -> Row:
    """Very many connections to hosts that never greet, and a mail beside them."""
    folder = _folder(plan, "sockets")
    settings: Tables = {
        **SETTINGS,
        "delivery": {"drain_timeout": "2s", "max_connections": count // 10},
        "timeouts": {"greeting": "900s"},
    }
    with Network() as network:
        domain, servers = network.site(Script())
        (address,) = loopback_addresses()
        names = [network.new_domain() for _ in range(count)]

        def route() -> None:
            for name in names:
                network.dns.zone[name] = {"MX": [f"10 mx.{name}."]}
                network.dns.zone[f"mx.{name}"] = {"A": [address]}

        network.on_loop(route)
        engine = Engine(network, folder, workers=1, settings=settings)
        with Hosts("never greets", network.port, [address]) as hosts, engine:

            def story() -> str:
                list(engine.ms.send_many(mail(f"a@{name}") for name in names))
                eventually(lambda: hosts.held >= count, WAIT_S, what=f"{count} connections")
                (pid,) = engine.live()
                held = sum(
                    os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:")
                    for fd in os.listdir(f"/proc/{pid}/fd")
                )
                idle = busy(pid)
                said = f"{count:,} open" if held >= count else f"{held:,} sockets"
                return f"{said}{idle}, a mail beside them: " + end(
                    engine, servers, [engine.send(f"u@{domain}")]
                )

            case = f"{count:,} connections at once, to hosts that never greet"
            return tried(
                engine, network, case, f"{count:,} open, a mail beside them: {DELIVERED}", story
            )


def laden(plan: Plan, kind: str, count: int) -> Row:
    """More content than a worker may hold, at hosts that never answer; a mail beside.

    The worker lets go of what was written, and of what is not to be written yet, so they take
    neither memory nor places.
    """
    folder = _folder(plan, f"laden {kind}".replace(" ", "-"))
    settings: Tables = {
        **SETTINGS, "delivery": {"drain_timeout": "2s", "max_connections": count // 5},
    }  # fmt: skip
    with Network() as network:
        domain, servers = network.site(Script())
        (address,) = loopback_addresses()
        names = [network.new_domain() for _ in range(count)]
        for name in names:
            network.route(name, [address])
        engine = Engine(network, folder, workers=1, settings=settings)
        with Hosts(kind, network.port, [address]) as hosts, engine:

            def story() -> str:
                text = ("x" * 70 + "\n") * 2_800
                list(engine.ms.send_many(mail(f"a@{name}", text=text) for name in names))
                eventually(lambda: hosts.held >= count, WAIT_S, what=f"{count} connections")
                said = f"all {count:,} reached, a mail beside them: "
                return said + end(engine, servers, [engine.send(f"u@{domain}")])

            case = f"200 kB each to {count:,} hosts that {kind.replace('answers', 'answer')}"
            wanted = f"all {count:,} reached, a mail beside them: {DELIVERED}"
            row = tried(engine, network, case, wanted, story)
    most = 96 * MIB + count * MIB // 16  # the budget, copies of it, and what a connection costs
    if (row.memory or 0) <= most:
        return row
    grown = f"{(row.memory or 0) // MIB} MiB of memory"
    return replace(row, findings=(*row.findings, grown))


def _folder(plan: Plan, name: str) -> Path:
    folder = plan.folder / name
    folder.mkdir()
    return folder
