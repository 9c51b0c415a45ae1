"""A listener that drains, dies, is reloaded, or is one of several."""

from __future__ import annotations

import os
import signal
import ssl
from pathlib import Path

from mailstrom.passwords import hash_password
from tests.support.engine import DEADLINE_S
from tests.support.listening import HASH, Listening, MakeListening, certify, stored
from tests.support.network import Network
from tests.support.sockets import accepts, eventually
from tests.support.talk import Talk, queued


def test_a_drain_takes_what_is_on_its_way_and_tells_the_idle(
    network: Network, make_listening: MakeListening
) -> None:
    listening = make_listening()
    engine = listening.engine
    idle, begun, writing = (listening.talk() for _ in range(3))
    for talk in (idle, begun, writing):
        talk.ehlo()
    begun.envelope("b@x.test")
    writing.envelope("c@x.test")
    assert writing.say("DATA").code == 354
    writing.send(b"Subject: half\r\n\r\nhalf")

    engine.signal(signal.SIGTERM)
    assert idle.reply().code == 421
    assert begun.reply().code == 421
    eventually(lambda: not accepts("127.0.0.1", listening.port), DEADLINE_S, what="a closed port")
    writing.send(b" and half\r\n.\r\n")
    id = queued(writing.reply())
    assert writing.reply().code == 421
    assert engine.wait_exit() == 0

    assert stored(engine) == [id]
    order = [line["kind"] for line in engine.log("worker.stopped")]
    assert order[-1] == "janitor"


def test_a_drain_has_an_end_and_nothing_half_is_taken(make_listening: MakeListening) -> None:
    listening = make_listening(start=False)
    engine = listening.engine
    engine.configure(dict(engine.settings) | {"delivery": {"drain_timeout": "500ms"}})
    engine.start()
    with listening.talk() as talk:
        talk.ehlo()
        talk.envelope("c@x.test")
        assert talk.say("DATA").code == 354
        talk.send(b"Subject: half\r\n\r\nhalf\r\n")
        engine.signal(signal.SIGTERM)
        assert talk.reply().code == 421
        assert engine.wait_exit() == 0
    assert stored(engine) == []


def test_who_waits_while_a_listener_is_started_anew_is_served(
    make_listening: MakeListening,
) -> None:
    listening = make_listening()
    (pid,) = listening.engine.live("listener")
    with listening.talk() as lost:
        lost.ehlo()
        os.kill(pid, signal.SIGKILL)
        assert not lost.sock.recv(1)
    with listening.talk() as talk:  # accepted by the kernel, whoever serves it then
        talk.ehlo()
        queued(talk.mail("a@x.test"))
    (line,) = listening.engine.wait_log("worker.lost", kind="listener")
    assert line["pid"] == pid


def test_a_listener_started_anew_behind_a_reload_listens_as_the_start_said(
    make_listening: MakeListening,
) -> None:
    listening = make_listening(tls=True)
    engine = listening.engine
    table = dict(engine.settings["listener"])
    for bind in ([], [f"127.0.0.1:{listening.port}/tls"]):
        listening.reload({"listener": table | {"bind": bind, "max_size": 2048}})
        (pid,) = engine.live("listener")
        os.kill(pid, signal.SIGKILL)
        engine.wait_log("worker.lost", kind="listener", pid=pid)
        with listening.talk() as talk:  # in clear, as this port was bound
            assert "SIZE 2048" in talk.ehlo()
    changed = engine.wait_log("config.reloaded", count=2)
    assert [line["restart_needed"] for line in changed] == [["listener.bind"]] * 2


def test_a_second_engine_finds_the_address_taken(make_listening: MakeListening) -> None:
    first = make_listening()
    second = make_listening(start=False)
    table = dict(second.engine.settings["listener"]) | {"bind": [f"127.0.0.1:{first.port}"]}
    second.engine.configure({"listener": table})
    second.engine.start(wait=False)

    assert second.engine.wait_exit() == 75
    said = second.engine.log_file.read_text()
    assert f"127.0.0.1:{first.port}" in said
    assert "Traceback" not in said


