"""Runs a client that is a program: bounded, with an environment of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.clients.judge import Said
from tests.support import debian

LIMIT_S = 60.0


def installed(name: str) -> Path:
    """A program of this machine; skips or fails the test where it is missing."""
    found = shutil.which(name)
    if found is None:
        debian.unavailable(name, f"no {name} in PATH")
    return Path(found)


def environ(**more: str) -> dict[str, str]:
    """PATH, a locale that knows UTF-8, and what is given."""
    path = os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    return {"PATH": path, "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": "/nonexistent", **more}


def ran(
    command: Sequence[str | Path], content: bytes, env: Mapping[str, str], *, cwd: Path
) -> Said:
    """Give a program its standard input and wait; success is exit code 0."""
    done = subprocess.run(
        [str(word) for word in command], input=content, env=dict(env), cwd=cwd,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    return Said(ok=done.returncode == 0, words=done.stdout.decode(errors="replace"))


def version(command: Sequence[str | Path], env: Mapping[str, str]) -> str:
    """The first line that a program says of itself."""
    return output(command, env).partition("\n")[0].strip()


def output(command: Sequence[str | Path], env: Mapping[str, str]) -> str:
    """All that a program says that is given nothing to read."""
    done = subprocess.run(
        [str(word) for word in command], env=dict(env), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    return done.stdout.decode(errors="replace")
