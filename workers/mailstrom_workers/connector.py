"""From a site's hosts to a session: hosts in order, all addresses of a host, each try a row.

Rules: preference order, random among equals (RFC 5321 section 5.1), hosts that failed lately last;
at most ten addresses in a pass, and hosts that had no turn go first in the next. A host without a
usable session is left for the next one; no recipient is charged for it. Every connection tried is
a row of the ``sessions`` view.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from mailstrom import events
from mailstrom.errors import ConfigError
from mailstrom.policy.limits import SessionMails, SessionRecipients
from mailstrom.policy.outcome import judge_session
from mailstrom.policy.refusal import NO_TLS, Elsewhere, Lack, without_requiretls
from mailstrom.policy.routing import order_hosts
from mailstrom.policy.verdict import FaultOf, HostVerdict, Verdict
from mailstrom.smtp.transaction import Dialect
from mailstrom.storage.base import Lane, SessionRow
from mailstrom.types import Host, Reason, Stage
from mailstrom_workers.context import Context, Settings
from mailstrom_workers.domains import SessionDomains
from mailstrom_workers.endpoint import SessionFacts, SessionFailure, SessionPolicy, Target
from mailstrom_workers.ladder import Ladder
from mailstrom_workers.machine import Machine
from mailstrom_workers.session import Session

MOST_RECIPIENTS = 100
"""Recipients of one transaction (RFC 5321 section 4.5.3.1.8: servers must take 100)."""
SESSION_S = 300.0
"""A session is used for so long, then renewed: a count would gather lanes at the slowest host."""
MOST_ADDRESSES = 10
"""Addresses tried in one pass; the resolver gives at most five of a host."""
_CROWDED = {(Stage.CONNECT, "refused"), (Stage.GREETING, "reply"), (Stage.GREETING, "closed")}
_REMOTE, _LOCAL = FaultOf.REMOTE, FaultOf.LOCAL


def new_session_id(machine: Machine) -> str:
    """A random session id, 16 hex digits behind 11 of time, so that ids sort by start."""
    return f"{machine.wall_ms():011x}{machine.token(8)}"


@dataclass(slots=True, kw_only=True)
class Connected:
    """A session with what its row needs."""

    id: str
    session: Session
    host: Host
    started_ms: int
    settings: Settings
    dialect: Dialect
    until: float
    """Loop time from which nothing more is begun on it."""
    most: float
    """Transactions of it, at most: the configuration's word, or the server's (RFC 9422 MAILMAX, or
    where it refused more before)."""
    rcpts: SessionRecipients
    """What it answered to RCPT."""
    domains: SessionDomains
    """Those of its recipients."""
    mails: SessionMails
    """What it answered to MAIL."""
    transactions: int = 0
    """Transactions begun, refused ones too."""

    @property
    def recipients(self) -> int:
        """Recipients of one transaction, at most; less once the server took no more than that."""
        return self.rcpts.most

    @property
    def facts(self) -> SessionFacts:
        """What its row and its attempts tell of it."""
        return self.session.facts

    def row(self, lane: Lane, ended_ms: int | None) -> SessionRow:
        """The session's row, at its start (``ended_ms`` None) or end."""
        cause = None if ended_ms is None else self.session.end_cause or "closed"
        return _row(
            self.id,
            lane,
            self.session.facts,
            self.started_ms,
            ended_ms,
            self.session.messages,
            cause,
        )


