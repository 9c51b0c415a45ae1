"""The engine's event loops: each connects as asyncio does, and a forked child of it ends well."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mailstrom_workers import loops
from tests.support.engine import environment

Make = Callable[[], Any]
FAST = find_spec("uvloop") is not None


@pytest.fixture(params=["plain", "fast"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes one kind of loop."""
    if request.param == "plain":
        return loops.PlainLoop
    pytest.importorskip("uvloop", reason="extra speed is not installed")
    from mailstrom_workers.fastloop import FastLoop

    return FastLoop


def ran(make: Make, story: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=make) as runner:
        runner.run(story)


def test_the_fast_loop_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = loops.new_loop()
    loop.close()
    assert type(loop).__name__ == ("FastLoop" if FAST else "PlainLoop")
    monkeypatch.setattr(loops, "find_spec", lambda name: None)
    loop = loops.new_loop()
    loop.close()
    assert type(loop) is loops.PlainLoop


@pytest.mark.parametrize(
    "broken",
    ["raise ImportError('built for another Python')", "raise OSError('libuv.so')", "Loop = None"],
)
def test_a_uvloop_that_cannot_be_used_is_done_without(tmp_path: Path, broken: str) -> None:
    (tmp_path / "uvloop.py").write_text(broken)
    code = (
        "import sys, warnings\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from mailstrom_workers import loops\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always')\n"
        "    loop = loops.new_loop()\n"
        "loop.close()\n"
        "print(type(loop).__name__, len(said), said[0].message)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stdout.startswith("PlainLoop 1 uvloop is installed and cannot be used"), ended


def test_a_connection_is_named_among_the_descriptors_until_it_is_closed(make: Make) -> None:
    async def story() -> None:
        loop: Any = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as ours:
            ours.setblocking(False)
            await loop.sock_connect(ours, server.getsockname())
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
            number = ours.fileno()
            assert number in loop.descriptors()
            assert transport.get_extra_info("socket").fileno() == number
            transport.abort()
            while ours.fileno() != -1:  # noqa: ASYNC110 - nobody tells when it is done
                await asyncio.sleep(0)
            assert number not in loop.descriptors()

    ran(make, story())


def test_what_the_system_says_of_a_connection_is_raised(make: Make) -> None:
    async def story() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            with socket.socket() as ours:
                ours.setblocking(False)
                with pytest.raises(ConnectionRefusedError):
                    await asyncio.get_running_loop().sock_connect(ours, free.getsockname())

    ran(make, story())


def test_a_connection_that_is_given_up_leaves_a_loop_that_goes_on(make: Make) -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            waiting = [socket.socket() for _ in range(8)]  # the first few fill its queue
            for one in waiting:
                one.setblocking(False)
            tasks = [
                asyncio.ensure_future(loop.sock_connect(one, full.getsockname())) for one in waiting
            ]
            _, left = await asyncio.wait(tasks, timeout=0.2)
            assert left
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for one in waiting:
                one.close()
            await asyncio.sleep(0)

    ran(make, story())


FORK = """
import asyncio, os, socket, sys, threading
from mailstrom_workers import loops
if sys.argv[1] == "plain":
    loops.find_spec = lambda name: None
loop, ready = loops.new_loop(), threading.Event()
server = socket.create_server(("127.0.0.1", 0))

async def life():
    ours = socket.socket()
    ours.setblocking(False)
    await loop.sock_connect(ours, server.getsockname())
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
    ready.set()
    await asyncio.Event().wait()

threading.Thread(target=loop.run_until_complete, args=(life(),), daemon=True).start()
assert ready.wait(30)
child = os.fork()
if child == 0:
    sys.exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("kind", ["plain", "fast"])
def test_a_child_forked_beside_a_running_loop_ends_as_it_wants(kind: str) -> None:
    if kind == "fast":
        pytest.importorskip("uvloop", reason="extra speed is not installed")
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", FORK, kind],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
