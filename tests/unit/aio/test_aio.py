"""``AsyncMailstrom`` in a loop: sends share commits, waiting costs little, cancelling is clean."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from email.message import EmailMessage
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mailstrom import (
    AsyncMailstrom,
    IdempotencyConflict,
    InvalidMessage,
    Mailstrom,
    MessageNotFound,
    OutcomeUnknown,
    SpoolError,
    Status,
)
from mailstrom.aio.watch import Finals, Watch
from mailstrom.client.sending import CHUNK_MESSAGES
from mailstrom.types import MessageStatus
from tests.unit.aio.gate import Gate, begun, counted, impatient

# --- sending ------------------------------------------------------------------------------------


def test_a_thousand_sends_at_once_share_a_few_commits(name: str, message: bytes) -> None:
    async def main() -> None:
        async with AsyncMailstrom(name, timeout=30) as ms:
            await ms.send(message)
            threads = threading.active_count()
            sizes = counted(ms._ms)
            gate = Gate(ms._ms)
            sending = asyncio.gather(*(ms.send(message) for _ in range(1_000)))
            await asyncio.sleep(0)
            gate.let_go()
            ids = await sending
            assert len(set(ids)) == sum(sizes) == 1_000
            assert len(sizes) <= 10
            assert threading.active_count() <= threads + 1
            assert (await ms.query("SELECT count(*) FROM messages")) == [(1_001,)]
            assert await ms.check() == []

    asyncio.run(main())


def test_each_concurrent_send_gets_its_own_error(name: str, message: bytes) -> None:
    async def main() -> None:
        async with AsyncMailstrom(name) as ms:
            await ms.send(message, idempotency_key="k")
            results = await asyncio.gather(
                ms.send(message, idempotency_key="k"),
                ms.send(message.replace(b"hello", b"other"), idempotency_key="k"),
                ms.send(b"no header at all"),
                ms.send(message),
                return_exceptions=True,
            )
            assert [type(one) for one in results] == [
                str, IdempotencyConflict, InvalidMessage, str
            ]  # fmt: skip

    asyncio.run(main())


def test_a_send_that_is_cancelled_in_the_queue_is_withdrawn(name: str, message: bytes) -> None:
    async def main() -> None:
        async with AsyncMailstrom(name, timeout=30) as ms:
            await ms.send(message)
            gate = Gate(ms._ms)
            sending = asyncio.create_task(ms.send(message))
            await asyncio.sleep(0)
            assert ms._ms._committer._line.queue.qsize() == 1
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            gate.let_go()
            await ms.send(message)
            assert (await ms.query("SELECT count(*) FROM messages")) == [(2,)]

    asyncio.run(main())


def test_a_disk_that_does_not_answer_leaves_the_outcome_unknown(
    name: str, message: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailstrom.aio.sending.SYNC_GRACE_S", 0.05)

    async def main() -> None:
        async with AsyncMailstrom(name) as ms:
            real = ms._ms._store.enqueue
            entered, go = threading.Event(), threading.Event()

            def slow(*given: Any, **options: Any) -> Any:
                entered.set()
                assert go.wait(30)
                return real(*given, **options)

            ms._ms._store.enqueue = slow  # type: ignore[method-assign]
            begun(ms._ms, entered)
            impatient(ms._ms, 0.05)
            with pytest.raises(OutcomeUnknown, match="may or may not be stored") as caught:
                await ms.send(message)
            go.set()
            while caught.value.key not in await ms.statuses([caught.value.key]):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_send_many_takes_plain_and_asynchronous_streams(name: str, message: bytes) -> None:
    async def stream() -> AsyncIterator[Any]:
        for number in range(600):
            await asyncio.sleep(0)
            yield message, {"tags": [f"t{number}"]}

    async def main() -> None:
        async with AsyncMailstrom(name) as ms:
            sizes = counted(ms._ms)
            ids = await ms.send_many(stream(), priority="low")
            assert sizes[0] == CHUNK_MESSAGES
            assert sum(sizes) == 600
            assert [s.tags for s in (await ms.statuses(ids)).values()] == [
                (f"t{number}",) for number in range(600)
            ]
            more = await ms.send_many(message for _ in range(3))
            assert len(set(more)) == 3
            for bad in (5, message, "text", EmailMessage()):
                with pytest.raises(TypeError, match="messages"):
                    await ms.send_many(bad)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="prio"):
                await ms.send_many([message], prio="low")

    asyncio.run(main())


def test_a_bad_message_of_many_tells_what_was_accepted(name: str, message: bytes) -> None:
    closed = []

    async def stream() -> AsyncIterator[bytes]:
        try:
            for _ in range(CHUNK_MESSAGES + 2):
                yield message
            yield b"no header at all"
        finally:
            closed.append(True)

    async def main() -> None:
        async with AsyncMailstrom(name) as ms:
            with pytest.raises(InvalidMessage) as caught:
                await ms.send_many(stream())
            assert len(caught.value.ids) == CHUNK_MESSAGES
            assert (await ms.query("SELECT count(*) FROM messages")) == [(CHUNK_MESSAGES,)]

    asyncio.run(main())
    assert closed


# --- waiting ------------------------------------------------------------------------------------


def test_many_waits_read_together_and_end_each_in_its_time(name: str, message: bytes) -> None:
    async def main() -> None:
        async with AsyncMailstrom(name) as ms:
            ids = await ms.send_many([message] * 200)
            reads: list[int] = []
            real = ms._ms._store.statuses

            def statuses(asked: Sequence[str]) -> Any:
                reads.append(len(asked))
                return real(asked)

            ms._ms._store.statuses = statuses  # type: ignore[method-assign]
            waits = [asyncio.create_task(ms.wait(id, timeout=30)) for id in ids]
            assert await ms.cancel(ids[7]) == 1
            assert (await waits[7]).status is Status.CANCELLED
            assert not any(wait.done() for wait in waits if wait is not waits[7])
            await ms.change_all("cancel", ids=ids)
            assert {(await wait).status for wait in waits} == {Status.CANCELLED}
            assert len(reads) < 50, "one read for all of them"

    asyncio.run(main())


def test_a_wait_that_takes_too_long_and_one_for_nothing(name: str, message: bytes) -> None:
    async def main() -> None:
        async with AsyncMailstrom(name) as ms:
            id = await ms.send(message)
            for timeout in (0, -1, 0.02):
                with pytest.raises(TimeoutError, match=f"message {id} was not completed within"):
                    await ms.wait(id, timeout=timeout)
            for timeout in (None, 0, 60):
                with pytest.raises(MessageNotFound):
                    await ms.wait("nothing-here", timeout)
            waiting = asyncio.create_task(ms.wait(id))
            await asyncio.sleep(0.02)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert ms._watched()[1]._awaited == {}
            await ms.cancel(id)
            for forever in (None, float("inf"), 1e12, 0):
                assert (await ms.wait(id, forever)).completed

    asyncio.run(main())


def test_a_look_that_began_before_a_wait_does_not_answer_it() -> None:
    rows: dict[str, MessageStatus] = {}

    async def main() -> None:
        looking, go_on = asyncio.Event(), asyncio.Event()

        async def statuses(ids: list[str]) -> dict[str, MessageStatus]:
            found = {id: rows[id] for id in ids if id in rows}
            looking.set()
            await go_on.wait()
            return found

        async def revision() -> int:
            return 1

        watch = Watch(asyncio.get_running_loop(), revision)
        finals = Finals(watch, statuses, lambda id: MessageNotFound(id))
        early = finals.expect("x")
        await looking.wait()
        rows["x"] = cast(MessageStatus, SimpleNamespace(completed=True))  # stored, and delivered
        late = finals.expect("x")
        go_on.set()
        with pytest.raises(MessageNotFound):
            await early
        assert await late is rows["x"]
        finals.forget("x", early)
        finals.forget("x", late)

    asyncio.run(main())


def test_a_wait_whose_time_is_over_tells_what_it_finds(name: str, message: bytes) -> None:
    async def main() -> None:
        async with AsyncMailstrom(name) as ms:
            id = await ms.send(message)
            await ms.cancel(id)

            async def never(_ids: list[str]) -> dict[str, MessageStatus]:
                await asyncio.Event().wait()
                raise AssertionError

            ms._watched()[1]._statuses = never
            assert (await ms.wait(id, timeout=0.01)).status is Status.CANCELLED

    asyncio.run(main())


def test_waits_and_followers_end_with_the_client(name: str, message: bytes) -> None:
    async def main() -> None:
        ms = AsyncMailstrom(name)
        id = await ms.send(message)

        async def following() -> None:
            async for _ in ms.follow():
                pass

        tasks = [asyncio.create_task(ms.wait(id)), asyncio.create_task(following())]
        await asyncio.sleep(0.05)
        await ms.close()
        await ms.close()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, SpoolError)
            assert "closed" in str(result)
        for step in (ms.send(message), ms.send_many([message]), ms.status(id), ms.cancel(id),
                     ms.check(), ms.stats()):  # fmt: skip
            with pytest.raises(SpoolError, match="closed"):
                await step

    asyncio.run(main())


def test_following_goes_on_for_ever_and_ends_when_it_is_cancelled(
    name: str, message: bytes
) -> None:
    async def main() -> None:
        async with AsyncMailstrom(name) as ms:
            ids = await ms.send_many([message] * 3)
            await ms.hold(ids[0])
            seen: list[str | None] = []
            ready = asyncio.Event()

            async def follow() -> None:
                async for event in ms.follow(0, types=["message.held"]):
                    seen.append(event.message_id)
                    if len(seen) in (1, 3):
                        ready.set()

            task = asyncio.create_task(follow())
            await asyncio.wait_for(ready.wait(), 30)
            ready.clear()
            await ms.hold(ids[1])
            await ms.cancel(ids[0])
            await ms.hold(ids[2])
            await asyncio.wait_for(ready.wait(), 30)
            assert seen == ids
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert ms._watched()[0]._waiting == set()
            with pytest.raises(ValueError, match="types"):
                ms.follow(types="nonsense")

    asyncio.run(main())


def test_while_nobody_waits_nothing_is_looked_at(name: str, message: bytes) -> None:
    async def main() -> None:
        async with AsyncMailstrom(name) as ms:
            id = await ms.send(message)
            with contextlib.suppress(TimeoutError):
                await ms.wait(id, timeout=0.02)
            await asyncio.sleep(0.3)
            watch, finals = ms._watched()
            assert watch._waiting == set()
            assert finals._awaited == {}
            asked: list[int] = []
            real = ms._ms._store.revision
            ms._ms._store.revision = lambda: (asked.append(1), real())[1]  # type: ignore[method-assign]
            await asyncio.sleep(0.2)
            assert len(asked) <= 1

    asyncio.run(main())


# --- life ---------------------------------------------------------------------------------------


def test_a_given_client_is_used_and_left_open(name: str, message: bytes) -> None:
    with Mailstrom(name) as plain:

        async def main() -> str:
            async with AsyncMailstrom(plain) as ms:
                assert ms.path == plain.path
                return await ms.send(message)

        assert plain.status(asyncio.run(main())).status is Status.QUEUED
        with pytest.raises(TypeError, match="config"):
            AsyncMailstrom(plain, config="x")


def test_one_object_serves_one_loop_after_the_other_and_two_at_once(
    name: str, message: bytes
) -> None:
    ms = AsyncMailstrom(name)

    async def use() -> str:
        id = await ms.send(message)
        waiting = asyncio.create_task(ms.wait(id, 30))
        await asyncio.sleep(0.02)
        await ms.cancel(id)
        return (await waiting).id

    ids = [asyncio.run(use()) for _ in range(2)]
    threads = [threading.Thread(target=lambda: ids.append(asyncio.run(use()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(set(ids)) == 5
    asyncio.run(ms.close())


def test_create_opens_beside_the_loop_and_closes_what_it_opened(
    tmp_path: Path, message: bytes
) -> None:
    async def main() -> None:
        async with await AsyncMailstrom.create(tmp_path / "spool.db") as ms:
            id = await ms.send(message)
            assert [s.id for s in await ms.find(status="queued")] == [id]
            assert [s.id for s in await ms.recent()] == [id]
            assert await ms.hold(id) == await ms.release(id) == await ms.retry(id) == 1
            assert await ms.resolve(id, "retry") == 0
            assert (await ms.stats()).waiting["queued"] == 1
            assert (await ms.events(limit=1))[0].message_id == id
            assert await ms.suppressions.list() == []
            assert await ms.suppressions.get("b@example.org") is None
            assert not (await ms.worker_status()).ok
            assert await ms.stop() is True
            await ms.backup(tmp_path / "copy.db")
            assert await ms.adopt() is False
        with pytest.raises(SpoolError, match="closed"):
            ms._ms.status(id)

    asyncio.run(main())


def test_a_closed_client_is_not_entered(name: str) -> None:
    async def main() -> None:
        with Mailstrom(name) as given:
            for ms in (AsyncMailstrom(name), AsyncMailstrom(given)):
                async with ms:
                    pass
                with pytest.raises(SpoolError, match="closed"):
                    await ms.__aenter__()
            late = AsyncMailstrom(given)
        with pytest.raises(SpoolError, match="closed"):
            await late.__aenter__()

    asyncio.run(main())


def test_a_loop_that_ends_in_the_midst_of_sends_harms_nobody(name: str, message: bytes) -> None:
    with Mailstrom(name, timeout=30) as plain:
        plain.send(message)
        gate = Gate(plain)

        async def leave() -> None:
            ms = AsyncMailstrom(plain)
            task = asyncio.ensure_future(ms.send(message))
            await asyncio.sleep(0.01)
            assert not task.done()

        asyncio.run(leave())
        gate.let_go()
        assert plain.send(message)
        assert plain.query("SELECT count(*) FROM messages") == [(2,)], "cancelled with the loop"


@pytest.fixture(autouse=True)
def no_thread_dies_unheard(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    heard: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", heard.append)
    yield
    assert heard == []
