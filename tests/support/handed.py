"""Mail as a listener puts it into a spool, without a listener: for tests of what becomes of it."""

from __future__ import annotations

import contextlib
import uuid
from typing import Any

from mailstrom.clock import wall_ms
from mailstrom.storage import open_client_store
from mailstrom.storage.client import Submission
from tests.support.engine import Engine


def submission(
    sender: str, *recipients: str, text: bytes = b"Hello\r\n", **changes: Any
) -> Submission:
    """As a listener makes one; ``changes`` replace fields."""
    id, now = str(uuid.uuid4()), wall_ms()
    head = (
        f"From: {sender or 'a@sender.test'}\r\nSubject: story\r\nMessage-ID: <{id}@sender.test>\r\n"
    )
    given: dict[str, Any] = {
        "id": id,
        "content": head.encode() + b"\r\n" + text,
        "sender": sender,
        "recipients": recipients,
        "subject": "story",
        "message_id": f"<{id}@sender.test>",
        "stream": "default",
        "priority": None,
        "tags": (),
        "metadata": {},
        "created_ms": now,
        "send_ms": now,
        "expires_ms": None,
        "on_doubt": None,
        "require_tls": False,
        "eightbit": False,
        "smtputf8": False,
        "origin": "smtp",
        "client": {"address": "192.0.2.7", "helo": "client.example"},
        "reports": True,
    }
    return Submission(**given | changes)


def hand_in(engine: Engine, *mails: Submission) -> list[str]:
    """Put them into an engine's spool; returns their ids."""
    with contextlib.closing(open_client_store(str(engine.store))) as store:
        stored = store.enqueue(mails, wall_ms(), atomic=True)
    assert all(isinstance(one, str) for one in stored), stored
    return [str(one) for one in stored]
