"""The named points: where a process dies, which row of the crash table that is, what must follow.

Data only; ``inject/torture_points`` explains a place (``Point.spec``), ``named_kills`` plays the
scenes. The crash table of docs/design/queue.md names these points as ``named_kills: NAME``, and
its test holds the two together. Long, because it is one table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Scene = Literal[
    "mail",  # messages are sent to a host that behaves
    "many",  # several, so that one follows behind another's final dot
    "serial",  # ... to one without PIPELINING
    "large",  # ... of several chunks
    "next_host",  # the first host puts the first message off
    "hang_up",  # the host closes at the first MAIL
    "no_host",  # the host turns the first connections away
    "start",  # a worker is killed, so that another one starts
    "doubt",  # a worker is killed with mail on the wire
    "expire",  # a message expires at a site that is down
    "bounce",  # a host refuses the recipients of mail whose sender wants to hear of it
    "late",  # a host puts mail off for so long that its sender is told
    "poison",  # somebody saw a disk error
    "janitor",  # the janitor is killed, so that another one starts
    "purge",  # the same, and old mail waits for it
    "clock",  # the wall clock jumps
    "ahead",  # a lane claims while its session waits, at a host that took mail before
    "spared",  # the same with mail that is held in doubt
    "drain",  # the engine is told to end with mail on the wire
    "give_back",  # ... with more opened ahead of it, and a dot that is not answered
    "supervisor",  # the engine is being started
    "running",  # the supervisor while its children work
    "send", "send_many", "stage", "keyed",  # a client sends
    "change", "pages", "backup", "adopt", "restore", "migrate", "create",  # a client at other work
]  # fmt: skip
Doubt = Literal["none", "open", "claimed", "wire", "any", "others"]

CLIENT_SCENES: frozenset[Scene] = frozenset(
    ("send", "send_many", "stage", "keyed", "change", "pages", "backup", "adopt", "restore",
     "migrate", "create")
)  # fmt: skip
ENDING_SCENES: frozenset[Scene] = frozenset(("drain", "give_back", "supervisor", "running"))
CLOCK_SCENES: frozenset[Scene] = frozenset(("clock",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One place where a process can die.

    Args:
        row: of the crash table.
        spec: the place, for ``torture_points``.
        scene: what is going on.
        doubt: what a death there may leave in doubt: nothing, exactly the open transaction,
            exactly what a claim opened, what is on the wire and nothing opened ahead of it,
            anything but one site's part, which was settled (another's may have been opened), or
            what somebody else's death (which the scene brings about) made.
        stored: of a client's scene: whether the change is there afterwards; None: either.
        hits: most visits that make sense in one case.
        hold: whether the case with ``on_doubt="hold"`` is played, too.
        least: messages in doubt, where there must be any.
        stands: whether the short form stops a process there before it kills it, too: then what
            is in doubt must be what was open on the disk while it stood.
    """

    row: str
    spec: Mapping[str, Any]
    scene: Scene = "mail"
    doubt: Doubt = "none"
    stored: bool | None = None
    hits: int = 1
    hold: bool = False
    least: int = 1
    stands: bool = False


_STORE = "mailstrom.storage.sqlite.worker:SQLiteWorkerStore"
_CLIENT = "mailstrom.storage.sqlite.client:SQLiteClientStore"
_STORING = "mailstrom.storage.sqlite.storing:Storing"
_LANE = "mailstrom_workers.lane:LaneRun"
_SUPPLY = "mailstrom_workers.supply:Supply"
_FEED = "mailstrom_workers.feed:Feed"
_CONNECTOR = "mailstrom_workers.connector:Connector"
_SESSION = "mailstrom_workers.session:Session"
_PUMP = "mailstrom_workers.pump:Pump"
_DIALOGUE = "mailstrom.smtp.client:ClientDialogue"
_PIPELINE = "mailstrom.smtp.pipeline:Pipeline"
_PRESENCE = "mailstrom_workers.presence:Presence"
_SYNC = "mailstrom.storage.sqlite.durable:WalSync"
_SUPERVISION = "mailstrom.supervisor.supervision:Supervision"
_MIGRATE = "mailstrom.storage.sqlite.schema:_migrate_one"
_SWAP = "mailstrom.storage.sqlite.restore:_swap"


