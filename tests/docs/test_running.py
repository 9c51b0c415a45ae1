"""Examples that run, run: ``python run`` each by itself, the quickstart word by word.

A page's ``sh run`` blocks are one script, in order, as a reader would type them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import ALL, CHECKOUT, Block, of_kind
from tests.support.sockets import free_port

PATIENCE_S = 100


def environment(folder: Path) -> dict[str, str]:
    """A reader's shell: the tested Mailstrom first on PATH, nothing configured."""
    shims = folder / "bin"
    shims.mkdir()
    for name, command in (("python", ""), ("mailstrom", " -P -m mailstrom")):
        shim = shims / name
        shim.write_text(f'#!/bin/sh\nexec "{sys.executable}"{command} "$@"\n')
        shim.chmod(0o755)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MAILSTROM_", "PYTHON", "XDG_"))
    }
    if "PYTHONPATH" in os.environ:  # run from a checkout: the reader stands elsewhere
        paths = os.environ["PYTHONPATH"].split(os.pathsep)
        kept["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths)
    return kept | {"PATH": f"{shims}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder)}


def run(command: list[str], folder: Path) -> str:
    """Output of a command, whose whole process group ends with it."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            pytest.fail(f"still running after {PATIENCE_S} s:\n{output}")
    assert process.returncode == 0, output
    return output


@pytest.mark.parametrize("block", of_kind("python", run=True))
def test_examples_marked_run_do(block: Block, tmp_path: Path) -> None:
    run([sys.executable, "-P", "-W", "error", "-c", block.text], tmp_path)


def test_the_quickstart_works_word_by_word(tmp_path: Path) -> None:
    page = "docs/quickstart.md"
    parts = [block.text for block in ALL if block.page == page and block.run]
    assert len(parts) >= 5
    script = "set -eu\n" + "".join(parts)
    # other tests may be using the page's ports now
    script = script.replace(":5300", f":{free_port('127.0.0.1')}")
    script = script.replace("2525", str(free_port("127.0.0.2")))
    output = run(["bash", "-c", script], tmp_path)
    promised = next(b.text for b in ALL if b.page == page and b.kind == "text")
    said = iter(output.splitlines())
    for line in (*promised.splitlines()[1:], "cancelled 1 recipient"):
        assert line in said, output  # in this order
    assert output.splitlines()[-1] == "ok"
    assert "recipient.delivered" in (tmp_path / "engine.log").read_text()


def test_the_listener_is_tried_word_by_word(tmp_path: Path) -> None:
    page = "docs/howto/listener.md"
    script = "set -eu\n" + "".join(block.text for block in ALL if block.page == page and block.run)
    assert "curl" in script
    for port in ("2525", "2626"):
        script = script.replace(port, str(free_port("127.0.0.1")))
    output = run(["bash", "-c", script], tmp_path)
    assert "250 2.0.0 Ok: queued as" in output
    assert "you@example.com" in output.rpartition("queued as")[2]
    assert "submission.accepted" in (tmp_path / "engine.log").read_text()


def test_the_generated_pages_agree_with_the_code(tmp_path: Path) -> None:
    run([sys.executable, "-P", str(CHECKOUT / "tools" / "gendocs"), "--check"], tmp_path)


def test_the_generator_says_how_it_is_used(tmp_path: Path) -> None:
    said = run([sys.executable, "-P", str(CHECKOUT / "tools" / "gendocs"), "--help"], tmp_path)
    assert "--check" in said


@pytest.mark.parametrize(
    ("tool", "script"),
    [
        ("torture", "torture.py"),
        ("hostile", "hostile.py"),
        ("flood", "flood.py"),
        ("bench/run", "bench"),
    ],
)
def test_tools_are_named_as_they_are_typed(tool: str, script: str, tmp_path: Path) -> None:
    said = run([sys.executable, "-P", str(CHECKOUT / "tools" / script), "--help"], tmp_path)
    assert said.startswith(f"usage: tools/{tool} ")
    assert "--help." not in said  # nor does a description end in another name


def test_the_check_says_what_it_is_and_runs_nothing(tmp_path: Path) -> None:
    said = run(["sh", str(CHECKOUT / "tools" / "check"), "--help"], tmp_path)
    assert "--lint" in said
    assert "==" not in said  # no check began
    assert "set -eu" not in said
