"""``demo()``: the whole engine at work against local servers, watched, and accounted for.

Contract. Servers, spool, engine and sender live in one temporary directory and in one block each,
so that whatever happens (Ctrl-C too) all of them end and the directory goes. The account is made
after the engine has ended, from what the library accepted, what the spool says and what the
servers recorded before they answered (``audit``). 0 only if nothing is lost, doubled without a
mark, altered, or other than planned, the spool is sound, and the engine drained.
"""

from __future__ import annotations

import secrets
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from json import dumps
from pathlib import Path

from rich.console import Console

from mailstrom.client import Mailstrom
from mailstrom.demo.audit import Accepted, Audit, Outcome, Pair, audit, wire_digest
from mailstrom.demo.display import display_for
from mailstrom.demo.engine import WORKERS, Engine
from mailstrom.demo.photograph import Photograph
from mailstrom.demo.report import print_elsewhere, print_exhibits, print_findings, say
from mailstrom.demo.sending import Sending
from mailstrom.demo.servers import World, world
from mailstrom.demo.watch import Interruption, watch
from mailstrom.errors import MailstromError

PLAIN_WIDTH = 120
"""Columns of tables off a terminal, where nothing needs to fit a screen."""

_OUTCOMES = """\
SELECT message_id, address, status, reason,
       coalesce(reply_code || ' ', '') || coalesce(reply_text, '') AS words
  FROM recipients"""
_DOUBTS = """\
SELECT message_id, recipient, count(*) AS doubts
  FROM attempts WHERE in_doubt GROUP BY message_id, recipient"""


@dataclass(slots=True)
class Ending:
    """How a run ended.

    Args:
        trouble: why it could not finish, or None.
        interrupted: whether a person ended it; nothing was accounted for then.
        account: the figures, where it came so far.
        unsound: broken invariants of the spool.
        seconds: from the first message to the last final recipient.
        connections: SMTP connections that the servers saw.
    """

    trouble: str | None = None
    interrupted: bool = False
    account: Audit | None = None
    unsound: tuple[str, ...] = ()
    seconds: float = 0.0
    connections: int = 0
    log: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether everything is as it must be."""
        sound = self.account is not None and self.account.sound
        return sound and self.trouble is None and not self.unsound


def demo(messages: int, json: bool, *, keep: bool = False, picture: Path | None = None) -> int:
    """Run the demonstration and print its account.

    Args:
        messages: how many, at least 1.
        json: print one JSON object with the figures, and nothing else on standard output.
        keep: leave the directory, and say where it is.
        picture: write the display as it was at its busiest moment there (SVG).

    Returns:
        0 if every message is accounted for and each recipient ended as planned, else 1.
    """
    tty = sys.stdout.isatty()
    console = Console(force_terminal=tty, width=None if tty else PLAIN_WIDTH, quiet=json)
    with Interruption() as interruption:
        folder = Path(tempfile.mkdtemp(prefix="mailstrom-demo-"))
        try:
            ending = _run(
                folder, messages, console, interruption, json=json, keep=keep, picture=picture
            )
        finally:
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)
        _print_end(ending, console, json=json)
    return 0 if ending.good else 1


def _run(
    folder: Path,
    messages: int,
    console: Console,
    interruption: Interruption,
    *,
    json: bool,
    keep: bool,
    picture: Path | None,
) -> Ending:
    ending = Ending()
    engine = Engine(folder)
    # Left in reverse order: sending stops first, the servers last.
    with ExitStack() as stack:
        try:
            around = stack.enter_context(world(folder))
            client = stack.enter_context(Mailstrom(engine.store))
            stack.callback(engine.stop)
            engine.start(around.port, around.nameserver)
            say(
                console,
                f"mailstrom demo: {messages} messages, {WORKERS} workers,"
                f" {len(around.servers)} SMTP servers, a DNS server, all local",
                "bold",
            )
            start_s = time.monotonic()
            sending = stack.enter_context(Sending(client, messages, f"demo.{secrets.token_hex(6)}"))
            photograph = Photograph(display_for(console, silent=json))
            with photograph as display:
                ending.trouble = watch(
                    client,
                    sending,
                    messages,
                    display,
                    ended=engine.ended,
                    connections=lambda: around.open_connections,
                    interruption=interruption,
                )
            ending.seconds = time.monotonic() - start_s
            sending.stop()
            status = engine.stop()
            if interruption.name is not None:
                ending.trouble = f"stopped by {interruption.name}"
                ending.interrupted = True
            elif ending.trouble is None and status:
                ending.trouble = f"the supervisor did not drain: it ended with status {status}"
            if not ending.interrupted:
                _account(ending, client, sending, around)
                print_exhibits(console, client)
                print_elsewhere(console, engine.store, engine.log, kept=keep)
                if picture is not None and ending.account is not None:
                    command = f"mailstrom demo -n {messages}"
                    photograph.save(picture, command=command, ending=ending.account.line)
        except (MailstromError, OSError) as error:
            ending.trouble = ending.trouble or f"{type(error).__name__}: {error}"
    ending.log = tuple(engine.tail())
    return ending


def _account(ending: Ending, client: Mailstrom, sending: Sending, around: World) -> None:
    doubts: dict[Pair, int] = {
        (row.message_id, row.recipient): row.doubts for row in client.query(_DOUBTS)
    }
    outcomes: dict[Pair, Outcome] = {
        (row.message_id, row.address): Outcome(
            status=row.status,
            reason=row.reason,
            words=row.words,
            doubts=doubts.get((row.message_id, row.address), 0),
        )
        for row in client.query(_OUTCOMES)
    }
    accepted = (
        Accepted(id=id, planned=planned, digest=wire_digest(client.raw(id)))
        for id, planned in sending.accepted
    )
    ending.account = audit(accepted, outcomes, around.dots())
    ending.unsound = tuple(client.check())
    ending.connections = around.connections


def _print_end(ending: Ending, console: Console, *, json: bool) -> None:
    account = ending.account
    errors = Console(stderr=True, force_terminal=False, width=PLAIN_WIDTH) if json else console
    if account is not None:
        print_findings(errors, account)
    for sentence in ending.unsound:
        say(errors, f"the spool is not sound: {sentence}", "bold red")
    if ending.trouble is not None:
        say(errors, f"demo: {ending.trouble}", "bold red")
    if not (ending.good or ending.interrupted):
        say(errors, "The last lines of the engine's log:")
        for line in ending.log or ("(it is empty)",):
            say(errors, f"  {line}", "dim")
    if json:
        print(dumps(_figures(ending)), flush=True)
    elif account is not None:
        recipients = sum(account.recipients.values())
        say(console)
        say(
            console,
            f"{recipients} recipients in {ending.seconds:.1f} s over {ending.connections}"
            f" connections; {account.marked} marked duplicates; all ended. In messages:",
        )
        say(console, account.line)


def _figures(ending: Ending) -> dict[str, object]:
    account = ending.account
    figures: dict[str, object] = {"finished": ending.trouble is None, "trouble": ending.trouble}
    if account is not None:
        figures |= {
            "accepted": account.accepted,
            "delivered": account.delivered,
            "failed": account.failed,
            "lost": len(account.lost),
            "unmarked_duplicates": len(account.unmarked),
            "marked_duplicates": account.marked,
            "recipients": dict(account.recipients),
            "connections": ending.connections,
            "seconds": round(ending.seconds, 3),
            "findings": {name: list(found) for name, found in account.findings.items() if found},
            "unsound": list(ending.unsound),
        }
    return figures
