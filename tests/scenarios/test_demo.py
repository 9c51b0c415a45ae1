"""``mailstrom demo`` as a user runs it, and its account against histories that must fail."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from mailstrom.demo.audit import Accepted, Audit, Outcome, audit, wire_digest
from mailstrom.demo.plan import CYCLE, DESTINATIONS, Planned, outgoing
from mailstrom.demo.report import print_elsewhere
from mailstrom.testing.records import Dot
from mailstrom.types import Reason, Status

LIMIT_S = 100
LINE = "demo: 40 accepted, 32 delivered, 8 failed, 0 lost, 0 unmarked duplicates"


@contextmanager
def demonstration(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Runs it with a temporary directory of its own, from a directory that means harm."""
    (folder / "cwd" / "email").mkdir(parents=True)
    (folder / "cwd" / "email" / "__init__.py").write_text("raise SystemExit('wrong email')\n")
    (folder / "tmp").mkdir()
    environment = os.environ | {
        "TMPDIR": str(folder / "tmp"),
        "MAILSTROM_STORE": str(folder / "none" / "spool.db"),
        "PYTHONPATH": os.pathsep.join(
            os.path.abspath(one)
            for one in os.environ.get("PYTHONPATH", "").split(os.pathsep)
            if one
        ),
    }
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "mailstrom", "demo", *arguments],
        cwd=folder / "cwd",
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until_delivering(process: subprocess.Popen[str]) -> None:
    """Returns when a progress line says that something was delivered."""
    assert process.stdout is not None
    for line in process.stdout:
        if re.search("delivered [1-9]", line):
            return
    pytest.fail("it ended before anything was delivered")


def left_behind(folder: Path) -> list[str]:
    """Files of the run, and processes that have its temporary directory in their environment."""
    mark = f"TMPDIR={folder / 'tmp'}".encode()
    found = [path.name for path in (folder / "tmp").iterdir()]
    for status in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in status.read_bytes().split(b"\0"):
                found.append(f"process {status.parent.name}")
        except OSError:
            continue  # gone meanwhile, or not ours
    return found


def test_the_demonstration_accounts_for_every_message_and_leaves_nothing(tmp_path: Path) -> None:
    with demonstration(tmp_path, "-n", "40") as process:
        out, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, err) == (0, ""), out + err
    assert out.endswith(f" marked duplicates; all ended. In messages:\n{LINE}\n")
    assert [line for line in out.splitlines() if line != line.rstrip()] == []
    assert "\x1b" not in out
    assert "550" in out
    assert "no such user here" in out
    assert "TLSv1." in out
    assert "SELECT domain, status, reason," in out
    assert left_behind(tmp_path) == []


def test_json_is_one_object_with_the_same_figures(tmp_path: Path) -> None:
    with demonstration(tmp_path, "-n", "20", "--json") as process:
        out, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, err) == (0, ""), out + err
    figures = json.loads(out)
    assert out.count("\n") == 1
    assert (figures["accepted"], figures["delivered"], figures["failed"]) == (20, 16, 4)
    assert (figures["lost"], figures["unmarked_duplicates"]) == (0, 0)
    assert figures["recipients"] == {"delivered": 18, "failed": 4}
    assert figures["findings"] == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_engine_servers_and_directory(tmp_path: Path, number: signal.Signals) -> None:
    with demonstration(tmp_path, "-n", "5000") as process:
        wait_until_delivering(process)
        process.send_signal(number)
        out, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, err) == (1, "")
    assert out.endswith(f"demo: stopped by {number.name}\n")
    assert left_behind(tmp_path) == []


def test_the_loss_of_the_supervisor_is_told_with_its_log(tmp_path: Path) -> None:
    with demonstration(tmp_path, "-n", "5000") as process:
        wait_until_delivering(process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        out, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, err) == (1, "")
    assert "demo: the supervisor ended by itself with status -9\n" in out
    assert "The last lines of the engine's log:\n" in out
    assert left_behind(tmp_path) == []


# The account


def planned(status: Status = Status.DELIVERED, reason: Reason | None = None) -> Planned:
    return Planned(message_id="<1@x>", addresses=("a@x.example",), status=status, reason=reason)


