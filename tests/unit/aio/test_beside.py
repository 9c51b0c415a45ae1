"""What ``AsyncMailstrom`` does in the loop and what beside it: nobody waits for another's lock."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from mailstrom import AsyncMailstrom, InvalidAddress, MessageNotFound, SpoolBusy, SpoolError
from mailstrom.storage.sqlite.connection import connect
from tests.unit.aio.gate import Gate, impatient


def test_objects_and_large_messages_are_composed_beside_the_loop(name: str) -> None:
    async def main() -> None:
        async with AsyncMailstrom(name) as ms:
            where: set[int] = set()
            real = ms._ms._submission

            def composing(message: object, **options: Any) -> Any:
                where.add(threading.get_ident())
                return real(message, **options)

            ms._ms._submission = composing  # type: ignore[method-assign]
            given = EmailMessage()
            given["From"] = given["To"] = "a@example.com"
            given.set_content("x\n" * 50_000)
            id = await ms.send(given, tags=["big"], metadata={"n": 1})
            await ms.send(await ms.raw(id))
            assert threading.get_ident() not in where
            found = await ms.status(id)
            assert (found.tags, found.metadata) == (("big",), {"n": 1})
            assert (await ms.message(id))["To"] == "a@example.com"

    asyncio.run(main())


def test_composing_waits_for_nobody_who_waits_to_write(name: str, message: bytes) -> None:
    async def main() -> None:
        async with AsyncMailstrom(name, timeout=30) as ms:
            id = await ms.send(message)
            threads = threading.active_count()
            gate = Gate(ms._ms)
            changing = [ms.cancel, ms.hold, ms.release, ms.retry] * 2
            waiting = [asyncio.ensure_future(change(id)) for change in changing]
            waiting += [asyncio.ensure_future(one) for one in (ms.recent(), ms.adopt())]
            waiting += [asyncio.ensure_future(ms.resolve(id, "retry", recipient="b@example.org"))]
            given = EmailMessage()
            given["From"] = given["To"] = "a@example.com"
            waiting.append(asyncio.ensure_future(ms.send(given)))
            queue = ms._ms._committer._line.queue
            for _ in range(4_000):
                if queue.qsize() == len(waiting):
                    break
                await asyncio.sleep(0.005)
            assert queue.qsize() == len(waiting), "all are in the writing thread's queue"
            assert threading.active_count() <= threads + 2  # the gate's, one that composes
            gate.let_go()
            found = await asyncio.gather(*waiting)
            assert found[:8] == [1, 0, 0, 0, 0, 0, 0, 0]
            assert [status.id for status in found[8]] == [id]
            assert (found[9:11], isinstance(found[11], str)) == ([False, 0], True)

    asyncio.run(main())


def test_a_busy_spool_is_an_error_in_time_and_the_loop_goes_on(
    tmp_path: Path, message: bytes
) -> None:
    async def main() -> None:
        async with AsyncMailstrom(tmp_path / "spool.db", timeout=30) as ms:
            await ms.send(message)
            gate = Gate(ms._ms)
            impatient(ms._ms, 0.2)
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    await asyncio.sleep(0)
                    ticks += 1

            sending = asyncio.create_task(ms.send(message))
            ticking = asyncio.create_task(tick())
            with pytest.raises(SpoolBusy, match=r"no turn to write within 0\.2 s"):
                await sending
            assert ticks >= 1, "the loop was not kept waiting"
            ticking.cancel()
            gate.let_go()
            impatient(ms._ms, 30)
            await ms.adopt()  # behind everything that waited
        async with AsyncMailstrom(tmp_path / "spool.db", timeout=0.2) as ms:
            other = connect(str(tmp_path / "spool.db"))
            other.execute("BEGIN IMMEDIATE").fetchall()
            with pytest.raises(SpoolBusy):
                await ms.send_many([message])
            other.execute("ROLLBACK").fetchall()
            other.close()
            assert (await ms.query("SELECT count(*) FROM messages")) == [(1,)]

    asyncio.run(main())


@pytest.mark.parametrize("verb", ["cancel", "hold", "release", "retry", "recent", "adopt", "send"])
def test_every_verb_that_writes_gives_up_in_time_and_is_withdrawn(
    name: str, message: bytes, verb: str
) -> None:
    async def main() -> None:
        async with AsyncMailstrom(name, timeout=30) as ms:
            id = await ms.send(message)
            argument: dict[str, Any] = {"recent": (), "adopt": (), "send": (message,)}
            gate = Gate(ms._ms)
            impatient(ms._ms, 0.1)
            with pytest.raises(SpoolBusy, match="no turn to write"):
                await getattr(ms, verb)(*argument.get(verb, (id,)))
            gate.let_go()
            assert (await ms.stats()).waiting["queued"] == 1
            assert await ms.check() == []

    asyncio.run(main())


def test_changing_says_what_is_wrong_as_the_plain_client_does(name: str, message: bytes) -> None:
    async def main() -> None:
        async with AsyncMailstrom(name) as ms:
            id = await ms.send(message)
            for call, error in (
                (lambda: ms.cancel("unknown"), MessageNotFound),
                (lambda: ms.cancel("\ud800"), MessageNotFound),
                (lambda: ms.hold(7), TypeError),  # type: ignore[arg-type]
                (lambda: ms.retry(id, recipient="nobody"), InvalidAddress),
                (lambda: ms.resolve(id, "lost"), ValueError),
                (lambda: ms.recent(0), ValueError),
            ):
                with pytest.raises(error):
                    await call()
            assert await ms.cancel(id, recipient="other@example.org") == 0
            assert await ms.cancel(id, recipient="b@EXAMPLE.org") == 1
        for closed in (ms.cancel(id), ms.recent(), ms.adopt(), ms.send(message)):
            with pytest.raises(SpoolError, match="closed"):
                await closed

    asyncio.run(main())


class Watched:
    """Where and how a client composes."""

    def __init__(self, ms: AsyncMailstrom) -> None:
        self.threads: list[int] = []
        self.given: list[dict[str, Any]] = []
        self._real = ms._ms._submission
        ms._ms._submission = self  # type: ignore[assignment]

    def __call__(self, message: object, **given: Any) -> Any:
        self.threads.append(threading.get_ident())
        self.given.append(given)
        return self._real(message, **given)


LONG: dict[str, Callable[[], dict[str, Any]]] = {
    "list": lambda: {"recipients": [f"r{n}@example.org" for n in range(2_000)]},
    "generator": lambda: {"recipients": (f"r{n}@example.org" for n in range(2_000))},
    "metadata": lambda: {"metadata": {f"k{n}": n for n in range(2_000)}},
    "long text": lambda: {"metadata": {"k": "x" * 100_000}},
}


@pytest.mark.parametrize("case", LONG)
def test_a_small_message_with_long_arguments_is_composed_beside_the_loop(
    name: str, message: bytes, case: str
) -> None:
    async def main() -> None:
        async with AsyncMailstrom(name) as ms:
            await ms.send(message)
            watched = Watched(ms)
            await ms.send(message, recipients=["c@example.org"], tags=["x"], metadata={"n": 1})
            assert watched.threads == [threading.get_ident()]
            await ms.send(message, **LONG[case]())
            await ms.send_many([message], **LONG[case]())
            assert len(watched.threads) == 3
            assert threading.get_ident() not in watched.threads[1:]

    asyncio.run(main())


def test_iterables_given_as_arguments_are_read_in_the_callers_thread(
    name: str, message: bytes
) -> None:
    where: set[int] = set()

    def words(*texts: str) -> Iterator[str]:
        for text in texts:
            where.add(threading.get_ident())
            yield text

    async def main() -> None:
        async with AsyncMailstrom(name) as ms:
            given = EmailMessage()
            given["From"] = "a@example.com"
            for one in (message, given):
                id = await ms.send(one, recipients=words("c@example.org"), tags=words("x", "y"))
                found = await ms.status(id)
                assert (list(found.recipients), found.tags) == (["c@example.org"], ("x", "y"))
            mails = [(given, {"tags": words("z")}), message]
            sent = await ms.send_many(mails, recipients=words("d@x.test"))
            assert (await ms.status(sent[0])).tags == ("z",)
            for id_of_many in sent:  # one generator for all of them
                assert list((await ms.status(id_of_many)).recipients) == ["d@x.test"]
            assert len(await ms.find(tag=words("x"), status=words("queued"))) == 2
            assert set(await ms.statuses(words(id))) == {id}
            assert await ms.events(types=words("message.accepted"))
            assert await ms.change_all("hold", ids=words(id), domain=words("example.org")) == 1
            assert where == {threading.get_ident()}

    asyncio.run(main())
