"""What becomes of a lane's transactions: judged, given back, or waiting again; and what is told.

A transaction leaves the stock here in one of four ways: every recipient of it has a verdict that
ends it; some may still be taken by the next host, or in a new session, and wait again; it goes back
to the queue, due now; or it was opened and is not sent after all, and waits as before. Each way is
written to the ledger, and travels with the lane's next exchange together with the rows of
connections and the lessons about the site.

It decides nothing about replies (``policy.outcome`` does). Must not know: the session, the window,
claims, when an exchange is made.
"""

from __future__ import annotations

import asyncio
from collections import deque

from mailstrom import events
from mailstrom.errors import SpoolError
from mailstrom.policy.limits import refuses_session
from mailstrom.policy.outcome import judge
from mailstrom.policy.refusal import Elsewhere, lacks_requiretls, local_refusal
from mailstrom.policy.rounds import closed_behind_refusals
from mailstrom.policy.verdict import Action
from mailstrom.smtp.client import TransactionEnd, UnmetNeed
from mailstrom.storage.base import Claimed, Lane, Work
from mailstrom.types import Judgement
from mailstrom_workers.connector import Connected
from mailstrom_workers.context import Context
from mailstrom_workers.ladder import Ladder, cut_short
from mailstrom_workers.ledger import UNREADABLE_MS, Ledger
from mailstrom_workers.stock import Stock
from mailstrom_workers.transactions import Again, Transaction
from mailstrom_workers.walk import Walk

_OF_OTHERS = (Action.NEXT_TRANSACTION, Action.NEXT_SESSION)
"""What a recipient does by what the server said of others: no trouble with the host."""


class ContentDamaged(Exception):
    """Content on disk does not match its digest; not a byte after this point is sent."""


