"""A mail host that is written octet by octet, and notes what reaches it in clear.

Contract. ``Host`` listens on one address and runs an *act*, a plain function, in a thread for each
connection. The act has a ``Line``: octets to and from the client, in clear or under TLS, whose
records it may cut, alter, delay or write by itself. Whatever the client sends is looked through as
it came from the wire: words of SMTP or of a message that a third party could have read are kept in
``Host.clear``. Nothing here lasts longer than ``PATIENCE_S``.

Must not know: what a client ought to do, the engine.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from typing import TypeVar

PATIENCE_S = 60.0
MARK = "Confidential-7f3a"
"""A word of each content; in clear it is seen by everybody."""
WORDS = {
    "MAIL": b"MAIL FROM",
    "RCPT": b"RCPT TO",
    "DATA": b"DATA\r\n",
    "BDAT": b"BDAT ",
    "AUTH": b"AUTH ",
    "content": MARK.encode(),
}
_RECORD = 5
_OVERLAP = max(map(len, WORDS.values()))
T = TypeVar("T")


class Gone(Exception):
    """The client closed, or the act is over."""


class Line:
    """One connection.

    Args:
        peer: the accepted socket.
        host: whose it is.

    Attributes:
        tls: the TLS layer, once begun.
        through: every piece of TLS goes out by it; an act may put its own function here.
        put: how octets are told under TLS; an act that makes its records itself sets it.
    """

    def __init__(self, peer: socket.socket, host: Host) -> None:
        peer.settimeout(PATIENCE_S)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peer = peer
        self.host = host
        self.tls: ssl.SSLObject | None = None
        self.through: Callable[[bytes], None] = self.write
        self.put: Callable[[bytes], None] | None = None
        self._tail = b""
        self._read = bytearray()

    # Octets of the wire

    def write(self, octets: bytes) -> None:
        """Write to the wire, as it is.

        Raises:
            Gone: it cannot be written any more.
        """
        try:
            self.peer.sendall(octets)
        except OSError as error:
            raise Gone from error

    def receive(self) -> bytes:
        """What comes next from the wire.

        Raises:
            Gone: nothing will.
        """
        try:
            octets = self.peer.recv(65536)
        except OSError as error:
            raise Gone from error
        if not octets:
            raise Gone
        seen = self._tail + octets
        self.host.clear.update(name for name, word in WORDS.items() if word in seen)
        self._tail = seen[-_OVERLAP:]
        return octets

    # What is said

    def say(self, text: str | bytes) -> None:
        """Tell the client something: in clear, or under TLS once that is on."""
        octets = text.encode("latin-1") if isinstance(text, str) else text
        if self.put is not None:
            self.put(octets)
        elif self.tls is None:
            self.write(octets)
        else:
            self.tls.write(octets)
            self._flush()

    def hear(self) -> bytes:
        """Octets that the client told, however they came.

        Raises:
            Gone: it closed.
        """
        if self.tls is None:
            return self.receive()
        tls = self.tls
        octets = self._tried(lambda: tls.read(65536))
        if not octets:
            raise Gone
        return octets

    def line(self) -> str:
        """The client's next line, without its end."""
        while b"\n" not in self._read:
            self._read += self.hear()
        found, _, rest = bytes(self._read).partition(b"\n")
        self._read[:] = rest
        return found.decode("latin-1").rstrip("\r")

    def content(self, most: int | None = None) -> None:
        """Content up to its final dot, or so many octets of it; thrown away."""
        heard, tail = 0, b"\r\n"
        while True:
            octets = bytes(self._read) or self.hear()
            self._read.clear()
            heard += len(octets)
            tail = (tail + octets)[-5:]
            if tail == b"\r\n.\r\n" or (most is not None and heard >= most):
                return

    # TLS

    def begin_tls(self, context: ssl.SSLContext) -> None:
        """Have a TLS layer; octets that came before it are its first ones."""
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._in.write(bytes(self._read))
        self._read.clear()
        self.tls = context.wrap_bio(self._in, self._out, server_side=True)

    def handshake(self, context: ssl.SSLContext) -> None:
        """Shake hands.

        Raises:
            Gone: it came to nothing.
        """
        self.begin_tls(context)
        assert self.tls is not None
        self._tried(self.tls.do_handshake)

    def notify(self) -> None:
        """Send close_notify."""
        assert self.tls is not None
        with contextlib.suppress(ssl.SSLError):
            self.tls.unwrap()
        self._flush()

    def _tried(self, step: Callable[[], T]) -> T:
        while True:
            try:
                found = step()
            except ssl.SSLWantReadError:
                self._flush()
                self._in.write(self.receive())
                continue
            except ssl.SSLError as error:
                with contextlib.suppress(Gone):
                    self._flush()  # an alert, say
                raise Gone from error
            self._flush()
            return found

    def _flush(self) -> None:
        octets = self._out.read()
        if octets:
            self.through(octets)

    # Ends

    def close(self) -> None:
        """FIN; what still comes is read, so that no reset goes out.

        Raises:
            Gone: when the client has closed, too.
        """
        with contextlib.suppress(OSError):
            self.peer.shutdown(socket.SHUT_WR)
        self.listen()

    def reset(self) -> None:
        """RST.

        Raises:
            Gone: always.
        """
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.peer.close()
        raise Gone

    def listen(self) -> None:
        """Say nothing, read everything.

        Raises:
            Gone: when the client has had enough.
        """
        while True:
            self.receive()

    def shut(self) -> None:
        """Read nothing, say nothing: the window shuts.

        Raises:
            Gone: when the host is stopped, or after ``PATIENCE_S``.
        """
        ends = select.poll()
        ends.register(self.peer, select.POLLRDHUP)
        ends.poll(PATIENCE_S * 1000)
        raise Gone


def records(octets: bytes) -> list[bytes]:
    """The TLS records of a piece that holds whole ones."""
    found, at = [], 0
    while at < len(octets):
        end = at + _RECORD + int.from_bytes(octets[at + 3 : at + _RECORD])
        found.append(octets[at:end])
        at = end
    return found


Act = Callable[[Line], None]


class Host:
    """A listening address.

    Args:
        address, port: where.
        act: run for each connection; may be changed between two.
        window: octets that are taken without being read, about; None: what the system gives.

    Attributes:
        clear: names of ``WORDS`` that came in clear.
        connections: how many there were.
        contents: how many came to their end.
        faults: what went wrong in an act, which is a fault of the test.
    """

    def __init__(self, address: str, port: int, act: Act, *, window: int | None = None) -> None:
        self.address, self.act = address, act
        self.clear: set[str] = set()
        self.connections = self.contents = 0
        self.faults: list[Exception] = []
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if window is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        self._socket.bind((address, port))
        self._socket.listen(64)
        self._lines: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._over = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            with self._lock:
                if self._over:
                    peer.close()
                    return
                self._lines.add(peer)
                self.connections += 1
            threading.Thread(target=self._run, args=(peer, self.act), daemon=True).start()

    def _run(self, peer: socket.socket, act: Act) -> None:
        line = Line(peer, self)
        try:
            with contextlib.suppress(Gone):
                act(line)
            with contextlib.suppress(Gone):
                line.close()  # in order, also where the act ended early: a reset is one of its own
        except Exception as error:
            if not self._over:
                self.faults.append(error)
        finally:
            peer.close()
            with self._lock:
                self._lines.discard(peer)

    def stop(self) -> None:
        """Cut everything."""
        with self._lock:
            self._over = True
            lines = list(self._lines)
        for one in (self._socket, *lines):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._socket.close()
