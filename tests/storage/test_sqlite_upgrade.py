"""Spools of released versions: migrated by the engine of today, used on by the clients of then.

The older Mailstrom is the released wheel itself, run in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mailstrom.storage.base import StreamPolicy
from mailstrom.storage.client import Selection
from mailstrom.storage.sqlite import schema
from mailstrom.storage.sqlite.client import SQLiteClientStore
from mailstrom.storage.sqlite.connection import connect
from mailstrom.types import Change
from tests.storage.files import SQLiteStores
from tests.storage.spool import DAY, T0, change, submission

WHEEL = Path(__file__).parents[1] / "data" / "mailstrom-0.1.0-py3-none-any.whl"
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
import mailstrom
from mailstrom import Mailstrom
from mailstrom.errors import MailstromError
assert sys.argv[1] in mailstrom.__file__, mailstrom.__file__
ms = Mailstrom(sys.argv[2])
HEAD = b"From: then@example.com\\r\\nSubject: then\\r\\n\\r\\n"
def send(to, body=b"body\\r\\n", **options):
    return ms.send(HEAD + body, sender="then@example.com", recipients=[to], **options)
def refused(step):
    try:
        step()
    except MailstromError as error:
        return [type(error).__name__, getattr(error, "rule", None), str(error)]
"""


def then(path: str, code: str) -> object:
    """What the released Mailstrom says: the JSON that ``code`` prints."""
    ran = subprocess.run(
        [sys.executable, "-P", "-I", "-c", PROGRAM + code, str(WHEEL), path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def version_of(path: str) -> int:
    connection = connect(path)
    try:
        rows = connection.execute("PRAGMA user_version").fetchall()
    finally:
        connection.close()
    return int(str(rows[0][0]))


def test_the_version_that_is_written_is_the_last_migration() -> None:
    assert max(schema.migrations()) == schema.VERSION


def test_a_spool_of_the_first_release_is_migrated_with_all_that_is_in_it(
    stores: SQLiteStores,
) -> None:
    sent = then(
        stores.path,
        "print(json.dumps([send('a@example.org', tags=['t'], priority='low'),"
        " send('b@example.org')]))",
    )
    assert isinstance(sent, list)
    assert version_of(stores.path) == 3
    client = stores.client()
    assert version_of(stores.path) == schema.VERSION > 3
    found = client.statuses(sent)
    assert [one.id for one in found.values()] == sent
    assert found[sent[0]].tags == ("t",)
    assert client.content(sent[1]) is not None
    assert client.check() == []
    assert (
        client.change(Change.HOLD, client.targets(Selection(), T0, change=None, limit=9), T0) == 2
    )
    assert {one.id for one in client.recent(9)} == set(sent)


def test_what_waits_in_an_older_spool_is_counted_from_its_upgrade_on(stores: SQLiteStores) -> None:
    sent = then(
        stores.path,
        "def many(*to):\n"
        "    return ms.send(HEAD + b'body\\r\\n', sender='then@example.com', recipients=to)\n"
        "ids = [many('a@example.org', 'b@example.org'), many('c@example.org'),"
        " many('d@example.org', 'e@example.org'), many('f@example.org', 'g@example.org')]\n"
        "ms.cancel(ids[2])\n"
        "ms.cancel(ids[3], recipient='f@example.org')\n"
        "print(json.dumps(ids))",
    )
    assert isinstance(sent, list)
    client = stores.client()
    counts = (
        "SELECT status, recipients, messages FROM queue_counts WHERE recipients ORDER BY status"
    )
    assert client.query(counts, (), 5) == [("queued", 4, 3)]
    assert client.check() == []
    assert change(client, "hold", [sent[0]], "a@example.org", T0) == 1
    assert change(client, "hold", [sent[1]], None, T0) == 1
    assert client.query(counts, (), 5) == [("held", 2, 2), ("queued", 2, 2)]
    told = then(
        stores.path,
        f"ids = {sent!r}\n"
        "print(json.dumps([ms.cancel(ids[0], recipient='b@example.org'), ms.cancel(ids[1]),"
        " bool(send('x@example.org')), ms.cancel(ids[3]), ms.check()]))",
    )
    assert told == [1, 1, True, 1, []]
    assert client.query(counts, (), 5) == [("held", 1, 1), ("queued", 1, 1)]
    assert client.check() == []


def test_the_first_release_keeps_sending_into_a_spool_of_today(stores: SQLiteStores) -> None:
    client, engine = stores.client(), stores.worker()
    limits = StreamPolicy(name="bulk", priority=2, max_age_ms=DAY, require_tls=True, max_size=900)
    engine.use_streams([limits])
    held = submission("held@example.org")
    client.enqueue([held], T0)
    change(client, "hold", [held.id], None, T0)
    told = then(
        stores.path,
        "ids = [send('a@example.org'), send('b@example.org', stream='bulk', priority='high')]\n"
        f"print(json.dumps({{'ids': ids, 'held': str(ms.status({held.id!r}).status),"
        f" 'cancelled': ms.cancel({held.id!r}), 'check': ms.check(),"
        " 'large': refused(lambda: send('a@example.org', body=b'body\\r\\n' * 200,"
        " stream='bulk'))}))",
    )
    assert isinstance(told, dict)
    assert (told["held"], told["cancelled"], told["check"]) == ("held", 1, [])
    kind, rule, text = told["large"]
    assert (kind, rule) == ("InvalidMessage", "constraint")
    assert "larger than its stream allows (max_size)" in text
    rows = client.query("SELECT id, priority, expires_ms - send_ms FROM messages", (), 5)
    found = {str(row[0]): row[1:] for row in rows}
    assert found[told["ids"][0]] == ("normal", 5 * DAY)
    assert found[told["ids"][1]][0] == "high", "what it names holds, as ever"
    assert client.check() == []


def test_an_engine_of_the_first_release_leaves_a_spool_of_today_alone(
    stores: SQLiteStores,
) -> None:
    stores.client()
    told = then(
        stores.path,
        "from mailstrom.storage import open_worker_store\n"
        "print(json.dumps(refused(lambda: open_worker_store(sys.argv[2]))))",
    )
    assert isinstance(told, list)
    assert told[0] == "SchemaMismatch"
    assert "newer" in told[2]


def test_a_migration_happens_whole_or_not_at_all(
    stores: SQLiteStores, monkeypatch: pytest.MonkeyPatch
) -> None:
    then(stores.path, "print(json.dumps(send('a@example.org')))")
    known = schema.migrations()
    broken = {**known, 4: known[4] + "\nCREATE TABLE stream (again INTEGER) STRICT;\n"}
    monkeypatch.setattr(schema, "migrations", lambda: broken)
    with pytest.raises(Exception, match="stream"):
        SQLiteClientStore(stores.path)
    assert version_of(stores.path) == 3
    assert then(stores.path, "print(json.dumps(ms.check()))") == []
    monkeypatch.undo()
    assert stores.client().check() == []