def _before(at: str, *given: object, **condition: str) -> dict[str, Any]:
    return _call(at, "before", given, condition)


def _after(at: str, *given: object, **condition: str) -> dict[str, Any]:
    return _call(at, "after", given, condition)


def _call(
    at: str, when: str, given: tuple[object, ...], condition: Mapping[str, str]
) -> dict[str, Any]:
    spec: dict[str, Any] = {"at": at, "when": when}
    if given:
        spec["given"] = {"path": list(given), **condition}
    return spec


def _sql(name: str, **where: str) -> dict[str, Any]:
    return {"sql": name, **where}


def _io(op: str, file: str, when: str = "before", **where: str) -> dict[str, Any]:
    return {"io": op, "file": file, "when": when, **where}


def _at_stage(stage: str) -> dict[str, Any]:
    return _before(f"{_PUMP}.data_received", 0, "dialogue", "stage", **{"is": stage})


_ASKS = (1, "claims", 0, "ahead")
"""Of the arguments of an exchange: what its first claim may open."""
_OPENING = "claim+opened"
"""The claim that opens what goes on the wire next; what it was given says what that is."""
_COMMITTED = "mailstrom.storage.sqlite.worker_connection:WorkerConnection.write"

_AHEAD: dict[str, Point] = {
    "ahead.asking": Point(
        row="W5", scene="ahead", spec=_before(f"{_STORE}.exchange", *_ASKS), hits=3, hold=True,
        stands=True,
    ),
    "ahead.claim": Point(row="W5", scene="ahead", spec=_sql(_OPENING), hits=3),
    "ahead.claimed": Point(
        row="W5", scene="ahead", spec=_sql("lane_took", inside=_OPENING), hits=3
    ),
    "ahead.commit": Point(
        row="W5", scene="ahead", spec=_sql("COMMIT", inside=_OPENING), hits=3, stands=True
    ),
    "ahead.write": Point(
        row="W5", scene="ahead", spec=_io("write", "wal", inside=_OPENING), hits=3
    ),
    "ahead.half_write": Point(
        row="W5", scene="ahead", spec=_io("write", "wal", "half", inside=_OPENING), hits=3
    ),
    "ahead.spared": Point(
        row="W6", scene="spared", spec=_after(f"{_STORE}.exchange", *_ASKS)
    ),
    "ahead.committed": Point(
        row="W21", scene="ahead", doubt="claimed", hits=3, stands=True,
        spec=_after(_COMMITTED) | {"inside": _OPENING, "tells": _OPENING},
    ),
    "ahead.syncing": Point(
        row="W21", scene="ahead", doubt="claimed",
        spec=_io("sync", "wal", follows=_OPENING, tells=_OPENING),
    ),
    "ahead.synced": Point(
        row="W22", scene="ahead", doubt="claimed", stands=True,
        spec=_io("sync", "wal", "after", follows=_OPENING, tells=_OPENING),
    ),
    "ahead.told": Point(
        row="W22", scene="ahead", doubt="claimed",
        spec=_after(f"{_SUPPLY}.take", 1, "opened") | {"follows": _OPENING, "tells": _OPENING},
    ),
    "ahead.beginning": Point(
        row="W22", scene="ahead", doubt="claimed",
        spec=_before(f"{_DIALOGUE}.begin") | {"follows": _OPENING, "tells": _OPENING},
    ),
    "ahead.behind": Point(
        row="W9", scene="ahead", doubt="open", least=2, hits=3, stands=True,
        spec=_after(f"{_PIPELINE}.send", 1, "behind"),
    ),
    "give_back.asking": Point(
        row="W23", scene="give_back", doubt="open", least=3,
        spec=_before(f"{_STORE}.exchange", 1, "settlements", 0, "state", **{"is": "queued"}),
    ),
    "give_back.settle": Point(
        row="W23", scene="give_back", doubt="open", least=3, spec=_sql("settle_untried")
    ),
    "give_back.commit": Point(
        row="W23", scene="give_back", doubt="open", least=3, stands=True,
        spec=_sql("COMMIT", inside="settle_untried"),
    ),
    "give_back.write": Point(
        row="W23", scene="give_back", doubt="open", least=3,
        spec=_io("write", "wal", inside="settle_untried"),
    ),
    "give_back.committed": Point(
        row="W23", scene="give_back", doubt="wire", stands=True,
        spec=_after(_COMMITTED) | {"inside": "settle_untried"},
    ),
    "give_back.syncing": Point(
        row="W23", scene="give_back", doubt="wire",
        spec=_io("sync", "wal", follows="settle_untried"),
    ),
}  # fmt: skip