class Connector:
    """Finds a session for a lane.

    Args:
        ctx: the worker's context.
        lane: whose hosts are meant.
        ladder: what of their extensions may be used.
    """

    def __init__(self, ctx: Context, lane: Lane, ladder: Ladder) -> None:
        self._ctx = ctx
        self._lane = lane
        self._ladder = ladder
        self._loop = asyncio.get_running_loop()
        self.hosts = self._order()
        self.rows: list[SessionRow] = []
        """Rows of connections, to be carried by the lane's next exchange."""
        self.crowded = False
        """Whether the last host refused the connection itself: it may have enough of them."""
        self.local = False
        """Whether that was this machine's own trouble (no descriptors left, say)."""
        self.trouble: HostVerdict | None = None
        """Why the last host could not be used."""
        self.since: float | None = None
        """Loop time since which an address, or a host's name, is waited for; None: none is."""
        self.lacks: dict[Host, Lack] = {}
        """What hosts of this lane's site lack for REQUIRETLS mail, as they were seen last: of one
        name there may be several, on other ports. A host's addresses are taken for the same."""
        self._patience: asyncio.Timeout | None = None

    def _order(self) -> list[Host]:
        hosts = order_hosts(self._lane.hosts, self._ctx.random)
        return sorted(hosts, key=lambda host: self._ctx.rests(host.name))  # stable

    def reorder(self) -> None:
        """Draw the order anew, for a new pass."""
        self.hosts = self._order()

    def found(self, host: Host, lack: Lack | None) -> None:
        """What a host was seen to lack for REQUIRETLS mail, or that it lacks nothing."""
        self.lacks.pop(host, None)  # so that the last stands last
        if lack is not None:
            self.lacks[host] = lack

    def verdict(self, elsewhere: Elsewhere | None = None, lack: Lack | None = None) -> Verdict:
        """What becomes of REQUIRETLS mail by what the hosts lack.

        Args:
            elsewhere: None: no host is left to be asked.
            lack: what is told where one is.
        """
        if elsewhere is not None and lack is not None:
            return without_requiretls((lack,), elsewhere)
        lacks = [self.lacks.get(host) for host in self.hosts]
        wanting = all(one is not None and one.lasting for one in lacks)
        known = [one for one in lacks if one is not None]
        return without_requiretls(known, Elsewhere.WANTING if wanting else Elsewhere.UNKNOWN)

    def blame(self, verdict: Verdict) -> None:
        """Note why a session that was opened could not be used after all; charges nobody."""
        self._note(
            HostVerdict(
                reason=verdict.reason or Reason.REMOTE,
                fault_of=verdict.fault_of,
                text=verdict.reply_text or "the session ended before it was used",
                stage=verdict.stage,
                reply_code=verdict.reply_code,
                enhanced_code=verdict.enhanced_code,
            )
        )

    def _note(self, trouble: HostVerdict, *, crowded: bool = False, local: bool = False) -> None:
        self.trouble, self.crowded, self.local = trouble, crowded, local

    def give_up(self) -> None:
        """The address that is waited for had its time; the next one, if any, has its own."""
        if self._patience is not None:
            self._patience.reschedule(self._loop.time())
            self._patience = None

    async def connect(self, position: int, *, strict: bool = False) -> tuple[int, Connected] | None:
        """A session with the first usable host from ``position`` on, or None: all failed.

        Args:
            strict: under TLS that proves the host's name. A host that has none for us is noted
                (``lacks``), and no trouble for other mail.
        """
        self.local = False
        try:
            return await self._connect(position, strict)
        finally:
            self.since = None

    async def _connect(self, position: int, strict: bool) -> tuple[int, Connected] | None:
        tried = 0
        for index in range(position, len(self.hosts)):
            if tried >= MOST_ADDRESSES:
                break  # not rested: these hosts are among the first of the next pass
            host = self.hosts[index]
            relay = self._ctx.settings.relay
            self.since = self._loop.time()
            found = await self._ctx.resolver.addresses(host.name, relay=relay)
            if found.error is not None:
                self._note(
                    HostVerdict(
                        reason=Reason.DNS,
                        fault_of=_REMOTE,
                        stage=Stage.CONNECT,
                        text=found.text or f"{host.name} has no usable address",
                    )
                )
                self._ctx.rest(host.name)
                continue
            failures = []
            for address in found.ips:
                tried += 1
                opened = await self._try(host, address, strict)
                if isinstance(opened, Connected):
                    return index, opened
                failures.append(opened)
            if strict and any(one is not None and one.stage is Stage.STARTTLS for one in failures):
                self.found(host, _lack(host, failures))
            else:
                self._ctx.rest(host.name)
        return None

    async def _try(
        self, host: Host, address: str, strict: bool
    ) -> Connected | SessionFailure | None:
        ctx = self._ctx
        port = host.port if host.port is not None else ctx.settings.config.delivery.port
        started_ms = ctx.now_ms()
        session_id = new_session_id(ctx.machine)
        try:
            policy = ctx.settings.session_policy(lambda: ctx.machine.own_address(address, port))
        except ConfigError as error:
            self._note(
                HostVerdict(reason=Reason.LOCAL, fault_of=_LOCAL, stage=Stage.AUTH, text=str(error))
            )
            return None
        dialect = self._ladder.dialect(policy.dialect)
        if dialect != policy.dialect:
            policy = replace(policy, dialect=dialect)
        if strict:
            policy = policy.strict
        moment = ctx.limits.moment
        target = Target(host=host.name, address=address, port=port)
        self.since = self._loop.time()
        self._patience = patience = asyncio.timeout(None)
        try:
            opened = await _opened(target, policy, patience)
        finally:
            self._patience = None
        if isinstance(opened, SessionFailure):
            trouble = judge_session(opened.stage, opened.cause, opened.reply)
            if opened.reply is None and opened.text:
                trouble = HostVerdict(
                    reason=trouble.reason,
                    fault_of=trouble.fault_of,
                    stage=opened.stage,
                    text=opened.text,
                )
            if not strict or opened.stage is not Stage.STARTTLS:
                self._note(
                    trouble,
                    crowded=(opened.stage, opened.cause) in _CROWDED,
                    local=opened.cause == "local",
                )
            ended_ms = ctx.now_ms()
            cause = f"{opened.stage}: {opened.text}"
            self.rows.append(
                _row(session_id, self._lane, opened.facts, started_ms, ended_ms, 0, cause[:500])
            )
            events.session_closed(
                site=self._lane.site_key,
                host=host.name,
                session_id=session_id,
                address=address,
                cause=opened.cause,
                stage=opened.stage,
                elapsed_ms=ended_ms - started_ms,
                reply=None if opened.reply is None else opened.reply.text,
            )
            return opened
        connected = self._connected(session_id, opened, host, started_ms, policy.dialect, moment)
        self.rows.append(connected.row(self._lane, None))
        events.session_opened(
            session_id=session_id,
            site=self._lane.site_key,
            host=host.name,
            address=address,
            source=opened.facts.source,
            tls=opened.facts.tls_reached,
            elapsed_ms=ctx.now_ms() - started_ms,
        )
        return connected

    def _connected(
        self,
        session_id: str,
        session: Session,
        host: Host,
        started_ms: int,
        dialect: Dialect,
        moment: int,
    ) -> Connected:
        settings, limits = self._ctx.settings, session.capabilities
        own = settings.config.sites.messages_per_connection
        recipients = min(limits.most_recipients or MOST_RECIPIENTS, MOST_RECIPIENTS)
        mails = SessionMails(host.name, self._ctx.limits, moment)
        return Connected(
            id=session_id,
            session=session,
            host=host,
            started_ms=started_ms,
            settings=settings,
            dialect=dialect,
            until=asyncio.get_running_loop().time() + SESSION_S,
            most=min(own or inf, limits.most_transactions or inf, mails.most),
            rcpts=SessionRecipients(recipients),
            domains=SessionDomains(limits.most_domains),
            mails=mails,
        )

    async def disconnect(self, connected: Connected) -> None:
        """End a session politely and note its end."""
        connected.mails.over()
        await connected.session.quit()
        ended_ms = self._ctx.now_ms()
        row = connected.row(self._lane, ended_ms)
        self.rows.append(row)
        events.session_closed(
            site=self._lane.site_key,
            host=row.host,
            session_id=connected.id,
            address=row.address,
            messages=row.messages,
            cause=row.end_cause,
            elapsed_ms=ended_ms - row.started_ms,
        )


