"""What doctor makes of the listener's ports, and who has them."""

from __future__ import annotations

import os
import socket

import pytest

from mailstrom.config import Bind
from mailstrom.doctor import ports
from mailstrom.doctor.finding import Finding
from mailstrom.outside import Port
from tests.unit.doctor.facts import NOW, config

DONE = Port(bind="127.0.0.1:25", stage="done", connected=True, banner="220 mx ESMTP", ms=2.0)
REFUSED = Port(bind="127.0.0.1:25", stage="connect", error="Connection refused")
SILENT = Port(bind="127.0.0.1:25", stage="greeting", connected=True, error="no answer within 4 s")


def judged(port: Port, running: bool | None, holder: str | None = None) -> list[Finding]:
    found = ports.checks(
        [port],
        config(listener={"bind": ["127.0.0.1:25"]}),
        running=running,
        file=None,
        now_ms=NOW,
        holder=lambda bind: holder,
    )
    return list(found)


@pytest.mark.parametrize(
    ("port", "running", "holder", "level"),
    [
        (DONE, True, None, "ok"),
        (DONE, None, None, "ok"),
        (DONE, False, None, "problem"),
        (DONE, False, "process 7 (exim4)", "problem"),
        (REFUSED, True, None, "problem"),
        (REFUSED, None, None, "warning"),
        (REFUSED, False, None, None),
        (REFUSED, False, "process 7 (exim4)", "problem"),
        (SILENT, True, None, "problem"),
        (SILENT, False, None, "problem"),
    ],
)
def test_what_a_port_means(
    port: Port, running: bool | None, holder: str | None, level: str | None
) -> None:
    found = judged(port, running, holder)
    assert [str(one.level) for one in found] == ([] if level is None else [level])
    assert all(one.check == "listener.port" and "127.0.0.1:25" in one.found for one in found)
    if level == "problem":
        assert found[0].advice
    if holder is not None:
        assert holder in found[0].found


@pytest.mark.parametrize(
    ("bound", "asked", "same"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("::1", "::", True),
        ("::1", "127.0.0.1", False),
    ],
)
def test_who_has_a_port(bound: str, asked: str, same: bool) -> None:
    family = socket.AF_INET6 if ":" in bound else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.bind((bound, 0))
        number = listening.getsockname()[1]
        assert ports.holder(Bind(asked, number, False)) is None  # nobody listens yet
        listening.listen()
        found = ports.holder(Bind(asked, number, False))
    if same:
        assert found is not None
        assert found.startswith(f"process {os.getpid()} (")
    else:
        assert found is None