class Settling:
    """Takes one lane's transactions out of hand.

    Args:
        ctx: the worker's context.
        lane: the lease that guards what is written.
        ladder: learns from the ends.
        stock: what is in hand.
        walk: where the lane stands among the hosts.

    Attributes:
        took: whether a host took a message of this lane.
    """

    def __init__(self, ctx: Context, lane: Lane, ladder: Ladder, stock: Stock, walk: Walk) -> None:
        self._ctx = ctx
        self._site_key = lane.site_key
        self._ladder = ladder
        self._ledger = Ledger(ctx, lane)
        self._stock = stock
        self._walk = walk
        self._loop = asyncio.get_running_loop()
        self._failing = lane.failing  # this lane then finds out for all
        self.took = False

    # --- what is recorded -------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether something waits to be recorded that should not wait for long."""
        return bool(self._ledger.settlements or self._walk.connector.rows)

    def work(self) -> Work:
        """What waits to be recorded, for the next exchange; it is taken by that."""
        connector = self._walk.connector
        work = Work(
            sessions=connector.rows,
            settlements=self._ledger.take(),
            lessons=self._ladder.take(),
        )
        connector.rows = []
        return work

    # --- without a transaction --------------------------------------------------------------

    def sift(self, rows: list[Claimed]) -> list[Claimed]:
        """Of what was claimed, what can be sent: damaged is failed, unread is given back."""
        good = [row for row in rows if not (row.damaged or row.unread)]
        if len(good) < len(rows):
            for row in rows:
                if row.damaged:
                    self._ledger.damaged(row)
                elif row.unread:
                    self._ledger.unread(row)
        return good

    def give_back(self, *queues: deque[Transaction]) -> None:
        """To the queue: what a host said stands, the rest is due now."""
        for transactions in queues:
            self._ledger.give_back(transactions, self._walk.run)
            for transaction in transactions:
                self._stock.over(transaction)
            transactions.clear()

    def reclaim(self, transactions: deque[Transaction]) -> None:
        """Opened and not sent: they wait again, before the others, and are opened anew."""
        for transaction in transactions:
            self._ledger.reclaim(transaction)
        self._stock.put_back(transactions, self._loop.time())
        transactions.clear()

    def refused_here(self, transaction: Transaction, connected: Connected) -> bool:
        """Whether this host lacks what the message needs; then that is its verdict."""
        first, size = transaction.recipients[0], connected.session.capabilities.size
        if transaction.strict and self._wanting(transaction, connected):
            return True
        if not (
            first.require_tls
            or first.eightbit
            or first.smtputf8
            or (size is not None and 0 < size < first.size)
        ):
            return False  # it needs nothing that a server, or this session, may lack
        refusal = local_refusal(
            transaction.address(),
            connected.session.capabilities,
            require_tls=first.require_tls,
            encrypted=connected.session.facts.tls_reached != "none",
            last_host=self._walk.is_last(transaction),
        )
        if refusal is None:
            return False
        verdicts = [refusal] * len(transaction.recipients)
        transaction.started_ms = self._ctx.now_ms()
        run = self._walk.run
        self._leave(transaction, self._ledger.apply(transaction, verdicts, connected, run))
        return True

    def _wanting(self, transaction: Transaction, connected: Connected) -> bool:
        """Whether this session lacks what REQUIRETLS demands; then the next host has its turn."""
        walk = self._walk
        lack = lacks_requiretls(
            connected.session.capabilities,
            host=connected.host.name,
            encrypted=connected.session.facts.tls_reached != "none",
            verified=connected.session.facts.tls_verified,
        )
        walk.connector.found(connected.host, lack)
        if lack is None:
            return False
        left = walk.index + 1 < len(walk.connector.hosts)
        verdict = walk.connector.verdict(Elsewhere.LEFT if left else None, lack)
        transaction.started_ms = self._ctx.now_ms()
        verdicts = [verdict] * len(transaction.recipients)
        self._leave(transaction, self._ledger.apply(transaction, verdicts, connected, walk.run))
        return True

    def unreached(self, transaction: Transaction) -> bool:
        """Whether no host is left because those that answered are not to have it; it is settled."""
        connector = self._walk.connector
        if not (transaction.strict and connector.lacks) or connector.local:
            return False
        host = list(connector.lacks)[-1].name
        self._ledger.unreached(transaction, connector.verdict(), host, self._walk.run)
        self._stock.over(transaction)
        return True

    # --- behind a transaction ---------------------------------------------------------------

    def ended(self, transaction: Transaction, end: TransactionEnd, connected: Connected) -> None:
        """Take what the end of a transaction says of its recipients, and of the server.

        Args:
            end: how it ended.
            connected: the session it was on.
        """
        self._count(transaction, end, connected)
        self.took = self.took or (end.dot is not None and end.dot.positive)
        if not end.usable:
            self.reclaim(self._stock.opened)  # so that what is left of this stands before them
        if end.stumbled is not None or end.chunked:
            self._ladder.learn(end, connected.dialect, self._ctx.now_ms())
        elif (
            cut_short(
                end,
                connected.dialect,
                offered=connected.session.capabilities.pipelining,
                reused=transaction.reused,
            )
            and not closed_behind_refusals(end)  # those are to blame, and no flight
            and self._ctx.again_cut_short(transaction.recipients[0].message)
        ):
            self._ladder.suspect(self._ctx.now_ms())
        if end.behind and not end.answered and not end.dot_written:
            # The server read none of it: what became of the one before says nothing about this.
            self.reclaim(deque((transaction,)))
        else:
            self._leave(transaction, self._judge(transaction, end, connected))

    def unsent(self, transaction: Transaction, error: Exception, connected: Connected) -> bool:
        """Nothing was delivered: it, or its content, cannot be sent.

        Returns:
            Whether that is trouble with the content, or a need that the server does not meet; it is
            then dealt with. Of any other error nothing is written: ``sending`` stays its state, and
            the release of the lane puts it in doubt.
        """
        if isinstance(error, UnmetNeed):
            return self.refused_here(transaction, connected)
        known = True
        if isinstance(error, ContentDamaged | ValueError):
            for row in transaction.recipients:
                self._ledger.damaged(row)
        elif isinstance(error, SpoolError):  # content could not be read on
            self._ledger.give_back((transaction,), self._walk.run, pause_ms=UNREADABLE_MS)
        else:
            known = False
        self._stock.over(transaction)
        return known

    def _count(self, transaction: Transaction, end: TransactionEnd, connected: Connected) -> None:
        """Find out what the server takes of a session, and of a transaction."""
        mail, mails = end.mail, connected.mails
        if mail is not None:
            if mail.code < 400:
                if mails.took():
                    limit = self._ctx.limits.most(connected.host.name)
                    connected.most = min(connected.most, limit)
            elif refuses_session(mail):
                mails.refused(last=not end.usable)
                if mails.full:
                    connected.most = 0
        if len(end.rcpts) > 1 or connected.rcpts.suspects:
            connected.rcpts.ended(end, [row.recipient for row in transaction.recipients])

    def _judge(
        self, transaction: Transaction, end: TransactionEnd, connected: Connected
    ) -> list[Again]:
        ctx, walk = self._ctx, self._walk
        rows = transaction.recipients
        excused = rows[0].message not in ctx.unanswered
        last_host = walk.is_last(transaction)
        on_doubt = transaction.on_doubt(ctx.settings.on_doubt)
        # As for what is sent again at all: a session that took a message is progress.
        full = connected.mails.full and (
            not transaction.reconnected or connected.session.messages > 0
        )
        left = self._left(transaction, end, connected)
        verdicts = []
        for number in range(len(rows)):
            verdict = judge(
                end,
                number,
                last_host=last_host,
                reused=transaction.reused,
                on_doubt=on_doubt,
                excused=excused,
                full=full,
                left=left,
            )
            verdicts.append(verdict)
        if verdicts[0].judgement is None and verdicts[0].action not in _OF_OTHERS:
            # What was answered, if anything, is no verdict: the session could not be used.
            walk.connector.blame(verdicts[0])
        if self._failing and any(v.judgement is Judgement.DELIVERED for v in verdicts):
            self._failing = False  # as the store will find with these verdicts
            events.site_resumed(site=self._site_key, host=connected.host.name)
        return self._ledger.apply(transaction, verdicts, connected, walk.run)

    def _left(
        self, transaction: Transaction, end: TransactionEnd, connected: Connected
    ) -> Action | None:
        """What those do whom a server did not get to, since it closed behind others' refusals."""
        if end.usable or len(end.rcpts) == 1 or not closed_behind_refusals(end):
            return None
        if connected.session.capabilities.chunking and connected.dialect.chunk_octets:
            # Content that leaves with its envelope is in doubt then; by DATA nothing is.
            self._ladder.spare_chunks(self._ctx.now_ms())
        first = transaction.recipients[0]
        attempt = (self._site_key, first.message, first.attempts)
        return Action.NEXT_SESSION if self._ctx.rounds.closed(attempt) else Action.DEFER

    def _leave(self, transaction: Transaction, again: list[Again]) -> None:
        """What is left of a transaction waits for another host, a new session, or the next turn."""
        stock = self._stock
        if not again:
            stock.over(transaction)
            return
        for number, part in enumerate(again):
            left = part.transaction(self._walk.index)
            if number:  # both count for the budget now
                stock.hold(left)
            if part.uncharged:
                stock.put_back((left,), self._loop.time())
            else:
                stock.later.append(left)