def test_a_reload_brings_networks_users_and_certificate_for_new_connections(
    make_listening: MakeListening, tmp_path: Path
) -> None:
    listening = make_listening(tls=True)
    table = dict(listening.engine.settings["listener"])
    with listening.talk() as before:
        before.ehlo()
        first = _certificate(listening.port)
        certify(tmp_path)
        (tmp_path / "users").write_text(f"ann:{HASH}\n")
        listening.reload({"listener": table | {"allow_networks": [], "max_size": 2048}})
        eventually(lambda: _certificate(listening.port) != first, DEADLINE_S, what="the new one")
        with listening.talk() as talk:
            talk.ehlo()
            talk.starttls()
            assert "SIZE 2048" in talk.ehlo()
            assert talk.login("joe", "secret").code == 535
            assert talk.envelope("a@x.test")[1].code == 530
            talk.say("RSET")
            assert talk.login("ann", "secret").code == 235
            queued(talk.mail("a@x.test"))
        assert "SIZE 26214400" in before.ehlo()  # as it began
        assert before.envelope("a@x.test")[1].code == 530  # but for who may send

    (tmp_path / "users").write_text("broken\n")
    listening.engine.signal(signal.SIGHUP)
    (line,) = listening.engine.wait_log("config.rejected")
    assert "users: line 1" in line["error"]


def test_users_that_are_gone_are_told_of_at_the_reload_and_at_the_start(
    make_listening: MakeListening, tmp_path: Path
) -> None:
    listening = make_listening(tls=True, start=False)
    for secret in ("users", "key.pem"):
        (tmp_path / secret).chmod(0o600)
    listening.engine.start()
    table = dict(listening.engine.settings["listener"])
    assert listening.engine.log("config.warned") == []
    (tmp_path / "users").write_text("")
    listening.reload({"listener": table | {"max_size": 4096}})
    (line,) = listening.engine.wait_log("config.warned")
    assert line["level"] == "warning"
    assert f"auth_file {tmp_path / 'users'} holds no user" in line["advice"]
    listening.engine.stop()
    listening.engine.start()
    assert listening.engine.wait_log("config.warned", count=2)[-1]["advice"] == line["advice"]


def test_who_was_logged_in_is_shut_out_by_a_reload(
    make_listening: MakeListening, tmp_path: Path
) -> None:
    listening = make_listening(tls=True, start=False, allow_networks=[])
    (tmp_path / "users").write_text(f"joe:{HASH}\nann:{HASH}\nbob:{HASH}\n")
    listening.engine.start()
    table = dict(listening.engine.settings["listener"])
    talks = {name: _logged_in(listening, name) for name in ("joe", "ann", "bob")}
    for talk in talks.values():
        queued(talk.mail("a@x.test"))
    other = hash_password("other")
    (tmp_path / "users").write_text(f"ann:{other}\nbob:{HASH}\n")
    listening.reload({"listener": table | {"max_size": 4096}})
    eventually(lambda: _size(listening) == "SIZE 4096", DEADLINE_S, what="the new terms")
    for name, codes in {"joe": [250, 421], "ann": [250, 421], "bob": [250, 250]}.items():
        assert [reply.code for reply in talks[name].envelope("a@x.test")] == codes, name


def _logged_in(listening: Listening, user: str) -> Talk:
    talk = listening.talk()
    talk.ehlo()
    talk.starttls()
    talk.ehlo()
    assert talk.login(user, "secret").code == 235
    return talk


def _size(listening: Listening) -> str:
    with listening.talk() as talk:
        return next(line for line in talk.ehlo() if line.startswith("SIZE"))


def _certificate(port: int) -> bytes:
    with Talk(port) as talk:
        talk.ehlo()
        talk.starttls()
        assert isinstance(talk.sock, ssl.SSLSocket)
        found = talk.sock.getpeercert(binary_form=True)
    assert found is not None
    return found


def test_several_processes_share_one_port(make_listening: MakeListening) -> None:
    listening = make_listening(workers=3)
    assert len(listening.engine.live("listener")) == 3
    for pid in listening.engine.live("listener")[:2]:
        os.kill(pid, signal.SIGSTOP)
    try:
        # Whoever is free accepts; connections that a stopped one took would wait for it.
        with listening.talk() as talk:
            talk.ehlo()
            queued(talk.mail("a@x.test"))
    finally:
        for row in listening.engine.rows("SELECT pid FROM workers WHERE kind = 'listener'"):
            os.kill(row.pid, signal.SIGCONT)
