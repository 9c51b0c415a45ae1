"""What a worker asks its machine."""

from __future__ import annotations

import errno
import socket

import pytest

from mailstrom_workers.machine import local_address


def test_our_end_of_a_connection_is_told_without_a_word_sent() -> None:
    assert local_address("127.0.0.1", 9) == "127.0.0.1"


def test_without_a_descriptor_it_is_the_connection_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", none)
    assert local_address("192.0.2.1", 25) == "127.0.0.1"
