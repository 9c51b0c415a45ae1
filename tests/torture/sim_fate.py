"""What befalls a simulated story: sends and changes of a client, deaths, stops, reloads, jumps.

Contract: ``Fate.plan`` draws what happens when; each step acts on the world from outside of all
simulated processes and counts itself only where it really happened.

Must not know: what is right (``sim_oracle`` does).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mailstrom.errors import OutcomeUnknown, SpoolError
from mailstrom.storage.client import Submission, Target
from mailstrom.types import Change, OnDoubt
from mailstrom_workers.dbrequest import StoreEnded
from mailstrom_workers.presence import Presence
from tests.torture.sim_cast import Mail, Worker
from tests.torture.sim_peer import moody

if TYPE_CHECKING:
    from tests.torture.sim_world import World

_CHANGES = (
    Change.CANCEL, Change.CANCEL, Change.HOLD, Change.HOLD, Change.RELEASE, Change.RELEASE,
    Change.RETRY, Change.RESOLVE_DELIVERED, Change.RESOLVE_RETRY, Change.RESOLVE_FAILED,
)  # fmt: skip


class Fate:
    """Draws and does.

    Args:
        world: whom it befalls.
    """

    def __init__(self, world: World) -> None:
        self.world = world

    def send(self) -> None:
        """Send a message."""
        rng, number = self.world.rng, len(self.world.mails)
        now_ms = self.world.wall_ms()
        recipients = tuple(
            dict.fromkeys(
                f"r{number}.{n}@{rng.choice(self.world.domains)}"
                for n in range(rng.choice((1, 1, 2, 4)))
            )
        )
        message_id = f"<m{number}@sender.test>"
        size = rng.choice((20, 200, 2_000)) if rng.random() < 0.98 else 300_000
        text = f"From: a@sender.test\r\nMessage-ID: {message_id}\r\n\r\n".encode()
        text += b".dots and lines\r\n" * (size // 17)
        delay_ms = rng.choice((0, 0, 0, 0, 1_500))
        expires = now_ms + delay_ms + rng.choice((1_000, 3_000)) if rng.random() < 0.15 else None
        mail = Mail(
            Submission(
                id=f"{number:026d}",
                content=text,
                sender="a@sender.test",
                recipients=recipients,
                subject="s",
                message_id=message_id,
                stream="default",
                priority=rng.choice((None, 0, 1, 2)),
                tags=(),
                metadata={},
                created_ms=now_ms,
                send_ms=now_ms + delay_ms,
                expires_ms=expires,
                on_doubt=rng.choice((None, None, OnDoubt.RETRY, OnDoubt.HOLD)),
                require_tls=False,
                eightbit=False,
                smtputf8=False,
                reports=number % 3 == 0,  # every third sender wants to hear of failures
            )
        )
        self.world.mails.append(mail)
        try:
            self.world.client.enqueue([mail.submission], now_ms)
            mail.answered = True
        except OutcomeUnknown:
            mail.answered = None
        except SpoolError as error:
            self.world.note(f"send refused: {error}".replace(self.world.path, "spool"))
        self.world.note(f"send {message_id} {mail.answered} {recipients}")

    def change(self) -> None:
        """A person changes something."""
        if not self.world.mails:
            return
        rng = self.world.rng
        mail = rng.choice(self.world.mails)
        recipient = rng.choice(mail.submission.recipients)
        change = rng.choice(_CHANGES)
        known = True
        try:
            found = self.world.client.change(
                change, [Target(mail.submission.id, recipient)], self.world.wall_ms()
            )
        except OutcomeUnknown:
            found, known = 1, False
        except SpoolError:
            return
        self.world.note(f"{change} {mail.submission.message_id} {recipient}: {found} {known}")
        if not found:
            return
        self.world.fault(f"client {change}")
        now_s = self.world.loop.now_s
        spans = mail.held.setdefault(recipient, [])
        if change is Change.CANCEL and known:
            mail.cancelled[recipient] = now_s
        elif change is Change.HOLD and known:
            spans.append((now_s, float("inf")))
        elif spans and spans[-1][1] == float("inf"):
            spans[-1] = (spans[-1][0], now_s)
        if change is Change.RESOLVE_DELIVERED:
            self.world.believed.add((mail.submission.id, recipient))
        if change not in (Change.CANCEL, Change.HOLD):
            mail.touched.add(recipient)

    # --- what befalls them ------------------------------------------------------------------

    def victim(self) -> Worker | None:
        living = self.world.living()
        return self.world.rng.choice(living) if living else None

    def kill_one(self) -> None:
        victim = self.victim()
        if victim is not None:
            self.world.fault(f"kill {victim.kind}")
            self.world.kill(victim)

    def kill_all(self) -> None:
        self.world.fault("kill all")
        for worker in self.world.living():
            self.world.kill(worker)

    def reboot(self, looks: int = 100) -> None:
        """The power goes: where there are such within a second, while commits are unsynced."""
        if self.world.finished:
            return
        ripe = self.world.disk.behind() and self.world.rng.random() < 0.2
        if looks and not ripe:
            self.world.later(0.01 * self.world.rng.random(), lambda: self.reboot(looks - 1))
            return
        self.world.fault("reboot")
        for worker in self.world.living():
            self.world.kill(worker)
        self.world.boot = f"boot-{len(self.world.trace)}"
        self.world.power_cut()

    def stop(self) -> None:
        victim = self.victim()
        if victim is None or victim.stopped:
            return
        self.world.fault(f"stop {victim.kind}")
        self.world.note(f"stop {victim.name}")
        victim.stop()
        seconds = self.world.rng.choice((0.1, 1.0, 3.0))
        victim.stops.append((self.world.loop.now_s, self.world.loop.now_s + seconds))
        if self.world.rng.random() < 0.3:
            self.world.later(seconds, lambda: self.world.kill(victim))
        else:
            self.world.later(seconds, lambda: self.go_on(victim))

    def go_on(self, victim: Worker) -> None:
        if victim.stopped and not victim.dead:
            self.world.note(f"continue {victim.name}")
            victim.go_on()

    def unlock(self) -> None:
        deliveries = [
            w for w in self.world.living("delivery") if w.presence and w.presence.lock.held
        ]
        if deliveries:
            victim = self.world.rng.choice(deliveries)
            assert victim.presence is not None
            self.world.fault("lock lost")
            self.world.note(f"unlock {victim.name}")
            victim.zombie = True
            victim.presence.lock.release()

    def drain(self) -> None:
        deliveries = [w for w in self.world.living("delivery") if w.presence and not w.stopped]
        if deliveries:
            victim = self.world.rng.choice(deliveries)
            assert victim.presence is not None
            self.world.fault("drain")
            self.world.note(f"drain {victim.name}")
            victim.presence.drain()

    def damage(self) -> None:
        """What is to be recorded meets damage for a while, and somebody drains meanwhile."""
        if self.world.calm or self.world.finished:
            return
        self.world.note("damage")
        self.world.damaged = True
        self.world.later(0.05 * self.world.rng.random(), self.drain)
        self.world.later(self.world.rng.choice((0.3, 2.0)), self.mended)

    def mended(self) -> None:
        self.world.note("mended")
        self.world.damaged = False

    def reload(self) -> None:
        self.world.limit = self.world.rng.choice((1, 2, 3))
        self.world.limits.append(self.world.limit)
        self.world.config = self.world.configure()
        self.world.fault("reload")
        self.world.note("reload")
        for worker in self.world.living():
            if worker.presence is not None:
                worker.begin(self.adopt(worker.presence), "reload")

    async def adopt(self, presence: Presence) -> None:
        try:
            await presence.adopt(self.world.config)
        except (SpoolError, StoreEnded) as error:
            self.world.note(f"reload refused: {error}")

    def jump(self) -> None:
        by_ms = self.world.rng.choice(
            (-86_400_000, -3_600_000, -5_000, 5_000, 3_600_000, 86_400_000)
        )
        self.world.fault("clock jump")
        self.world.note(f"jump {by_ms}")
        self.world.jump_ms += by_ms

    def moods(self) -> None:
        for _, host in self.world.hosts.values():
            host.mood = moody(self.world.rng)

    def move(self) -> None:
        domain = self.world.rng.choice(self.world.domains)
        self.world.zone[domain] = self.world.rng.choice(list(self.world.sites))
        self.world.fault("domain moves")
        self.world.note(f"move {domain} {self.world.zone[domain]}")

    def plan(self) -> list[tuple[float, Callable[[], object]]]:
        """What happens when: the client's sends and changes, and faults."""
        rng = self.world.rng
        span = self.world.horizon_s
        steps: list[tuple[float, Callable[[], object]]] = []
        for _ in range(rng.randint(5, 12)):
            steps.append((span * 0.6 * rng.random() ** 2, self.send))
        for _ in range(rng.randint(0, 5)):
            steps.append((span * rng.random(), self.change))
        kinds: list[tuple[float, Callable[[], object]]] = [
            (0.5, self.kill_one),
            (0.4, self.kill_one),
            (0.3, self.kill_one),
            (0.07, self.kill_all),
            (0.15, self.reboot),
            (0.3, self.stop),
            (0.15, self.unlock),
            (0.3, self.drain),
            (0.2, self.damage),
            (0.2, self.reload),
            (0.5, self.moods),
            (0.15, self.move),
            (1.0 if self.world.jumps else 0.0, self.jump),
        ]
        for odds, step in kinds:
            if rng.random() < odds:
                steps.append((span * rng.random(), step))
        steps.sort(key=lambda step: step[0])
        return steps
