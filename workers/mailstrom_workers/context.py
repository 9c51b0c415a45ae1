"""What the parts of one delivery worker share, and the figures they derive from the configuration.

A context is made once per configuration; a reload replaces ``settings`` and leaves sessions alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

from mailstrom import events
from mailstrom.config import Config, ehlo_name, relay_hosts, relay_password, stage_timeouts
from mailstrom.errors import SpoolError
from mailstrom.policy.limits import MailLimits
from mailstrom.policy.retry import RetrySchedule
from mailstrom.policy.rounds import Rounds
from mailstrom.policy.timeouts import Timeouts
from mailstrom.smtp.transaction import Dialect
from mailstrom.storage.base import Failure, RouteAnswer, WorkerStore
from mailstrom.storage.facts import ROOM_BYTES
from mailstrom.storage.pinned import mebibytes
from mailstrom.types import OnDoubt, Pipelining
from mailstrom_workers.complaint import Complaint
from mailstrom_workers.dbservice import DBService
from mailstrom_workers.endpoint import SessionPolicy, Tls
from mailstrom_workers.machine import THIS, Machine
from mailstrom_workers.resolver import Resolver
from mailstrom_workers.shared import Shared

PAUSE_S = 5.0
ROOM_LOOK_S = 1.0
MOST_EXCUSES = 10_000
READ_AHEAD_BYTES = 32 * 1024 * 1024
"""Content that a worker holds ahead of the wire; beyond it lanes claim message by message."""
LEAST_OCTETS = 8192
"""What a message is taken to need, at least, before its claim."""
HOST_REST_S = 60.0
"""How long a host that could not be used goes to the end of the line, in this process."""


def _loopback(name: str) -> bool:
    """Whether a relay's name is this machine's own."""
    if name == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The configuration as the engine uses it."""

    config: Config
    timeouts: Timeouts
    retry: RetrySchedule
    on_doubt: OnDoubt
    """What to do in doubt where the message does not say."""
    policy: SessionPolicy | None = None
    """How every session is opened, where neither its address nor a file has a say in it."""

    @classmethod
    def of(cls, config: Config) -> Settings:
        """Derive the settings of a configuration."""
        settings = cls(
            config=config,
            timeouts=stage_timeouts(config),
            retry=RetrySchedule(
                schedule=config.retry.schedule,
                max_age=config.retry.max_age,
                jitter=config.retry.jitter,
            ),
            on_doubt=OnDoubt(config.delivery.on_doubt),
        )
        if settings.username is None and ehlo_name(config) == config.hostname:
            settings = replace(settings, policy=settings._policy(config.hostname))
        return settings

    @property
    def relay(self) -> bool:
        """Whether all mail goes to the relay."""
        return self.config.delivery.mode == "relay"

    @property
    def username(self) -> str | None:
        """Whom the relay knows; its password is read anew for each session."""
        return self.config.relay.username if self.relay else None

    def session_policy(self, own_address: Callable[[], str]) -> SessionPolicy:
        """How sessions are opened now.

        Args:
            own_address: our own end of the connection; asked where it is our name.

        Raises:
            ConfigError: the relay's password cannot be read.
        """
        if self.policy is not None:
            return self.policy
        named = ehlo_name(self.config) == self.config.hostname
        return self._policy(
            self.config.hostname if named else ehlo_name(self.config, own_address())
        )

    def _policy(self, name: str) -> SessionPolicy:
        config, username = self.config, self.username
        tls: Tls
        if self.relay:
            tls = config.relay.tls
            if config.tls.require and tls in ("none", "opportunistic"):
                tls = "required"
        else:
            tls = "required" if config.tls.require or config.tls.verify else "opportunistic"
        local = self.relay and all(_loopback(host.name) for host in relay_hosts(config.relay))
        return SessionPolicy(
            ehlo_name=name,
            timeouts=self.timeouts,
            tls=tls,
            verify=config.tls.verify,
            ca_file=config.tls.ca_file,
            min_version=config.tls.min_version,
            username=username,
            password=relay_password(config.relay) if username is not None else None,
            plaintext_auth=local,  # the wire stays inside this machine
            mechanism=None if config.relay.mechanism == "auto" else config.relay.mechanism,
            dialect=Dialect(
                pipelining=Pipelining(config.delivery.pipelining),
                chunk_octets=config.delivery.chunking_max_size,
                depth=config.delivery.pipeline_depth,
            ),
        )


