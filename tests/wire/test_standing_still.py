"""A worker that stood still (SIGSTOP, a frozen container): what it was told meanwhile counts."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest

from mailstrom.smtp.client import Fault
from mailstrom.types import Stage
from mailstrom_workers.pump import LATE_S
from mailstrom_workers.wire import Target
from tests.wire.peer import CONTENT, ENVELOPE, code, opened, quick, run, transact

DOT_S = 0.2


class Server:
    """One session, on a thread of its own; told when to answer.

    Attributes:
        bell: written to when it has the whole content.
    """

    def __init__(self) -> None:
        self.may_answer, self.answered = threading.Event(), threading.Event()
        self.bell, self._rope = socket.socketpair()
        self._listening = socket.create_server(("127.0.0.1", 0))
        host, port = self._listening.getsockname()
        self.target = Target(host="mx.example.org", address=host, port=port)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.may_answer.set()
        self._listening.close()
        self._thread.join(60)
        self._rope.close()

    def _serve(self) -> None:
        connection, _ = self._listening.accept()
        with connection, connection.makefile("rb") as heard:
            connection.sendall(b"220 hi\r\n")
            for line in heard:
                if line.startswith(b"DATA"):
                    connection.sendall(b"354 go\r\n")
                elif line == b".\r\n":
                    self._rope.send(b"!")
                    self.may_answer.wait(60)
                    connection.sendall(b"250 taken\r\n")
                    self.answered.set()
                elif line.startswith(b"QUIT") or not line.endswith(b"\n"):
                    return
                elif line.split(b" ")[0].strip() in (b"EHLO", b"MAIL", b"RCPT"):
                    connection.sendall(b"250 fine\r\n")


@pytest.mark.parametrize("answers", [True, False])
def test_a_reply_that_came_while_this_process_stood_still_is_heard(answers: bool) -> None:
    class StandStill(asyncio.Protocol):
        """Between hearing one connection and the next, where uvloop goes on with its timers."""

        def data_received(self, data: bytes) -> None:
            if answers:
                server.may_answer.set()
                assert server.answered.wait(60)
            until = time.monotonic() + DOT_S + 2 * LATE_S
            while (left := until - time.monotonic()) > 0:
                time.sleep(left)

    async def body() -> None:
        loop = asyncio.get_running_loop()
        ringing, _ = await loop.create_connection(StandStill, sock=server.bell)
        session = await opened(server.target, quick(dot=DOT_S))
        end = await transact(session, ENVELOPE, CONTENT)
        ringing.close()
        if answers:
            assert (end.fault, code(end, "dot")) == (None, 250)
        else:
            assert (end.fault, end.stage) == (Fault.TIMEOUT, Stage.DOT)
        await session.quit()

    server = Server()
    try:
        run(body)
    finally:
        server.close()
