"""``mailstrom doctor`` at the ports of a listener, with an engine and without."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.scenarios.test_doctor import Told, doctor
from tests.support.listening import MakeListening, certify
from tests.support.sockets import free_port


def met(told: Told) -> tuple[str, str]:
    """Level and sentence of what it says of the port."""
    (found,) = told.found["listener.port"]
    return found["level"], found["found"]


def test_what_a_port_offers_is_told(make_listening: MakeListening) -> None:
    listening = make_listening(tls=True)
    level, found = met(doctor(listening.engine))
    assert level == "ok"
    assert f"127.0.0.1:{listening.port} answers" in found
    assert "STARTTLS (TLSv1.3, a certificate not for sender.test until 3" in found
    assert found.endswith("and AUTH LOGIN PLAIN")


def test_tls_from_the_start(make_listening: MakeListening) -> None:
    port = free_port()
    listening = make_listening(tls=True, bind=[f"127.0.0.1:{port}/tls"])
    level, found = met(doctor(listening.engine))
    assert level == "ok"
    assert f":{port}/tls answers" in found
    assert "TLS from the start (TLSv1.3" in found


def test_a_port_that_is_for_a_proxy_is_met_as_by_one(make_listening: MakeListening) -> None:
    listening = make_listening(proxy_networks=["127.0.0.0/8"])
    level, found = met(doctor(listening.engine))
    assert level == "ok"
    assert found.endswith("offers no TLS and no AUTH")


def test_a_port_that_the_engine_does_not_have_is_a_problem(make_listening: MakeListening) -> None:
    listening = make_listening()
    port = free_port()
    listening.engine.configure({"listener": {"bind": [f"127.0.0.1:{port}"]}})
    told = doctor(listening.engine)
    level, found = met(told)
    assert (level, told.code) == ("problem", 1)
    assert f"127.0.0.1:{port} cannot be connected to, though an engine runs" in found
    assert "Restart the engine" in told.found["listener.port"][0]["advice"]


def test_clients_that_are_turned_away_are_a_warning(make_listening: MakeListening) -> None:
    listening = make_listening(max_connections=1)
    with listening.talk() as talk:
        talk.ehlo()
        level, found = met(doctor(listening.engine))
    assert level == "warning"
    assert "421" in found


def test_a_certificate_that_was_renewed_and_not_taken_over(
    make_listening: MakeListening, tmp_path: Path
) -> None:
    listening = make_listening(tls=True)
    certify(tmp_path)
    told = doctor(listening.engine)
    assert told.levels["listener.shown"] == "warning"
    assert "reload" in told.found["listener.shown"][0]["advice"]


@contextmanager
def taken(address: str, port: int) -> Iterator[None]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as other:
        other.bind((address, port))
        other.listen()
        yield


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_without_an_engine_who_has_the_port_is_named(
    make_listening: MakeListening, address: str
) -> None:
    listening = make_listening(start=False)
    assert "listener.port" not in doctor(listening.engine).levels
    with taken(address, listening.port):
        told = doctor(listening.engine)
    level, found = met(told)
    assert level == "problem"
    assert f"is taken by process {os.getpid()} (" in found