_WORKER: dict[str, Point] = {
    "worker.locked": Point(row="W1", scene="start", spec=_before(f"{_STORE}.register")),
    "worker.registering": Point(row="W1", scene="start", spec=_sql("COMMIT", inside="worker_add")),
    "worker.registered": Point(row="W2", scene="start", spec=_after(f"{_STORE}.register")),
    "worker.streams": Point(
        row="W20", scene="start", spec=_sql("COMMIT", within=f"{_STORE}.use_streams")
    ),
    "worker.streams_written": Point(
        row="W20", scene="start", spec=_after(f"{_STORE}.use_streams")
    ),
    "router.taking": Point(row="W3", spec=_sql("COMMIT", within=f"{_STORE}.due_domains")),
    "router.took": Point(row="W3", spec=_after(f"{_STORE}.due_domains", "result")),
    "router.asking": Point(row="W3", spec=_before("mailstrom_workers.resolver:Resolver.route")),
    "router.answered": Point(row="W3", spec=_before(f"{_STORE}.put_routes")),
    "router.stamping": Point(row="W4", spec=_sql("stamp")),
    "router.putting": Point(row="W4", spec=_sql("COMMIT", within=f"{_STORE}.put_routes")),
    "router.put": Point(row="W4", spec=_after(f"{_STORE}.put_routes")),
    "lane.leasing": Point(row="W5", spec=_sql("COMMIT", inside="lease")),
    "lane.leased": Point(row="W5", spec=_after(f"{_STORE}.lease", "result")),
    "lane.claiming": Point(row="W5", spec=_before(f"{_SUPPLY}.claim_request")),
    "claim.claim": Point(row="W5", spec=_sql("claim")),
    "claim.commit": Point(row="W5", spec=_sql("COMMIT", inside="claim")),
    "claim.write": Point(row="W5", spec=_io("write", "wal", inside="claim"), hits=3),
    "claim.committed": Point(row="W6", spec=_after(f"{_STORE}.exchange", "result", "claimed")),
    "claim.synced": Point(row="W6", spec=_io("sync", "wal", "after", follows="claim")),
    "lane.claimed": Point(row="W6", spec=_after(f"{_SUPPLY}.take", "result")),
    "lane.connecting": Point(row="W6", spec=_before(f"{_CONNECTOR}.connect")),
    "lane.connected": Point(row="W6", spec=_after(f"{_CONNECTOR}.connect", "result")),
    "lane.opening": Point(row="W6", spec=_before(f"{_SUPPLY}._opening"), hits=3),
    "open.open": Point(row="W6", spec=_sql("open"), hits=3),
    "open.commit": Point(row="W6", spec=_sql("COMMIT", inside="open"), hits=3),
    "open.write": Point(row="W6", spec=_io("write", "wal", inside="open"), hits=3),
    "open.committed": Point(
        row="W7", spec=_after(f"{_STORE}.exchange", 1, "opens"), doubt="open", hits=3
    ),
    "lane.opened": Point(
        row="W7", spec=_after(f"{_SUPPLY}.take_opened", 1, "opened"), doubt="open", hits=3,
        hold=True,
    ),
    "wire.beginning": Point(row="W7", spec=_before(f"{_DIALOGUE}.begin"), doubt="open", hits=3),
    "wire.mail": Point(row="W8", scene="serial", spec=_at_stage("mail"), doubt="open", hold=True),
    "wire.rcpt": Point(row="W8", scene="serial", spec=_at_stage("rcpt"), doubt="open"),
    "wire.data": Point(row="W8", scene="serial", spec=_at_stage("data"), doubt="open"),
    "wire.body": Point(
        row="W8", scene="large", spec=_before(f"{_DIALOGUE}.content"), doubt="open", hits=3,
        hold=True,
    ),
    "wire.chunk": Point(
        row="W8", scene="large", spec=_after(f"{_STORE}.chunk"), doubt="open", hits=3
    ),
    "wire.ending": Point(
        row="W8", scene="large", spec=_before(f"{_DIALOGUE}.end_content"), doubt="open", hits=3,
        hold=True,
    ),
    "wire.whole": Point(
        row="W8", spec=_before(f"{_PIPELINE}._whole"), doubt="open", hits=3, hold=True
    ),
    "wire.dot": Point(
        row="W9", spec=_after(f"{_PUMP}.flush", 0, "dialogue", "stage", **{"is": "dot"}),
        doubt="open", hits=3, hold=True,
    ),
    "wire.behind": Point(
        row="W9", scene="many", spec=_after(f"{_PIPELINE}.send", 1, "behind"), doubt="open",
        hits=3,
    ),
    "wire.answered": Point(
        row="W10", spec=_at_stage("dot"), doubt="open", hits=3, hold=True
    ),
    "lane.answered": Point(
        row="W10", spec=_before(f"{_FEED}._ended"), doubt="open", hits=3, hold=True
    ),
    "lane.judged": Point(
        row="W10", spec=_after("mailstrom_workers.ledger:Ledger.apply"), doubt="open", hits=3
    ),
    **{
        f"settle.{name}": Point(
            row="W10", spec=_sql(name, inside="settle"), doubt="open", hits=1
        )
        for name in (
            "site_success", "recipient_events", "count_hour", "finish_messages",
        )
    },
    "settle.lower_next_due": Point(
        row="W10", scene="next_host", spec=_sql("lower_next_due", inside="settle"), doubt="open"
    ),
    "settle.lane_sites": Point(row="W10", spec=_sql("lane_sites"), doubt="open", hits=3),
    "settle.attempt": Point(
        row="W10", spec=_sql("attempt", inside="lane_sites"), doubt="open", hits=3
    ),
    "settle.settle": Point(row="W10", spec=_sql("settle"), doubt="open", hits=3, hold=True),
    "settle.commit": Point(
        row="W10", spec=_sql("COMMIT", inside="settle"), doubt="open", hits=3, hold=True
    ),
    "settle.write": Point(
        row="W10", spec=_io("write", "wal", inside="settle"), doubt="open", hits=3
    ),
    "settle.half_write": Point(
        row="W10", spec=_io("write", "wal", "half", inside="settle"), doubt="open", hits=3
    ),
    "report.asking": Point(
        row="W25", scene="bounce", spec=_sql("owed_now", inside="settle"), doubt="open"
    ),
    "report.inserting": Point(
        row="W25", scene="bounce", spec=_sql("enqueue", inside="owed_now"), doubt="open"
    ),
    "report.telling": Point(
        row="W25", scene="bounce", spec=_sql("report_event"), doubt="open"
    ),
    "report.commit": Point(
        row="W25", scene="bounce", spec=_sql("COMMIT", inside="report_event"), doubt="open"
    ),
    "report.write": Point(
        row="W25", scene="bounce", spec=_io("write", "wal", inside="report_event"), doubt="open"
    ),
    "report.committed": Point(
        row="W25", scene="bounce", spec=_after(_COMMITTED) | {"inside": "report_event"}
    ),
    "settle.committed": Point(
        row="W11", spec=_after(f"{_STORE}.exchange", 1, "settlements"), doubt="others", hits=3,
        hold=True,
    ),
    "settle.syncing": Point(
        row="W11", spec=_io("sync", "wal", follows="settle"), doubt="others"
    ),
    "settle.synced": Point(
        row="W11", spec=_io("sync", "wal", "after", follows="settle"), doubt="others"
    ),
    "lane.next_host": Point(
        row="W12", scene="next_host", spec=_before(f"{_CONNECTOR}.connect", 1)
    ),
    "lane.kept": Point(
        row="W12", scene="next_host", spec=_before(f"{_FEED}._outgoing"), doubt="open", hits=2
    ),
    "lane.unanswered": Point(
        row="W13", scene="hang_up", spec=_before(f"{_FEED}._ended"), doubt="open"
    ),
    "lane.again": Point(
        row="W13", scene="hang_up", spec=_after(f"{_SUPPLY}.take_opened", 1, "opened"),
        doubt="open", hits=2,
    ),
    "lane.idle": Point(row="W14", spec=_before(f"{_LANE}._linger")),
    "lane.quitting": Point(row="W14", spec=_before(f"{_SESSION}.quit")),
    "lane.releasing": Point(row="W15", spec=_before(f"{_STORE}.release")),
    "release.release_claimed": Point(row="W15", spec=_sql("release_claimed")),
    "release.lane_end": Point(row="W15", spec=_sql("lanes_end")),
    "release.commit": Point(row="W15", spec=_sql("COMMIT", inside="lanes_end")),
    "lane.released": Point(row="W15", spec=_after(f"{_STORE}.release")),
    "lane.suspending": Point(row="W16", scene="no_host", spec=_before(f"{_STORE}.suspend")),
    "lane.suspended": Point(row="W16", scene="no_host", spec=_after(f"{_STORE}.suspend")),
    "drain.told": Point(
        row="W17", scene="drain", spec=_after(f"{_PRESENCE}.drain"), doubt="any"
    ),
    "drain.retiring": Point(
        row="W17", scene="drain", spec=_before(f"{_STORE}.retire"), doubt="any"
    ),
    "drain.retired": Point(row="W17", scene="drain", spec=_after(f"{_STORE}.retire"), doubt="any"),
}  # fmt: skip

