"""``mailstrom-sendmail``: reads a message and exits 0 once it is durable.

Nothing is written to standard output; what went wrong is one sentence on standard error and an
exit code of ``sysexits``. Called ``mailq`` it lists what waits. The parts: ``flags`` the command
line, ``place`` the spool and the names, ``handing`` the message, ``session`` SMTP on standard
input, ``mailq`` the list.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from mailstrom.errors import MailstromError
from mailstrom.shims import flags, handing, sysexits
from mailstrom.shims.place import Place, caller, opened, place
from mailstrom.shims.standard import read_input
from mailstrom.shims.sysexits import DATA, OK, TEMPORARY, USAGE, Refusal, tell
from mailstrom.storage.client import Notice


def main() -> int:
    """The console script; gives the exit code."""
    hold_standard_files()
    program = os.path.basename(sys.argv[0])
    if program.endswith(".py"):  # python -m mailstrom.shims.sendmail
        program = "mailstrom-sendmail"
    return run(program, sys.argv[1:], os.environ)


def hold_standard_files() -> None:
    """What the caller closed stays closed: no file of the spool may get its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the lowest number that is free is this one
            os.open("/dev/null", os.O_RDONLY if number else os.O_WRONLY)


def run(program: str, arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Do what a command line asks for.

    Args:
        program: what it was called as: ``mailq`` lists, all else is sendmail.
        arguments: what follows it.
        environ: the environment.

    Returns:
        The exit code.
    """
    try:
        if program == "newaliases":
            raise Refusal(USAGE, "there are no aliases to rebuild")
        listing = program in ("mailq", "mailstrom-mailq")
        if listing and "-j" in arguments:
            from mailstrom.shims.mailq import show

            rest = [word for word in arguments if word != "-j"]
            return show(place(flags.read(rest, flags.LIST).config, environ), as_json=True)
        wanted = flags.read(arguments, flags.LIST if listing else flags.SEND)
        return _done(wanted, environ)
    except (Refusal, MailstromError, OSError) as error:
        return _told(program, error)
    except KeyboardInterrupt:
        return TEMPORARY
    except Exception as error:  # a fault of ours must not read as a message taken
        return _told(program, error, f"{type(error).__name__}: {error}; the message was not taken")


def _done(wanted: flags.Wanted, environ: Mapping[str, str]) -> int:
    if wanted.mode == flags.NOTHING:
        return OK
    where = place(wanted.config, environ)
    if wanted.mode == flags.LIST:
        from mailstrom.shims.mailq import show

        return show(where, as_json=False)
    if wanted.mode == flags.FLUSH:
        from mailstrom.shims.mailq import flush

        return flush(where, wanted.flush)
    who = caller(environ, wanted.name)
    if wanted.mode == flags.SMTP:
        from mailstrom.shims.session import serve

        return serve(where, who)
    return _sent(wanted, where, who.login, who.name)


def _sent(wanted: flags.Wanted, where: Place, login: str, name: str) -> int:
    if not wanted.recipients and not wanted.from_headers:
        raise Refusal(
            USAGE, "no recipient: name one behind the flags, or -t for those of the header"
        )
    sender = handing.sender_of(login if wanted.sender is None else wanted.sender, where.origin)
    recipients = [
        key
        for text in wanted.recipients
        for key in handing.addresses(text, where.origin, "recipient")
    ]
    content = _content(wanted.dot_ends)
    if wanted.from_headers:
        recipients += handing.named_in(content, where.origin)
    if not recipients:
        raise Refusal(USAGE, "no recipient: the header names none in To, Cc or Bcc")
    recipients = list(dict.fromkeys(recipients))
    notices: Sequence[Notice] = ()
    if wanted.notify is not None:
        notices = [Notice(wanted.notify)] * len(recipients)
    handing.stored(
        opened(where.spool),
        content,
        sender,
        recipients,
        where,
        {"user": login},
        name=name,
        relay=wanted.gateway,
        notices=notices,
        ret=wanted.ret,
        envid=wanted.envid,
    )
    return OK


def _content(dot_ends: bool) -> bytes:
    """Standard input in CRLF lines, to its end or to a dot alone on its line."""
    text = bytearray()
    while True:
        chunk = read_input()
        before = max(0, len(text) - 4)
        text += chunk
        if len(text) > handing.LARGEST:
            raise Refusal(DATA, f"the message is larger than {handing.LARGEST:,} octets")
        end = _dot(text, before, ended=not chunk) if dot_ends else None
        if end is not None:
            del text[end:]
        if end is not None or not chunk:
            break
    return bytes(text).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def _dot(text: bytearray, start: int, *, ended: bool) -> int | None:
    """Where a line with only a dot begins, from an offset on; the last one may lack its end."""
    while (at := text.find(b".", start)) >= 0:
        start = at + 1
        if at and text[at - 1] != 0x0A:
            continue
        if text.startswith((b"\n", b"\r\n"), at + 1) or (ended and at + 1 == len(text)):
            return at
    return None


def _told(program: str, error: Exception, sentence: str = "") -> int:
    code = sysexits.code_of(error)
    text = sentence or str(error)
    if code == sysexits.PERMISSION:
        text += (
            f"; let user {os.getuid()} write there: with the spool's directory in group mailstrom,"
            " add the user to that group"
        )
    tell(f"{program}: {text}")
    return code


if __name__ == "__main__":
    sys.exit(main())
