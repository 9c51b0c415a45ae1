"""Listeners as the supervisor's children: their sockets, their turn in a drain, their restarts."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.sockets import accepts, eventually, free_port

if TYPE_CHECKING:
    from tests.supervisor.conftest import Stage


def _listen_at(stage: Stage, *binds: str, workers: int = 1) -> None:
    text = stage.config.read_text()
    shown = ", ".join(f'"{bind}"' for bind in binds)
    stage.config.write_text(f"{text}[listener]\nbind = [{shown}]\nworkers = {workers}\n")


def test_each_listener_inherits_the_sockets_and_nobody_else_does(stage: Stage) -> None:
    ports = [free_port(), free_port()]
    _listen_at(stage, *(f"127.0.0.1:{port}" for port in ports), workers=2)
    supervised = stage.start(delivery="well", listener="well")
    supervised.wait("supervisor.ready")

    hellos = supervised.wait_traced("hello", count=4)
    for hello in hellos:
        extra = set(hello["descriptors"]) - {0, 1, 2, hello["status_fd"]}
        assert len(hello["sockets"]) == (2 if hello["kind"] == "listener" else 0)
        assert set(hello["sockets"]) <= extra
        assert (hello["listening"] == [f"127.0.0.1:{port}" for port in ports]) is (
            hello["kind"] == "listener"
        )
    assert all(accepts("127.0.0.1", port) for port in ports)
    supervised.signal(signal.SIGTERM)
    assert supervised.wait_exit() == 0
    assert not any(accepts("127.0.0.1", port) for port in ports)


def test_connections_wait_for_the_next_listener(stage: Stage) -> None:
    port = free_port()
    _listen_at(stage, f"127.0.0.1:{port}")
    supervised = stage.start(listener="well")
    supervised.wait("supervisor.ready")
    (first,) = supervised.wait("worker.started", kind="listener")
    with socket.create_connection(("127.0.0.1", port), 30):
        os.kill(first["pid"], signal.SIGKILL)
        again = supervised.wait("worker.started", kind="listener", count=2)[-1]
        (hello,) = supervised.wait_traced("hello", pid=again["pid"])
        assert hello["listening"] == [f"127.0.0.1:{port}"]
        assert hello["restarts"] == 1
    supervised.wait_traced("lapse", dead=first["pid"])
    supervised.signal(signal.SIGTERM)
    assert supervised.wait_exit() == 0


def test_listeners_drain_first_and_the_janitor_last(stage: Stage) -> None:
    _listen_at(stage, f"127.0.0.1:{free_port()}")
    supervised = stage.start(listener="well", listeners_s=3600.0)
    supervised.wait("supervisor.ready")
    supervised.signal(signal.SIGTERM)
    assert supervised.wait_exit() == 0
    assert [line["kind"] for line in supervised.traced("drain")] == [
        "listener",
        "delivery",
        "janitor",
    ]


def test_a_listener_that_takes_its_time_does_not_take_the_deliveries(stage: Stage) -> None:
    stage.write_config(drain_timeout="3600s")
    _listen_at(stage, f"127.0.0.1:{free_port()}")
    supervised = stage.start(listener="stubborn", listeners_s=3600.0)
    supervised.wait("supervisor.ready")
    supervised.signal(signal.SIGTERM)
    supervised.wait("supervisor.draining")
    assert supervised.traced("drain", kind="delivery") == []
    stage.pass_time(3601.0)
    (told,) = supervised.wait_traced("drain", kind="delivery")
    # reaped, and no longer one that has not ended within the time
    eventually(lambda: not Path(f"/proc/{told['pid']}").exists(), what="the delivery's end")
    stage.pass_time(20_000.0)
    (lost,) = supervised.wait("worker.lost")
    assert lost["kind"] == "listener"
    assert supervised.wait_exit() == 1


def test_an_address_that_is_taken_ends_the_start(stage: Stage) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        _listen_at(stage, f"127.0.0.1:{free_port()}", address)
        supervised = stage.start(listener="well")
        assert supervised.wait_exit() == 75
    assert address in supervised.stderr
    assert supervised.lines("worker.started") == []
    assert "Traceback" not in supervised.stderr