_JANITOR: dict[str, Point] = {
    "lapse.beginning": Point(
        row="J1", scene="doubt", spec=_before(f"{_STORE}.lapse"), doubt="any"
    ),
    **{
        f"lapse.{name}": Point(
            row="J1", scene="doubt", spec=_sql(name, within=f"{_STORE}.lapse"), doubt="any"
        )
        for name in (
            "lapse_claimed", "held_by_lanes", "doubt", "attempt", "lapse_lanes", "lapse_routes",
            "lapse_sessions", "worker_end", "lapse_event", "COMMIT",
        )
    },
    "lapse.piece": Point(
        row="J1", scene="doubt", spec=_before("mailstrom.storage.sqlite.upkeep:lapse"),
        doubt="any", hits=3,
    ),
    "lapse.committed": Point(row="J2", scene="doubt", spec=_after(f"{_STORE}.lapse"), doubt="any"),
    "lapse.unlinking": Point(
        row="J2", scene="doubt", spec={"os": ["unlink"]}, doubt="any"
    ),
    **{
        f"expire.{name}": Point(row="J3", scene="expire", spec=_sql(name, inside="expire"))
        for name in ("expire_events", "count_hour", "finish_messages", "COMMIT")
    },
    "expire.expire": Point(row="J3", scene="expire", spec=_sql("expire")),
    "clock.jump_add": Point(row="J4", scene="clock", spec=_sql("jump_add")),
    **{
        f"clock.{name}": Point(row="J4", scene="clock", spec=_sql(name, inside="jump_add"))
        for name in (
            "jump_sites", "jump_domains", "jump_copied", "clock_set", "jump_due",
            "jump_grace_due", "jump_expiry", "jump_done", "COMMIT",
        )
    },
    **{
        f"purge.{name}": Point(
            row="J5", scene="purge", spec=_sql(name, within=f"{_STORE}.purge")
        )
        for name in (
            "delete_content", "mark_purged", "delete_attempts", "delete_message_events",
            "delete_recipients", "delete_tags", "delete_messages", "COMMIT",
        )
    },
    "checkpoint.beginning": Point(
        row="J6", scene="janitor", spec=_before(f"{_STORE}.checkpoint")
    ),
    "checkpoint.wal_sync": Point(
        row="J6", scene="janitor", spec=_io("sync", "wal", within=f"{_STORE}.checkpoint")
    ),
    "checkpoint.wal_synced": Point(
        row="J6", scene="janitor", spec=_io("sync", "wal", "after", within=f"{_STORE}.checkpoint")
    ),
    "checkpoint.write": Point(
        row="J6", scene="janitor", spec=_io("write", "db", within=f"{_STORE}.checkpoint"), hits=3
    ),
    "checkpoint.half_write": Point(
        row="J6", scene="janitor",
        spec=_io("write", "db", "half", within=f"{_STORE}.checkpoint"), hits=3,
    ),
    "checkpoint.sync": Point(
        row="J6", scene="janitor", spec=_io("sync", "db", within=f"{_STORE}.checkpoint")
    ),
    "checkpoint.synced": Point(
        row="J6", scene="janitor", spec=_io("sync", "db", "after", within=f"{_STORE}.checkpoint")
    ),
    "checkpoint.done": Point(row="J6", scene="janitor", spec=_after(f"{_STORE}.checkpoint")),
    "repair.beginning": Point(row="J7", scene="poison", spec=_before(f"{_STORE}.repair")),
    "repair.write": Point(
        row="J7", scene="poison", spec=_io("write", "db", within=f"{_STORE}.repair")
    ),
    "repair.truncating": Point(
        row="J7", scene="poison", spec=_io("truncate", "wal", within=f"{_STORE}.repair")
    ),
    "repair.syncing": Point(row="J7", scene="poison", spec=_before(f"{_SYNC}.fresh")),
    "repair.healing": Point(row="J7", scene="poison", spec=_before(f"{_SYNC}.heal")),
    "repair.done": Point(row="J7", scene="poison", spec=_after(f"{_STORE}.repair")),
    "delay.owing": Point(row="J9", scene="late", spec=_sql("owe_delays")),
    "delay.commit": Point(row="J9", scene="late", spec=_sql("COMMIT", inside="owe_delays")),
    "delay.committed": Point(
        row="J9", scene="late", spec=_after(_COMMITTED) | {"inside": "owe_delays"}
    ),
    "delay.beginning": Point(row="J9", scene="late", spec=_sql("owed_set")),
    "delay.begun": Point(
        row="J9", scene="late", spec=_after(_COMMITTED) | {"inside": "owed_set"}
    ),
    "delay.inserting": Point(
        row="J9", scene="late", spec=_sql("enqueue", within=f"{_STORE}.report")
    ),
    "delay.telling": Point(row="J9", scene="late", spec=_sql("report_event")),
    "delay.told": Point(
        row="J9", scene="late", spec=_after(_COMMITTED) | {"inside": "report_event"}
    ),
    "janitor.role": Point(
        row="J8", scene="janitor",
        spec=_after("mailstrom.lockfile:LockFile.acquire", 0, "path", ends="janitor.lock"),
    ),
}  # fmt: skip