@dataclass(slots=True, kw_only=True)
class Context:
    """Shared by the engine, its lanes and its router."""

    worker: int
    db: DBService
    settings: Settings
    resolver: Resolver
    machine: Machine = THIS
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    paused_until: float = 0.0
    """Loop time until which no lane is leased: this machine has trouble of its own."""
    unanswered: dict[int, None] = field(default_factory=dict)
    """Messages whose transaction a host ended unanswered, so that a site was left alone for it:
    the excuse holds once, or one message could keep a site from all others."""
    cut_short: dict[int, None] = field(default_factory=dict)
    """Messages whose flight a host cut short, once."""
    unserved: frozenset[int] = frozenset()
    """Sites with due work that the last look found no lane for, neither new nor idle."""
    crowded: bool = False
    """Whether such work waits for a connection of this worker: none is kept for nothing."""
    workers: int = 1
    """Live delivery workers, when it was looked at last."""
    _room: bool = True
    _held_bytes: int = 0
    _streamed_bytes: int = 0
    _mean_octets: float = 0.0
    _troubled: bool = False
    _looked: float = float("-inf")
    rounds: Rounds = field(default_factory=Rounds)
    """How often hosts closed on an attempt behind recipients that they refused."""
    resting: dict[str, float] = field(default_factory=dict)
    """Host name -> loop time until which it goes last; who rests longest comes last."""
    limits: MailLimits = field(default_factory=lambda: MailLimits(asyncio.get_running_loop().time))
    releases: Shared[int, None] = field(init=False)
    """Takes lanes back, by their tokens."""
    lack: Complaint = field(init=False)
    """Tells what this machine lacks."""
    answers: Shared[RouteAnswer, Sequence[Failure]] = field(init=False)
    """Stores what was found out about domains; gives back who failed by it."""

    def __post_init__(self) -> None:
        self.lack = Complaint("connect", lambda: asyncio.get_running_loop().time())
        self.releases = Shared(self.db, self._release)
        self.answers = Shared(self.db, self._put_routes)

    def _release(self, store: WorkerStore, lanes: Sequence[int]) -> Sequence[None]:
        store.release(lanes, self.now_ms(), on_doubt=self.settings.on_doubt)
        return [None] * len(lanes)

    def _put_routes(
        self, store: WorkerStore, answers: Sequence[RouteAnswer]
    ) -> Sequence[Sequence[Failure]]:
        refusing = any(answer.refusal is not None for answer in answers)
        before = store.last_event() if refusing else 0
        store.put_routes(self.worker, answers, self.now_ms())
        return [
            () if answer.refusal is None else store.failed_since(before, domain=answer.route.domain)
            for answer in answers
        ]

    @property
    def share(self) -> int:
        """How many lanes of a site are this worker's part."""
        return -(-self.settings.config.sites.connections // self.workers)

    def now_ms(self) -> int:
        """Milliseconds since the epoch, UTC."""
        return self.machine.wall_ms()

    def random(self) -> float:
        """A number from 0 to below 1."""
        return self.machine.random()

    def wake(self) -> None:
        """Let the engine look for work now."""
        self.woken.set()

    def excuse(self, message: int) -> None:
        """Remember that this message had its excuse."""
        _remember(self.unanswered, message)

    def again_cut_short(self, message: int) -> bool:
        """Remember that this message's flight was cut short; whether one of its was before."""
        before = message in self.cut_short
        _remember(self.cut_short, message)
        return before

    def reserve(self, messages: int, most: int) -> int:
        """Octets of content that a claim may read; to be freed when it did.

        Args:
            messages: that it wants; what they need is guessed from those before.
            most: the upper bound.
        """
        wanted = min(most, messages * max(LEAST_OCTETS, int(2 * self._mean_octets)))
        granted = max(0, min(wanted, READ_AHEAD_BYTES - self._held_bytes))
        self._held_bytes += granted
        return granted

    def hold(self, octets: int) -> None:
        """Count content that was read."""
        self._held_bytes += octets
        self._mean_octets += (octets - self._mean_octets) / (64 if self._mean_octets else 1)

    def stream(self, octets: int) -> None:
        """Count a piece of content that is read while it is sent; negative: it is sent."""
        self._streamed_bytes += octets

    @property
    def laden(self) -> bool:
        """Whether as much content is held as may be, pieces that are being sent included."""
        return self._held_bytes + self._streamed_bytes >= READ_AHEAD_BYTES

    @property
    def spent(self) -> bool:
        """Whether as much content is held as may be: nobody claims who has work in hand."""
        return self._held_bytes >= READ_AHEAD_BYTES

    def free(self, octets: int) -> None:
        """Content, or a reservation, is no longer held."""
        self._held_bytes -= octets

    def has_room(self) -> bool:
        """Whether results could be stored when it was looked at last."""
        return self._room

    async def look_for_room(self) -> None:
        """Look, once a second, whether the spool can take the results."""
        now = asyncio.get_running_loop().time()
        if now < self._looked + ROOM_LOOK_S:
            return
        self._looked = now
        trouble: str | None = None
        full = False  # of a full log ``store.pinned`` tells
        try:
            free, full = await self.db.call(lambda store: (store.room_bytes(), store.log_full))
            if free is not None and free < ROOM_BYTES:
                trouble = f"less than {mebibytes(ROOM_BYTES)} are free on the disk"
        except SpoolError as error:
            trouble = str(error)
        if trouble is not None and not self._troubled:
            events.engine_failed(where="disk", error=f"{trouble}; nothing is claimed")
        self._troubled = trouble is not None
        self._room = trouble is None and not full

    def pause(self, error: str) -> None:
        """Lease nothing for a while.

        Args:
            error: what this machine lacks.
        """
        self.lack.say(f"{error}; no connection is begun for {PAUSE_S:g} s")
        self.paused_until = asyncio.get_running_loop().time() + PAUSE_S

    def rest(self, host: str) -> None:
        """Put a host that could not be used at the end of the line for a while."""
        now, resting = asyncio.get_running_loop().time(), self.resting
        resting.pop(host, None)
        resting[host] = now + HOST_REST_S
        while resting[first := next(iter(resting))] <= now:  # many are never asked about again
            del resting[first]

    def rests(self, host: str) -> bool:
        """Whether a host goes last for now."""
        until = self.resting.get(host)
        if until is None:
            return False
        if asyncio.get_running_loop().time() >= until:
            del self.resting[host]
            return False
        return True


def _remember(messages: dict[int, None], message: int) -> None:
    messages[message] = None
    if len(messages) > MOST_EXCUSES:
        del messages[next(iter(messages))]
