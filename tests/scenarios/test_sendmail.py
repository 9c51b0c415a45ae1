"""``mailstrom-sendmail`` and ``mailstrom-mailq`` beside a running engine and real hosts."""

from __future__ import annotations

import json
import subprocess
import sys
from email import message_from_bytes

from mailstrom.testing.script import Act, Rule, Script
from tests.scenarios.conftest import MakeEngine
from tests.support.engine import DEADLINE_S, Engine, environment
from tests.support.network import Network, dots


def call(engine: Engine, module: str, *words: str, text: bytes = b"") -> bytes:
    done = subprocess.run(
        [sys.executable, "-P", "-m", f"mailstrom.shims.{module}", *words],
        input=text,
        capture_output=True,
        timeout=DEADLINE_S,
        env=environment() | {"MAILSTROM_STORE": str(engine.store)},
        cwd=engine.folder,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def test_mail_of_cron_arrives_whole_and_nobody_sees_blind_copies(
    make_engine: MakeEngine, network: Network
) -> None:
    domain, (host,) = network.site(Script(), keep=True)
    engine = make_engine().start()
    text = (
        f"To: a@{domain}\nBcc: b@{domain}\nSubject: Cron <root@box> job\n\n"
        f"..dots\n.\n 10%\r 20%\r\n{'x' * 2000}\nlast"
    )
    call(engine, "sendmail", "-FCronDaemon", "-odi", "-oi", "-t", text=text.encode())
    engine.until("SELECT 1 FROM messages WHERE status = 'delivered'")
    (taken,) = dots([host])
    assert sorted(taken.recipients) == [f"a@{domain}", f"b@{domain}"]
    assert taken.content is not None
    assert b"Bcc" not in taken.content
    assert f"b@{domain}".encode() not in taken.content
    assert b"Content-Transfer-Encoding: quoted-printable\r\n" in taken.content
    decoded = message_from_bytes(taken.content).get_payload(decode=True)
    assert decoded == f"..dots\r\n.\r\n 10%\r 20%\r\n{'x' * 2000}\r\nlast\r\n".encode()
    assert call(engine, "mailq") == b"Mail queue is empty\n"


def test_what_is_deferred_is_listed_with_its_reason_and_made_due(
    make_engine: MakeEngine, network: Network
) -> None:
    rule = Rule(stage="rcpt", act=Act.REPLY, code=451, enhanced="4.7.1", text="later", last=1)
    domain, (host,) = network.site(Script(rules=(rule,)))
    engine = make_engine(settings={"retry": {"schedule": ["1h"]}}).start()
    call(engine, "sendmail", "-fann@sender.test", f"a@{domain}", text=b"Subject: x\n\nhi\n")
    engine.until("SELECT 1 FROM recipients WHERE status = 'deferred'")
    (told,) = map(json.loads, call(engine, "mailq", "-j").splitlines())
    assert told["queue_name"] == "deferred"
    assert told["sender"] == "ann@sender.test"
    ((address, reason),) = [tuple(one.values()) for one in told["recipients"]]
    assert address == f"a@{domain}"
    assert "451 4.7.1 later" in reason
    table = call(engine, "mailq").decode()
    assert "451 4.7.1 later)" in table
    assert table.endswith("-- 1 Kbytes in 1 Request.\n")
    assert dots([host]) == []
    call(engine, "sendmail", f"-qI{told['queue_id']}")
    engine.until("SELECT 1 FROM messages WHERE status = 'delivered'")
