"""An engine process that cannot begin: what it says, and its exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from mailstrom.config import from_tables, to_json
from mailstrom.control import Hello, encode_command

SCRIPT = """
import resource, sys
from mailstrom_workers.boot import main
from mailstrom_workers.delivery import deliver
from mailstrom_workers.loops import new_loop
new_loop().close()  # whatever it imports
most = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
sys.exit(main(deliver))
"""


def begun(folder: Path, most: int) -> subprocess.CompletedProcess[str]:
    """An engine process that may open files up to this descriptor, and whose supervisor is gone."""
    store = str(folder / "spool.db")
    config = from_tables({"store": store, "hostname": "mx.example.org"}, environ={})
    hello = Hello(
        kind="delivery", slot=0, restarts=0, supervisor_pid=os.getpid(), status_fd=2, store=store,
        config=json.loads(to_json(config)),
    )  # fmt: skip
    return subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, str(most)],
        input=encode_command(hello).decode(),
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_lack_of_descriptors_is_one_line_of_the_log_and_try_again(tmp_path: Path) -> None:
    for most in (3, 10, 16):
        ran = begun(tmp_path, most)
        assert "Traceback" not in ran.stderr
        assert ran.returncode == 75, ran.stderr
        (line,) = [json.loads(text) for text in ran.stdout.splitlines()]
        assert (line["event"], line["where"]) == ("engine.failed", "start")
        assert "Too many open files" in line["error"]
        assert "limit of open files" in line["error"]


RAISE = """
import resource, sys
from mailstrom import descriptors
soft, hard, most = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
descriptors.MOST_FILES = most
expected = descriptors.reachable()
descriptors.raise_limit()
assert expected == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_a_process_raises_its_limit_of_descriptors_as_far_as_it_may() -> None:
    def limits(*numbers: int) -> list[int]:
        ran = subprocess.run(
            [sys.executable, "-P", "-c", RAISE, *map(str, numbers)],
            env={"PYTHONPATH": ":".join(filter(None, sys.path))},
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return [int(word) for word in ran.stdout.split()]

    assert limits(100, 300, 1000) == [300, 300]
    assert limits(100, 300, 200) == [200, 300]
    assert limits(300, 300, 200) == [300, 300], "what is more already stays"
