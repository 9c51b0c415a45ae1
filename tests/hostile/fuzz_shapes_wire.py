"""The worst shapes of what comes over a wire: replies, content, commands, DNS answers."""

from __future__ import annotations

from collections.abc import Callable

from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.framing import DotStuffer, DotUnstuffer, LineReader
from mailstrom.smtp.reply import ReplyParser
from mailstrom.smtp.server import ServerDialogue
from mailstrom_workers import dnswire
from tests.hostile.fuzz_shapes import Done, Shapes

shape = Shapes()
_CHUNK = 16_384


def _fed(reader: Callable[[], Callable[[bytes], object]], data: bytes, size: int) -> Done:
    def done() -> None:
        feed = reader()
        for at in range(0, len(data), size):
            feed(data[at : at + size])

    return done


def _lines() -> Callable[[bytes], object]:
    reader = LineReader(4096)

    def feed(data: bytes) -> None:
        reader.feed(data)
        while reader.take_line() is not None:
            pass

    return feed


def _session() -> Callable[[bytes], object]:
    dialogue = ServerDialogue(Capabilities(name="mx", chunking=True), error_limit=1 << 30)

    def feed(data: bytes) -> None:
        dialogue.feed(data)
        while dialogue.next_event() is not None:
            dialogue.take_output()

    feed(b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n")
    return feed


def _answered(records: bytes, count: int) -> Done:
    asked = dnswire.question(7, "example.org", "MX")
    wire = asked[:2] + b"\x84\0\0\1" + count.to_bytes(2, "big") + b"\0\0\0\0" + asked[12:] + records
    return lambda: dnswire.read(wire, asked)


_RECORD = b"\xc0\x0c\0\x0f\0\1\0\0\1\x2c\0\4\0\1\xc0\x0c"
# a record of a name of many labels, for others to point to
_LONG = b"\1a" * 120 + b"\xc0\x0c" + _RECORD[2:]


def _pointing(n: int) -> Done:
    at = 12 + len(b"\7example\3org\0") + 4
    record = bytes([0xC0 | at >> 8, at & 0xFF]) + _RECORD[2:]
    return _answered(_LONG + record * n, n + 1)


@shape("replies", "an endless line", octets=1)
def replies_an_endless_line(n: int) -> Done:
    return _fed(lambda: ReplyParser().feed, b"2" * n, 1000)


@shape("replies", "an endless reply", octets=6)
def replies_an_endless_reply(n: int) -> Done:
    return _fed(lambda: ReplyParser().feed, b"250-a\n" * n, 1000)


@shape("replies", "many replies", octets=8)
def replies_many_replies(n: int) -> Done:
    return _fed(lambda: ReplyParser().feed, b"250 ok\r\n" * n, _CHUNK)


@shape("replies", "octet by octet", octets=8)
def replies_octet_by_octet(n: int) -> Done:
    return _fed(lambda: ReplyParser().feed, b"250 ok\r\n" * n, 1)


@shape("framing", "dots", octets=4)
def framing_dots(n: int) -> Done:
    return _fed(lambda: DotUnstuffer().feed, b"..\r\n" * n, _CHUNK)


@shape("framing", "nearly ended, octet by octet", octets=4)
def framing_nearly_ended_octet_by_octet(n: int) -> Done:
    return _fed(lambda: DotUnstuffer().feed, b"\r\n.\r" * n, 1)


@shape("framing", "dots that leave", octets=3)
def framing_dots_that_leave(n: int) -> Done:
    return _fed(lambda: DotStuffer().feed, b".\r\n" * n, _CHUNK)


@shape("framing", "a command line without end", octets=1)
def framing_a_command_line_without_end(n: int) -> Done:
    return _fed(_lines, b"a" * n, 1000)


@shape("framing", "CRs without LF", octets=1)
def framing_crs_without_lf(n: int) -> Done:
    return _fed(_lines, b"\r" * n, 100)


@shape("server", "commands in one flight", octets=6)
def server_commands_in_one_flight(n: int) -> Done:
    return _fed(_session, b"NOOP\r\n" * n, _CHUNK)


@shape("server", "empty chunks", octets=8)
def server_empty_chunks(n: int) -> Done:
    return _fed(_session, b"BDAT 0\r\n" * n, _CHUNK)


@shape("server", "recipients", octets=15)
def server_recipients(n: int) -> Done:
    return _fed(_session, b"RCPT TO:<c@d>\r\n" * n, _CHUNK)


@shape("server", "a path of quotes", octets=2)
def server_a_path_of_quotes(n: int) -> Done:
    return _fed(_session, b'RCPT TO:<"' + b"\\a" * n + b"\r\n", _CHUNK)


@shape("dns", "records", octets=16, most=4000)
def dns_records(n: int) -> Done:
    return _answered(_RECORD * n, n)


@shape("dns", "records of a long name", octets=16, most=4000)
def dns_records_of_a_long_name(n: int) -> Done:
    return _pointing(n)
