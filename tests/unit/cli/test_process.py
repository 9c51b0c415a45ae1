"""The command line as a process: quick to start, quiet when its reader leaves."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def python(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-P", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        **{"stdin": subprocess.DEVNULL} | options,
    )


def test_python_m_mailstrom_is_the_command_line() -> None:
    done = python("-m", "mailstrom", "version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("mailstrom ")


@pytest.mark.parametrize(
    "arguments", [["version"], ["--help"], ["status", "--help"], ["queue", "cancel", "--help"]]
)
def test_small_commands_load_no_library_but_click(arguments: list[str]) -> None:
    program = f"""
import sys
from mailstrom.cli import main
code = main({arguments!r})
heavy = {{"rich", "structlog", "msgspec", "apsw", "dns", "aiosmtplib", "asyncio", "email.message"}}
sys.exit(f"loaded: {{sorted(heavy & set(sys.modules))}}" if heavy & set(sys.modules) else code)
"""
    done = python("-c", program)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_leaves_early_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "mailstrom", "config", "show"],
            stdout=writing,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