def dot(content: bytes = b"bytes\r\n", *, kept: bool = True, message_id: str = "<1@x>") -> Dot:
    return Dot(
        at=0.0,
        connection=1,
        sender="s@x",
        recipients=("a@x.example",),
        message_id=message_id,
        digest=wire_digest(content),
        octets=len(content),
        kept=kept,
    )


def account(
    *dots: Dot,
    plan: Planned | None = None,
    status: str | None = "delivered",
    reason: str | None = None,
    doubts: int = 0,
) -> Audit:
    spool = {}
    if status is not None:
        spool["id", "a@x.example"] = Outcome(
            status=status, reason=reason, words="550 no", doubts=doubts
        )
    accepted = Accepted(id="id", planned=plan or planned(), digest=wire_digest(b"bytes"))
    return audit([accepted], spool, dots)


def named(found: Audit) -> set[str]:
    return {name for name, sentences in found.findings.items() if sentences}


def test_what_went_well_is_sound() -> None:
    found = account(dot())
    assert found.sound
    assert found.line == "demo: 1 accepted, 1 delivered, 0 failed, 0 lost, 0 unmarked duplicates"


def test_a_planned_failure_is_sound_and_counts_as_failed() -> None:
    found = account(plan=planned(Status.FAILED, Reason.BOUNCED), status="failed", reason="bounced")
    assert found.sound
    assert (found.delivered, found.failed) == (0, 1)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param(account(), {"lost"}, id="delivered, and at no server"),
        pytest.param(account(status=None), {"lost"}, id="not in the spool"),
        pytest.param(account(dot(), status=None), {"lost"}, id="not in the spool, at a server"),
        pytest.param(account(dot(kept=False)), {"lost"}, id="delivered, and refused at the dot"),
        pytest.param(account(dot(), dot()), {"unmarked duplicates"}, id="twice"),
        pytest.param(
            account(dot(), dot(), dot(), doubts=1), {"unmarked duplicates"}, id="thrice, one mark"
        ),
        pytest.param(account(dot(b"other\r\n")), {"altered"}, id="other bytes"),
        pytest.param(account(dot(), dot(message_id="<2@x>")), {"phantom"}, id="from nobody"),
        pytest.param(account(status="deferred"), {"unfinished"}, id="still deferred"),
        pytest.param(account(status="failed", reason="bounced"), {"unplanned"}, id="failed"),
        pytest.param(
            account(plan=planned(Status.FAILED, Reason.BOUNCED), status="failed", reason="expired"),
            {"unplanned"},
            id="failed for another reason",
        ),
        pytest.param(
            account(
                dot(),
                plan=planned(Status.FAILED, Reason.BOUNCED),
                status="failed",
                reason="bounced",
            ),
            {"unplanned"},
            id="failed, and at a server",
        ),
    ],
)
def test_a_bad_history_is_found(found: Audit, expected: set[str]) -> None:
    assert named(found) == expected


def test_a_marked_duplicate_is_allowed_and_counted() -> None:
    found = account(dot(), dot(), doubts=1)
    assert found.sound
    assert found.marked == 1


def test_a_finding_names_the_recipient_and_what_was_planned() -> None:
    found = account(status="failed", reason="bounced")
    assert found.unplanned == ("a@x.example (id): planned delivered, is failed (bounced) 550 no",)


def test_what_is_said_of_a_run_that_stays_fits_80_columns_and_names_its_spool() -> None:
    console = Console(file=io.StringIO(), width=80)
    store = Path("/tmp/mailstrom-demo-y0iro0cy/spool.db")
    with console.capture() as capture:
        print_elsewhere(console, store, store.with_name("engine.log"), kept=True)
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert f"  export MAILSTROM_STORE={store}" in lines
    assert "engine.log" in " ".join(lines)


def test_every_destination_occurs_in_one_cycle_and_no_address_twice() -> None:
    plans = [one.planned for one in outgoing(3 * len(CYCLE), "run")]
    addresses = [address for plan in plans for address in plan.addresses]
    assert len(addresses) == len(set(addresses))
    assert {address.partition("@")[2] for address in addresses} == {
        one.domain for one in DESTINATIONS
    }
    assert len({plan.message_id for plan in plans}) == len(plans)
