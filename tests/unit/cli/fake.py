"""A spool in memory with the client's face: what the command line may rely on, and no more."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, ClassVar

from mailstrom.cli import ids
from mailstrom.errors import MessageNotFound
from mailstrom.storage.client import Target
from mailstrom.types import MessageStatus, QueueStats, Reason, RecipientStatus, Status

NOW = datetime(2030, 1, 31, 8, 0, tzinfo=UTC)


def recipient(address: str, status: Status = Status.QUEUED, **fields: Any) -> RecipientStatus:
    blank: dict[str, Any] = dict.fromkeys(
        (
            "reason",
            "next_attempt_at",
            "last_attempt_at",
            "mx",
            "reply_code",
            "enhanced_code",
            "reply_text",
            "tls",
        )
    )
    blank |= {"attempts": 0, "in_doubt": False} | fields
    return RecipientStatus(address=address, status=status, **blank)


def message(id: str, *recipients: RecipientStatus, **fields: Any) -> MessageStatus:
    statuses = {r.status for r in recipients}
    return MessageStatus(
        id=id,
        status=statuses.pop() if len(statuses) == 1 else Status.PARTIAL,
        sender="from@sender.test",
        size=123,
        created_at=NOW,
        send_at=NOW,
        expires_at=NOW,
        finished_at=None,
        recipients={r.address: r for r in recipients},
        **({"subject": "Hello"} | fields),
    )


REFUSED = recipient(
    "b@x.test",
    Status.FAILED,
    reason=Reason.BOUNCED,
    reply_code=550,
    enhanced_code="5.1.1",
    reply_text="5.1.1 no such \x1b[2Juser",
)


class FakeClient:
    """Records every call; answers from class attributes that a test sets."""

    messages: ClassVar[dict[str, MessageStatus]] = {}
    rows: ClassVar[list[Any]] = []
    findings: ClassVar[list[str]] = []
    notes: ClassVar[list[str]] = []
    matching: ClassVar[int] = 0
    arrived: ClassVar[int] = 0
    copied: ClassVar[bool] = False
    log_full: ClassVar[bool] = False
    error: ClassVar[BaseException | None] = None
    calls: ClassVar[list[tuple[Any, ...]]] = []

    @classmethod
    def reset(cls) -> None:
        cls.messages, cls.rows, cls.findings, cls.error, cls.calls = {}, [], [], None, []
        cls.notes = []
        cls.matching, cls.arrived, cls.copied = 0, 0, False
        cls.log_full = False

    def __init__(self, store: str | None = None, *, config: str | None = None) -> None:
        self.calls.append(("open", store, config))
        self.path = "/fake.db"

    @classmethod
    def create(cls, path: str) -> FakeClient:
        cls.calls.append(("create", path))
        cls._maybe_fail()
        return cls(path)

    @classmethod
    def _maybe_fail(cls) -> None:
        if cls.error is not None:
            raise cls.error

    def close(self) -> None:
        self.calls.append(("close",))

    def send(self, content: bytes, /, **options: Any) -> str:
        self.calls.append(("send", content, options))
        self._maybe_fail()
        return "id-1"

    def status(self, id: str) -> MessageStatus:
        if id not in self.messages:
            raise MessageNotFound(f"no message {id}")
        return self.messages[id]

    def wait(self, id: str, timeout: float | None = None) -> MessageStatus:
        self.calls.append(("wait", id, timeout))
        self._maybe_fail()
        status = self.messages[id]
        if not status.completed:
            raise TimeoutError
        return status

    def _chosen(self, change: str, *, shown: int, **filters: Any) -> FakeChosen:
        self.calls.append(("chosen", str(change), filters))
        return FakeChosen(self, str(change), shown)

    def statuses(self, ids: Iterable[str]) -> dict[str, MessageStatus]:
        return {id: self.messages[id] for id in ids if id in self.messages}

    def resolve(self, id: str, outcome: str, *, recipient: str | None = None) -> int:
        self.calls.append(("resolve", id, outcome, recipient))
        return self.matching

    def stats(self) -> QueueStats:
        return QueueStats(
            waiting={"queued": 3},
            finished={},
            oldest_due_at=None,
            suspended_sites=0,
            workers=0,
            copied=self.copied,
            log_full=self.log_full,
        )

    def backup(self, target: str) -> None:
        self.calls.append(("backup", target))
        self._maybe_fail()

    def adopt(self) -> bool:
        self.calls.append(("adopt",))
        return self.copied

    def query(self, sql: str, params: Any = ()) -> list[Any]:
        if sql == ids.ENDING:  # every text is an id here
            return named_rows("id", (params[0],))
        self.calls.append(("query", sql, list(params)))
        self._maybe_fail()
        return list(self.rows)

    def check(self) -> list[str]:
        return self.findings

    def orphans(self) -> list[str]:
        return self.notes

    def pinned(self) -> list[str]:
        return []


class FakeChosen:
    """The first recipients of all messages, and as many as ``matching`` in all."""

    def __init__(self, client: FakeClient, change: str, shown: int) -> None:
        self.client, self.change = client, change
        self.count, self.others = client.matching, 0
        of = [(one.id, address) for one in client.messages.values() for address in one.recipients]
        self.first = [Target(*one) for one in of[:shown]]

    def apply(self) -> int:
        self.client.calls.append(("apply", self.change))
        self.others = self.client.arrived
        return self.count


def named_rows(columns: str, *rows: tuple[Any, ...]) -> list[Any]:
    shape = namedtuple("Row", columns)  # type: ignore[misc]
    return [shape(*row) for row in rows]
