"""A few messages through everything that is measured: real engines, real Postfix, no bars.

What is held to is that each form runs, accounts for its messages and ends what it started; never
how fast.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.support import debian
from tests.support.sockets import eventually
from tools.bench.engine import environ
from tools.bench.processes import Look, Meter, Started, cpu_s, family, kernel_s, pss_mib

CHECKOUT = Path(__file__).resolve().parents[2]
FORMS = {
    "accept": {"p99_ms", "rate"},
    "listener": {"rate", "cpu_s_per_1000", "pss_mib", "rss_mib", "pss_kib_each"},
    "drain": {"rate", "rate_release_last", "pss_mib"},
    "connections": {"rate"},
    "e2e": {"rate", "cpu_s_per_1000"},
    "latency": {"rate", "bound_rate"},
    "sites": {"rate", "seconds"},
    "depth": {"rate", "count_ms", "route_us", "stall_max_ms", "wal_mib"},
    "stalls": {"stall_max_ms", "wire_max_ms", "wal_mib", "purged"},
    "idle": {"idle_core_percent", "wire_p50_ms", "connect_p50_ms", "import_ms"},
    "profile": {"share"},
}
PEERS = {"accept", "listener", "drain", "e2e", "latency"}


def bench(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", str(CHECKOUT / "tools" / "bench"), *arguments],
        cwd=CHECKOUT, text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=240,
        env={**os.environ, "TMPDIR": str(folder)}, check=False,
    )  # fmt: skip


@pytest.mark.debian
@pytest.mark.timeout(270)
@pytest.mark.parametrize("name", FORMS)
def test_a_few_messages_go_through(name: str, tmp_path: Path) -> None:
    debian.postfix()
    out = tmp_path / "out.jsonl"
    peer = "postfix" if name in PEERS and os.getuid() == 0 else "none"
    # not pytest's directory: Postfix gives up root and must still get there
    with tempfile.TemporaryDirectory(prefix="mailstrom-measuring-") as opened:
        folder = Path(opened)
        folder.chmod(0o755)
        ran = bench(
            name, "--smoke", "--no-uvloop", "--peer", peer, "--queued", "20000",
            "--json", str(out), folder=folder,
        )  # fmt: skip
        left = list(folder.iterdir())
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["error"] for one in found if one["error"]] == [], ran.stderr
    assert ran.returncode == 0, ran.stderr
    assert {value for one in found for value in one["values"]} >= FORMS[name]
    assert ("postfix" in {one["who"] for one in found}) is (peer == "postfix")
    assert f"== {name}" in ran.stdout
    assert left == []


def test_what_cannot_be_had_is_a_figure_that_says_so(tmp_path: Path) -> None:
    # a peer that is asked for without what it needs: no root, no packages, no network
    folder = tmp_path / "tmp"
    folder.mkdir()
    out = tmp_path / "out.jsonl"
    hidden = {"PATH": str(tmp_path), "MAILSTROM_DEBIAN_CACHE": str(tmp_path / "cache")}
    ran = subprocess.run(
        [sys.executable, "-P", str(CHECKOUT / "tools" / "bench"), "drain", "--smoke",
         "--no-uvloop", "--json", str(out)],
        cwd=CHECKOUT, text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=100,
        env={**os.environ, **hidden, "TMPDIR": str(folder)}, check=False,
    )  # fmt: skip
    assert ran.returncode == 1
    (figure,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert "postfix" in figure["error"]
    assert "failed: 20 connections, mailstrom" in ran.stdout


def test_recording_replaces_what_was_measured_again_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "bench.jsonl"
    old = {"bench": "drain", "case": "kept", "values": {"rate": 1.0}}
    again = {"bench": "idle", "case": "replaced", "values": {}}
    file.write_text(json.dumps(old) + "\n" + json.dumps(again) + "\n")
    script = (
        "import runpy, sys; sys.argv = ['bench']\n"
        f"loaded = runpy.run_path({str(CHECKOUT / 'tools' / 'bench')!r}, run_name='loaded')\n"
        "import pathlib, json\n"
        f"new = json.dumps({{'bench': 'idle', 'case': 'new'}})\n"
        f"loaded['_record'](pathlib.Path({str(file)!r}), {{'idle'}}, [new])\n"
    )
    subprocess.run([sys.executable, "-P", "-c", script], check=True, cwd=CHECKOUT, timeout=60)
    assert [json.loads(line)["case"] for line in file.read_text().splitlines()] == ["kept", "new"]


@pytest.mark.parametrize(("uvloop", "seen"), [(False, "None None"), (None, "found imported")])
def test_without_uvloop_it_is_neither_found_nor_imported(
    uvloop: bool | None, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "installed"
    installed.mkdir()
    (installed / "uvloop.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(installed))
    code = (
        "from importlib.util import find_spec\n"
        "print(find_spec('uvloop') and 'found', end=' ')\n"
        "try:\n import uvloop\n print('imported')\n"
        "except ModuleNotFoundError:\n print(None)"
    )
    said = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environ(uvloop, tmp_path), cwd=tmp_path,
        check=True, text=True, capture_output=True, timeout=60,
    )  # fmt: skip
    assert said.stdout.split() == seen.split()


BURN = """
import os, subprocess, sys, time
burn = "import time\\nwhile time.process_time() < 0.3: pass"
subprocess.run([sys.executable, "-c", burn])
print("reaped", flush=True)
sys.stdin.readline()
"""


def test_the_cpu_of_a_family_counts_children_that_have_ended() -> None:
    with Started([sys.executable, "-c", BURN], piped=True) as started:
        assert started.process.stdout is not None
        assert started.process.stdout.readline() == b"reaped\n"
        assert cpu_s([started.pid]) >= 0.28
        assert family([started.pid]) == {started.pid}
        assert pss_mib([started.pid]) > 1


def test_ending_a_process_ends_what_is_left_of_its_session() -> None:
    left = (
        "import subprocess, sys\n"
        "nap = [sys.executable, '-c', 'import time; time.sleep(300)']\n"
        "print(subprocess.Popen(nap).pid, flush=True)"
    )
    started = Started([sys.executable, "-c", left], piped=True)
    assert started.process.stdout is not None
    child = int(started.process.stdout.readline())
    started.process.wait(30)
    started.stop()
    eventually(lambda: _state(child) == "Z", 30, what="the end of what was left")


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


STRANGER = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while time.process_time() < 0.5:
            pass
    os._exit(0)
os.wait()
"""


