"""What stands around a measurement: smtp-sink and its counter, smtp-source, the delay proxy, DNS.

Contract. Loopback only, ports that were free. :class:`Sink` is Debian's smtp-sink with its running
count (``-c``), read every few milliseconds: what has arrived is told by a program that is not ours.
It announces PIPELINING and neither CHUNKING nor TLS. The proxy, the DNS server, the witness and the
idle clients are programs of their own (``programs/``), so that their work is not the harness's; so
is ``smtp-source``, which hands mail in.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path

import pytest

from tests.support import debian
from tests.support.sockets import accepts, eventually, free_port
from tools.bench.processes import Started

PROGRAMS = Path(__file__).resolve().parent / "programs"
READ_S = 0.003
STALL_S = 20.0
SESSIONS = 1_000
"""At once. Beyond its own bound, 256, smtp-sink lets connections wait, which would be measured."""
READY_S = 30.0
_COUNT = re.compile(rb"mesg=(\d+)")


def postfix_tree() -> debian.Unpacked:
    """Debian's Postfix, unpacked.

    Raises:
        RuntimeError: it cannot be had; what a test would be skipped with.
    """
    try:
        return debian.postfix()
    except (pytest.skip.Exception, pytest.fail.Exception) as missing:
        raise RuntimeError(str(missing)) from None


SOURCE_S = 300.0
SOURCE_SESSIONS = 20


def source(
    port: int, messages: int, *, kept: bool = True, sessions: int = SOURCE_SESSIONS
) -> tuple[float, float]:
    """Hand messages of 1 KiB to a port of this machine by Postfix's smtp-source.

    Args:
        kept: over connections that are kept; else each message has one of its own.
        sessions: at once.

    Returns:
        monotonic begin and end.

    Raises:
        RuntimeError: a message was refused, or a connection.
    """
    tree = postfix_tree()
    begin = time.monotonic()
    ran = subprocess.run(
        [tree.program("usr/sbin/smtp-source"), *(["-d"] if kept else []), "-s", str(sessions),
         "-m", str(messages), "-l", "1024", "-f", "a@bench.test", "-t", "u@d0.test",
         f"127.0.0.1:{port}"],
        env=tree.environ(), stdin=subprocess.DEVNULL, capture_output=True, timeout=SOURCE_S,
        check=False,
    )  # fmt: skip
    if ran.returncode:
        raise RuntimeError(f"smtp-source: {ran.stderr.decode(errors='replace')[-300:]}")
    return begin, time.monotonic()


def said(started: Started) -> dict[str, object]:
    """The JSON line with which one of our programs says that it is ready.

    Raises:
        RuntimeError: it ended instead; with what it logged.
    """
    assert started.process.stdout is not None
    line = started.process.stdout.readline()
    if not line:
        raise RuntimeError(f"{started.process.args!r} ended at once: {started.words()}")
    found: dict[str, object] = json.loads(line)
    return found


class Sink:
    """smtp-sink, counting.

    Args:
        port: where it listens; None: one that is free.

    Attributes:
        address: host and port to deliver to.
        count: messages that have arrived.
    """

    def __init__(self, port: int | None = None) -> None:
        tree = postfix_tree()
        self.port = port or free_port()
        sink = tree.program("usr/sbin/smtp-sink")
        command: list[str | Path] = [sink, "-c", "-m", str(SESSIONS)]
        if os.getuid() == 0:
            command += ["-u", "nobody"]
        command += [f"127.0.0.1:{self.port}", "2048"]
        self._started = Started(command, environ=tree.environ(), piped=True)
        self._changed = threading.Condition()
        self._points: list[tuple[float, int]] = []
        self.count = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        eventually(lambda: accepts("127.0.0.1", self.port), READY_S, what="smtp-sink listening")

    def _read(self) -> None:
        assert self._started.process.stdout is not None
        # Its own descriptor: stopping the program closes the other one, perhaps in mid-read.
        with FileIO(os.dup(self._started.process.stdout.fileno())) as pipe:
            self._follow(pipe)

    def _follow(self, pipe: FileIO) -> None:
        rest = b""
        while data := pipe.read(1 << 16):
            now = time.monotonic()
            rest = (rest + data)[-200:]
            numbers = _COUNT.findall(rest)
            if numbers and int(numbers[-1]) > self.count:
                with self._changed:
                    self.count = int(numbers[-1])
                    self._points.append((now, self.count))
                    self._changed.notify_all()
            time.sleep(READ_S)

    def wait(self, n: int, timeout: float, *, stall: float = STALL_S) -> bool:
        """Whether ``n`` messages have arrived before the time is over or nothing more comes.

        Args:
            timeout: seconds in all.
            stall: seconds without an arrival after which it is given up.
        """
        now = time.monotonic()
        deadline, moved, last = now + timeout, now, self.count
        with self._changed:
            while self.count < n:
                self._changed.wait(0.25)
                now = time.monotonic()
                if self.count != last:
                    moved, last = now, self.count
                if now > deadline or now - moved > stall:
                    return self.count >= n
        return True

    def at(self, n: int) -> float:
        """Monotonic time at which the n-th message had arrived.

        Raises:
            LookupError: it has not.
        """
        for when, count in self._points:
            if count >= n:
                return when
        raise LookupError(f"{self.count} of {n} arrived")

    def rate(self, first: int, last: int) -> float:
        """Arrivals a second between two messages, by their numbers from 1."""
        seen = [(when, count) for when, count in self._points if count >= first]
        begin, begun = seen[0]
        end, ended = next((when, count) for when, count in seen if count >= last)
        return (ended - begun) / max(end - begin, 1e-6)

    def close(self) -> None:
        """Ends it."""
        self._started.stop()
        self._reader.join()


class Delay:
    """A proxy in front of a port that keeps every byte half a round trip in each direction.

    Args:
        port: where the other side listens, on 127.0.0.1.
        rtt_ms: the round trip; connecting costs one, the greeting comes after the second.
        addresses: loopback addresses to listen on, all with one port.
        silent: those that accept and never say a word.
    """

    def __init__(
        self,
        port: int,
        rtt_ms: float,
        *,
        addresses: Sequence[str] = ("127.0.0.1",),
        silent: Sequence[str] = (),
    ) -> None:
        self.port = free_port(*addresses[:50])
        self._started = Started([sys.executable, "-P", PROGRAMS / "delay.py"], piped=True)
        assert self._started.process.stdin is not None
        plan = {
            "listen": list(addresses), "port": self.port, "silent": list(silent),
            "to": port, "rtt_ms": rtt_ms,
        }  # fmt: skip
        self._started.process.stdin.write(json.dumps(plan).encode() + b"\n")
        self._started.process.stdin.flush()
        said(self._started)

    def close(self) -> None:
        """Ends it."""
        self._started.stop()


class Names:
    """A DNS server for a zone, see ``programs/names.py``.

    Args:
        zone: by name, as its file holds it.
        home: a directory for that file.
    """

    def __init__(self, zone: Mapping[str, object], home: Path) -> None:
        file = home / "zone.json"
        file.write_text(json.dumps(zone), encoding="utf-8")
        self._started = Started(
            [sys.executable, "-P", PROGRAMS / "names.py", file], piped=True, log=home / "dns.log"
        )
        self.port = int(str(said(self._started)["port"]))

    def close(self) -> None:
        """Ends it."""
        self._started.stop()


class Witness:
    """A mail host that says when each message's connection, MAIL and end came.

    Read :meth:`arrivals` after the messages were delivered.
    """

    def __init__(self, home: Path) -> None:
        self.port = free_port()
        self._file = home / f"witness-{self.port}.jsonl"
        self._started = Started(
            [sys.executable, "-P", PROGRAMS / "witness.py", str(self.port), self._file], piped=True
        )
        said(self._started)

    def arrivals(self) -> Iterator[dict[str, float | str]]:
        """One for each message: ``sender``, and monotonic ``connected``, ``mail``, ``done``."""
        for line in self._file.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)

    def close(self) -> None:
        """Ends it."""
        self._started.stop()


class Idlers:
    """Connections to a mail server that have said EHLO, and nothing since.

    Args:
        port: of the server, on 127.0.0.1.
        number: of connections, all open once this is made.

    Raises:
        RuntimeError: the server did not take them all.
    """

    def __init__(self, port: int, number: int) -> None:
        self._started = Started(
            [sys.executable, "-P", PROGRAMS / "idlers.py", str(port), str(number)], piped=True
        )
        try:
            found = said(self._started)
            if found.get("open") != number:
                raise RuntimeError(f"{found.get('open')} of {number} connections: {found}")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends them."""
        self._started.stop()