def _lack(host: Host, failures: Sequence[SessionFailure | None]) -> Lack:
    """What a host lacks that has no session under proved TLS for us, at none of its addresses."""
    told = next(one for one in failures if one is not None and one.stage is Stage.STARTTLS)
    lasting = all(one is not None and one.untrusted for one in failures)
    words = told.text.partition(": ")[2] or told.text
    return Lack(NO_TLS, f"{host.name}: {words}"[:200], lasting)


async def _opened(
    target: Target, policy: SessionPolicy, patience: asyncio.Timeout
) -> Session | SessionFailure:
    """A session, or why there is none.

    What a host says that nobody thought of costs the host its turn, as any trouble it makes: a
    lane that ended by it would be leased anew at once, and meet it again, without a pause.
    """
    try:
        return await Session.open(target, policy, patience)
    except Exception as error:
        events.engine_failed(where=f"session with {target.host}", error=error)
        return SessionFailure(
            stage=Stage.GREETING,
            cause="garbage",
            reply=None,
            text=f"what the server said was not foreseen: {type(error).__name__}",
            facts=SessionFacts(
                host=target.host,
                address=target.address,
                port=target.port,
                tls_wanted=policy.tls_wanted,
            ),
        )


def _row(
    id: str,
    lane: Lane,
    facts: SessionFacts,
    started_ms: int,
    ended_ms: int | None,
    messages: int,
    cause: str | None,
) -> SessionRow:
    return SessionRow(
        id=id,
        lane=lane.token,
        site=lane.site,
        host=facts.host,
        address=facts.address,
        source=facts.source,
        started_ms=started_ms,
        ended_ms=ended_ms,
        messages=messages,
        ehlo=facts.ehlo,
        tls_wanted=facts.tls_wanted,
        tls_reached=facts.tls_reached,
        tls_version=facts.tls_version,
        tls_cipher=facts.tls_cipher,
        tls_peer=facts.tls_peer,
        tls_verified=facts.tls_verified,
        end_cause=cause,
    )
