"""The worst shapes of what comes over a wire: replies, content, commands, DNS answers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from mailstrom.smtp.capabilities import Capabilities
from mailstrom.smtp.framing import DotStuffer
from mailstrom.smtp.inbox import DotUnstuffer, Inbox, LineReader
from mailstrom.smtp.proxy import BadProxy, ProxyReader
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
    reader, inbox = LineReader(4096), Inbox()

    def feed(data: bytes) -> None:
        inbox.feed(data)
        while reader.take(inbox) is not None:
            pass

    return feed


def _content() -> Callable[[bytes], object]:
    unstuffer, inbox = DotUnstuffer(), Inbox()

    def feed(data: bytes) -> None:
        inbox.feed(data)
        while unstuffer.take(inbox):
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


def _fixing() -> Callable[[bytes], object]:
    """As ``_session``, its content begun: line ends are mended, parameters are known."""
    offer = Capabilities(name="mx", chunking=True, dsn=True, smtputf8=True)
    dialogue = ServerDialogue(offer, error_limit=1 << 30, bare_newlines="fix")

    def feed(data: bytes) -> None:
        dialogue.feed(data)
        while dialogue.next_event() is not None:
            dialogue.take_output()

    feed(b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n")
    return feed


def _proxied() -> Callable[[bytes], object]:
    reader = ProxyReader()

    def feed(data: bytes) -> None:
        with suppress(BadProxy, RuntimeError):  # RuntimeError: it was whole
            reader.feed(data)

    return feed


def _at_once(data: bytes) -> Done:
    return _fed(_session, data, len(data))


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
    return _fed(_content, b"..\r\n" * n, _CHUNK)


@shape("framing", "nearly ended, octet by octet", octets=4)
def framing_nearly_ended_octet_by_octet(n: int) -> Done:
    return _fed(_content, b"\r\n.\r" * n, 1)


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


@shape("server", "commands in one input", octets=6)
def server_commands_in_one_input(n: int) -> Done:
    return _at_once(b"NOOP\r\n" * n)


@shape("server", "lines that are no command in one input", octets=3)
def server_lines_that_are_no_command_in_one_input(n: int) -> Done:
    return _at_once(b"x\r\n" * n)


@shape("server", "empty chunks in one input", octets=8)
def server_empty_chunks_in_one_input(n: int) -> Done:
    return _at_once(b"BDAT 0\r\n" * n)


@shape("server", "refused chunks in one input", octets=9)
def server_refused_chunks_in_one_input(n: int) -> Done:
    return _at_once(b"RSET\r\n" + b"BDAT 1\r\n." * n)


@shape("server", "short contents in one input", octets=45)
def server_short_contents_in_one_input(n: int) -> Done:
    return _at_once(b"RSET\r\n" + b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n.\r\n" * n)


@shape("server", "short contents by chunks in one input", octets=48)
def server_short_contents_by_chunks_in_one_input(n: int) -> Done:
    one = b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 1 LAST\r\na"
    return _at_once(b"RSET\r\n" + one * n)


@shape("server", "DATA out of order in one input", octets=6)
def server_data_out_of_order_in_one_input(n: int) -> Done:
    return _at_once(b"RSET\r\n" + b"DATA\r\n" * n)


@shape("server", "content, octet by octet", octets=4)
def server_content_octet_by_octet(n: int) -> Done:
    return _fed(_session, b"DATA\r\n" + b"\r\n.." * n, 1)


@shape("server", "a chunk, octet by octet", octets=1)
def server_a_chunk_octet_by_octet(n: int) -> Done:
    return _fed(_session, b"BDAT %d\r\n" % n + b"\r" * n, 1)


@shape("server", "octets that wait for an answer", octets=6)
def server_octets_that_wait_for_an_answer(n: int) -> Done:
    def done() -> None:
        dialogue = ServerDialogue(Capabilities(name="mx"), error_limit=1 << 30)
        for octet in b"NOOP\r\n" * n:
            dialogue.feed(bytes([octet]))
        while dialogue.next_event() is not None:
            dialogue.take_output()

    return done


@shape("server", "one taken while one more comes", octets=6)
def server_one_taken_while_one_more_comes(n: int) -> Done:
    def done() -> None:
        dialogue = ServerDialogue(Capabilities(name="mx"), error_limit=1 << 30)
        dialogue.feed(b"NOOP\r\n" * n)
        while dialogue.next_event() is not None:
            dialogue.take_output()
            if dialogue.buffered > 3 * n:
                dialogue.feed(b"\r\n")

    return done


@shape("server", "line ends that are mended, octet by octet", octets=3)
def server_line_ends_that_are_mended_octet_by_octet(n: int) -> Done:
    return _fed(_fixing, b"DATA\r\n" + b"\n.\r" * n, 1)


@shape("server", "line ends that are mended", octets=3)
def server_line_ends_that_are_mended(n: int) -> Done:
    return _fed(_fixing, b"DATA\r\n" + b"\n.\r" * n, _CHUNK)


@shape("server", "a chunk that is mended, octet by octet", octets=1)
def server_a_chunk_that_is_mended_octet_by_octet(n: int) -> Done:
    return _fed(_fixing, b"BDAT %d\r\n" % n + b"\r" * n, 1)


@shape("server", "parameters of one recipient after the other", octets=60)
def server_parameters_of_one_recipient_after_the_other(n: int) -> Done:
    return _fed(
        _fixing, b"RCPT TO:<c@d> NOTIFY=DELAY ORCPT=utf-8;\\x{E9}\\x{E9}\\x{E9}@d.e\r\n" * n, _CHUNK
    )


@shape("proxy", "a header without end, octet by octet", octets=1)
def proxy_a_header_without_end_octet_by_octet(n: int) -> Done:
    return _fed(_proxied, b"PROXY UNKNOWN " + b"x" * n, 1)


@shape("proxy", "additions of the greatest length", octets=1)
def proxy_additions_of_the_greatest_length(n: int) -> Done:
    return _fed(_proxied, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x0f\xff" + b"x" * n, 1)


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