def test_a_meter_tells_our_work_from_strangers() -> None:
    # Sums of the same ticks: how busy this machine is otherwise cannot make them differ.
    meter = Meter(lambda: [os.getpid()], memory=True)
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    used = meter.stop()
    assert used.cpu_s >= 0.25
    assert used.pss_mib > 1
    foreign_s, busy_s = used.foreign_cores * used.wall_s, used.busy_cores * used.wall_s
    assert busy_s > 0
    assert foreign_s == 0 or foreign_s + used.cpu_s <= busy_s + 1e-6, "our work is no stranger's"


def test_a_meter_sees_a_stranger() -> None:
    meter = Meter(lambda: [os.getpid()])
    # Its parent ends at once, and it has a session of its own; it ends by itself.
    run = subprocess.run([sys.executable, "-c", STRANGER], stdout=subprocess.PIPE, timeout=100)
    used = meter.stop()  # the pipe has ended, so everybody who had it has
    assert run.returncode == 0
    assert used.foreign_cores * used.wall_s >= 0.2
    assert used.cpu_s < 0.4, "of the first of the three alone"


def moment(busy_s: float, ours_s: float, **kernel_s: float) -> Look:
    return Look(
        since_s=0.0, until_s=0.0, busy_s=busy_s, family_s=0.0, ours_s=ours_s,
        kernel_s={(1, name): used for name, used in kernel_s.items()},
    )  # fmt: skip


def test_what_neither_we_nor_the_kernel_used_is_foreign() -> None:
    before = moment(100.0, 3.0, old=20.0, ended=9.0)
    # nine seconds of a thread that is gone were used long before
    assert moment(102.0, 4.0, old=20.25, new=0.25).foreign_s(before) == pytest.approx(0.5)
    assert moment(101.0, 4.0, old=20.0).foreign_s(before) == 0
    assert moment(101.0, 4.01, old=20.0).foreign_s(before) == 0, "ticks that were told late"
    assert moment(101.0, 1.0, old=20.0).foreign_s(before) == pytest.approx(1.0), "whom we lost"


def test_a_strangers_zombie_is_no_kernel_thread() -> None:
    def stat(flags: int) -> list[str]:
        fields = ["0"] * 50
        fields[6], fields[11], fields[19], fields[20] = str(flags), "300", "77", "0"
        return fields

    kernel, zombie = stat(0x00208040), stat(0x0040000C)
    assert set(kernel_s({5: kernel, 6: zombie})) == {(5, "77")}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--json", "none/x.jsonl"), "none/x.jsonl: cannot be written (No such file or directory)"),
        (("--json", "."), ".: cannot be written (Is a directory)"),
        (("--record", "."), ".: cannot be written (Is a directory)"),
        (("--record", "/dev/full"), "/dev/full: is no regular file"),
        (("--record", "other.txt"), "other.txt: line 2 is no measurement"),
        (("--runs", "x"), "'x' is no whole number"),
        (("--runs", "9" * 20), "is not from 1 to"),
        (("--workers", "257"), "257 is not from 1 to 256"),
    ],
    ids=lambda value: " ".join(value)[:20] if isinstance(value, tuple) else "",
)
def test_what_could_not_be_kept_is_not_measured(
    arguments: tuple[str, ...], why: str, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text('{"bench": "drain", "case": "kept", "values": {}}\n[1]\n')
    ran = subprocess.run(
        [sys.executable, "-P", str(CHECKOUT / "tools" / "bench"), "drain", *arguments],
        cwd=tmp_path, text=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=60,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 2, ran.stderr
    assert why in ran.stderr
    assert (ran.stdout, "Traceback" in ran.stderr) == ("", False)
    assert len(other.read_text().splitlines()) == 2
