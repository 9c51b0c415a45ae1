"""Fuzz targets off the wire of SMTP: DNS answers, configuration files, text for terminals."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import struct
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mailstrom.config.loading import from_json, load, to_json
from mailstrom.errors import ConfigError
from mailstrom.logforms import ConsoleForm, JsonForm
from mailstrom.logstream import PIPE_BUF
from mailstrom.printable import printable
from mailstrom.smtp.reply import visible
from mailstrom_workers import dnswire, resolver
from mailstrom_workers.dnswire import Kind, Response, Unreadable
from mailstrom_workers.nameservers import Unanswered
from mailstrom_workers.resolver import Resolver
from tests.hostile.fuzz_choices import Choices

DOMAIN = "example.org"
_CLEAN = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*").fullmatch
MOST_QUESTIONS = 3 * (resolver.MAX_LINKS + 1)


class _Answers:
    """Nameservers that answer from the input; every answer is the one to the question."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.asked = 0

    async def ask(self, name: str, kind: Kind, deadline: float) -> Response:
        self.asked += 1
        asked = dnswire.question(7, name, kind)
        if self.choices.over:
            raise Unanswered("nobody answered")
        wire = answer(self.choices, asked)
        try:
            found = dnswire.read(wire, asked)
        except Unreadable as error:
            raise Unanswered(str(error)) from error
        if found is None or found.truncated or found.rcode not in (0, 3):
            raise Unanswered("no answer")
        return found


def answer(choices: Choices, asked: bytes) -> bytes:
    """A message that answers this question with octets of the input."""
    flags = 0x8000 | choices.one_of((0, 3, 2, 0x200, 5))
    counts = (choices.below(8), choices.below(3))
    body = b"".join([_record(choices) for _ in range(choices.below(6))]) + choices.octets()
    return asked[:2] + struct.pack("!HHHHH", flags, 1, *counts, 0) + asked[12:] + body


_NAMES = (
    b"\xc0\x0c", b"\0", b"\3abc\0", b"\3abc\xc0\x0c", b"\xc0\x2b", b"\1\0\xc0\x0c",
    b"\3a.b\0", b"\2\r\n\0", b"\x091.2.3.4\0\0", b"\x3f" + b"a" * 63 + b"\xc0\x0c",
    b"\xc0\x0d", b"\4a b\x1b\0",
)  # fmt: skip


def _record(choices: Choices) -> bytes:
    owner, kind = choices.one_of(_NAMES), choices.one_of((15, 5, 1, 28, 6, 255))
    ttl = choices.one_of((300, 0, 1 << 31, (1 << 32) - 1))
    match kind:
        case 15:
            data = struct.pack("!H", choices.below(4)) + choices.one_of(_NAMES)
        case 5:
            data = choices.one_of(_NAMES)
        case 1:
            data = choices.one_of((b"\xc0\0\2\1", b"\x7f\0\0\1", b"\x08\x08\x08\x08", b"123"))
        case 28:
            data = choices.one_of((b"\x20\1" + b"\7" * 14, b"\0" * 15 + b"\1", b"\0"))
        case _:
            data = choices.octets(40)
    size = len(data) + choices.one_of((0, 0, 0, 1, 255))
    return owner + struct.pack("!HHIH", kind, 1, ttl, size) + data


def dns(data: bytes) -> None:
    """Any answer: a documented error or a value; no name comes out that is none, no query storm."""
    for kind in ("MX", "A"):
        _wire(data, kind)
    _loop().run_until_complete(_resolved(Choices(data)))


def _wire(data: bytes, kind: Kind) -> None:
    """The message as it stands, as if it fitted."""
    asked = dnswire.question(7, DOMAIN, kind)
    for wire in (data, asked[:2] + b"\x80" + data[:9] + asked[12:] + data[9:]):
        try:
            found = dnswire.read(wire, asked)
        except Unreadable as error:
            assert str(error)
            continue
        if found is None:
            continue
        assert found.links <= dnswire.MAX_LINKS + 1
        assert 0 <= found.ttl_s <= 0x7FFFFFFF
        for number, what in found.records:
            assert 0 <= number <= 0xFFFF
            if isinstance(what, str):
                ipaddress.ip_address(what)
        for _, text in resolver._records(found):
            assert text in ("", " ") or set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.:")


async def _resolved(choices: Choices) -> None:
    answers = _Answers(choices)
    one = Resolver([("127.0.0.1", 53)], random=lambda: 0.5)
    one._nameservers = answers  # type: ignore[assignment]
    route = await one.route(DOMAIN)
    assert answers.asked <= MOST_QUESTIONS, "a storm of questions"
    assert len(route.hosts) <= 50
    assert 0 < route.ttl_s <= 3600
    assert route.error is None or (route.error.isprintable() and len(route.error) < 1000)
    assert (not route.hosts) == (route.error is not None)
    for host in route.hosts[:3]:
        assert _CLEAN(host.name), host.name
        assert len(host.name) <= 253
        assert not _is_address(host.name), "a host by its address"
        found = await one.addresses(host.name)
        assert len(found.ips) <= 5
        assert bool(found.ips) == (found.error is None)
        assert not [ip for ip in found.ips if ipaddress.ip_address(ip).is_loopback]
    await one.close()


def _is_address(text: str) -> bool:
    try:
        socket.inet_aton(text)
    except OSError:
        return False
    return text.count(".") == 3


_kept: list[asyncio.AbstractEventLoop] = []


def _loop() -> asyncio.AbstractEventLoop:
    if not _kept:
        _kept.append(asyncio.new_event_loop())
    return _kept[0]


# Configuration


_HEAD = b'hostname = "a.example.net"\nstore = "/tmp/spool.db"\n'


def configuration(data: bytes) -> None:
    """Any file is a configuration or a ConfigError of printable lines."""
    with scratch(data if data[:1] == b"#" else _HEAD + data) as name:
        try:
            found = load(name, environ={})
        except ConfigError as error:
            _harmless(str(error).replace("\n", ""))
            assert len(str(error)) < 60_000, "an error as long as the file"
            return
    assert from_json(to_json(found)) == found


@contextmanager
def scratch(data: bytes) -> Iterator[str]:
    """A file that holds this, in memory where that can be."""
    folder = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".toml") as file:
        file.write(data)
        file.flush()
        yield file.name


# Logs and terminals


_NEVER = {"Cc", "Zl", "Zp", "Cs"}
_TURNS = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_BOUND = {"worker": "w1"}
_FORMS: list[Callable[..., bytes]] = []


def printing(data: bytes) -> None:
    """Foreign text becomes one line that moves no cursor and forges nothing."""
    choices = Choices(data)
    limit = 1 + choices.below(255)
    text = choices.rest().decode("utf-8", "surrogateescape")
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert printable(shown, limit) == shown
    _harmless(shown)
    _harmless(visible(text))
    assert visible(text).isprintable()
    if not _FORMS:
        _FORMS.extend((JsonForm(), ConsoleForm(colors=False)))
    for form in _FORMS:
        line = form("info", "worker.ready", {"text": text, "list": [text] * 9}, _BOUND)
        assert len(line) < PIPE_BUF
        assert b"\n" not in line
        assert b"\r" not in line
        _harmless(line.decode())


def _harmless(text: str) -> None:
    for char in text:
        assert unicodedata.category(char) not in _NEVER, f"{char!a} goes to the terminal"
        assert char not in _TURNS, f"{char!a} goes to the terminal"