_SUPERVISOR: dict[str, Point] = {
    "supervisor.first_child": Point(
        row="S1", scene="supervisor", spec=_before("mailstrom.supervisor.children:spawn")
    ),
    "supervisor.spawned": Point(
        row="S2", scene="supervisor", spec=_after("mailstrom.supervisor.children:spawn"), hits=3
    ),
    "supervisor.running": Point(row="S2", scene="running", spec=_before(f"{_SUPERVISION}._hear")),
    "supervisor.restarting": Point(
        row="S2", scene="running", spec=_before(f"{_SUPERVISION}._lose"), doubt="any"
    ),
    "supervisor.draining": Point(
        row="S3", scene="drain", spec=_after(f"{_SUPERVISION}._drain"), doubt="any"
    ),
    "supervisor.drained": Point(
        row="S3", scene="drain", spec=_after(f"{_SUPERVISION}.run"), doubt="any"
    ),
    "migration.statement": Point(
        row="S5", scene="migrate", spec=_sql("*", within=_MIGRATE), stored=None, hits=99
    ),
    "creation.statement": Point(
        row="S5", scene="create", spec=_sql("*", within=_MIGRATE), stored=None, hits=99
    ),
}

_CLIENTS: dict[str, Point] = {
    "client.composing": Point(
        row="C1", scene="send", spec=_before("mailstrom.client.commit:Committer.enqueue"),
        stored=False,
    ),
    "client.staging": Point(
        row="C2", scene="stage", spec=_sql("stage_chunk"), stored=False, hits=3
    ),
    "client.staged": Point(row="C2", scene="stage", spec=_sql("enqueue"), stored=False),
    "client.inserting": Point(row="C3", scene="send", spec=_sql("enqueue"), stored=False),
    "client.inserting_many": Point(
        row="C3", scene="send_many", spec=_sql("enqueue"), stored=False
    ),
    "client.writing_many": Point(
        row="C3", scene="send_many", spec=_io("write", "wal", inside="enqueue"), stored=False,
        hits=3,
    ),
    "client.writing": Point(
        row="C3", scene="send", spec=_io("write", "wal", inside="enqueue"), stored=False, hits=3
    ),
    "client.half_written": Point(
        row="C3", scene="send", spec=_io("write", "wal", "half", inside="enqueue"), stored=False,
        hits=3,
    ),
    "client.committed": Point(
        row="C4", scene="keyed", spec=_before(f"{_SYNC}.__call__"), stored=True
    ),
    "client.synced": Point(row="C5", scene="keyed", spec=_after(f"{_SYNC}.__call__"), stored=True),
    "client.returned": Point(
        row="C5", scene="send", spec=_after("mailstrom.client.commit:Committer.enqueue"),
        stored=True,
    ),
    "change.change_targets": Point(
        row="C7", scene="change", spec=_sql("BEGIN", within=f"{_CLIENT}.change"), stored=False
    ),
    "change.commit": Point(
        row="C7", scene="change", spec=_sql("COMMIT", within=f"{_CLIENT}.change"), stored=False
    ),
    "change.committed": Point(
        row="C7", scene="change", spec=_before(f"{_STORING}._durable"), stored=True
    ),
    "change.synced": Point(
        row="C7", scene="change", spec=_after(f"{_STORING}._durable"), stored=True
    ),
    "change.page": Point(
        row="C8", scene="pages", spec=_before(f"{_CLIENT}.change"), stored=None, hits=3
    ),
    "backup.copied": Point(
        row="C10", scene="backup",
        spec=_before("mailstrom.storage.sqlite.backups:_Temporary.sync"), stored=False,
    ),
    "backup.naming": Point(
        row="C10", scene="backup",
        spec=_before("mailstrom.storage.sqlite.backups:_Temporary.give_name"), stored=False,
    ),
    "backup.named": Point(
        row="C10", scene="backup",
        spec=_after("mailstrom.storage.sqlite.backups:_Temporary.give_name"), stored=True,
    ),
    "adopt.step": Point(
        row="C11", scene="adopt", spec=_sql("BEGIN", within=f"{_CLIENT}.adopt"), stored=False,
        hits=3,
    ),
    "adopt.commit": Point(
        row="C11", scene="adopt", spec=_sql("COMMIT", within=f"{_CLIENT}.adopt"), stored=False,
        hits=3,
    ),
    "adopt.committed": Point(
        row="C12", scene="adopt", spec=_before(f"{_SYNC}.__call__"), stored=True
    ),
    "restore.step": Point(
        row="C13", scene="restore",
        spec={"os": ["link", "unlink", "rename", "replace", "fsync"], "within": _SWAP},
        stored=None, hits=12,
    ),
}  # fmt: skip

POINTS: Mapping[str, Point] = {**_CLIENTS, **_WORKER, **_AHEAD, **_JANITOR, **_SUPERVISOR}

SMALLER: Mapping[str, int] = {
    "mailstrom.storage.sqlite.lanes:DOUBT_ROWS": 2,
    "mailstrom.storage.sqlite.copies:ADOPTED_MESSAGES": 2,
    "mailstrom.client.changing:PAGE": 2,
}
"""Pieces made smaller from outside, so that a handful of messages is several of them."""
_PATIENT = {"mailstrom_workers.feed:SILENT_S": 60.0}
"""Where a drain is to give back what is opened ahead: a silent session would do so later, too."""


def settings(folder: str, scenes: frozenset[Scene]) -> dict[str, Any]:
    """What ``torture_points`` is armed with: the points of these scenes."""
    return {
        "folder": folder,
        "points": {name: point.spec for name, point in POINTS.items() if point.scene in scenes},
        "set": {**SMALLER, **(_PATIENT if "give_back" in scenes else {})},
    }
