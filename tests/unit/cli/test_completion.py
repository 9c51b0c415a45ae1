"""Shell completion: the script in a real bash, and words that need no spool."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_ASK = r"""
PS1=; eval "$(mailstrom completion bash)"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*"
complete -p mailstrom
_mailstrom_completion mailstrom
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell that finds this Mailstrom, and a configuration with streams."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "mailstrom"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m mailstrom "$@"\n')
    script.chmod(0o755)
    config = tmp_path / "c.toml"
    config.write_text('[stream.bulk]\npriority = "low"\n[stream.receipts]\npriority = "high"\n')
    return os.environ | {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "MAILSTROM_CONFIG": str(config),
        "MAILSTROM_STORE": str(tmp_path / "never made.db"),
    }


def completed(shell: dict[str, str], *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("needs bash")
    done = subprocess.run(
        [bash, "--norc", "-c", _ASK, "bash", *words],
        capture_output=True,
        text=True,
        timeout=60,
        env=shell,
        check=True,
    )
    first, *offered = done.stdout.splitlines()
    assert first.startswith("complete ")
    assert first.endswith(" mailstrom")
    assert done.stderr == ""
    return offered


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("mailstrom", "re"), ["resolve", "report"]),
        (("mailstrom", "queue", "re"), ["release", "retry"]),
        (("mailstrom", "queue", "list", "--older"), ["--older-than"]),
        (("mailstrom", "queue", "cancel", "--status", "de"), ["deferred", "delivered"]),
        (("mailstrom", "queue", "hold", "--stream", ""), ["bulk", "default", "receipts"]),
        (("mailstrom", "send", "--stream", "r"), ["receipts"]),
        (("mailstrom", "tail", "--type", "config.r"), ["config.rejected", "config.reloaded"]),
        (("mailstrom", "resolve", "x", "d"), ["delivered"]),
        (("mailstrom", "completion", "f"), ["fish"]),
    ],
)  # fmt: skip
def test_bash_completes(shell: dict[str, str], words: tuple[str, ...], offered: list[str]) -> None:
    assert completed(shell, *words) == offered
    assert not os.path.exists(shell["MAILSTROM_STORE"])


def test_completing_a_command_imports_no_command() -> None:
    program = """
import os, sys
os.environ["_MAILSTROM_COMPLETE"] = "bash_complete"
os.environ |= {"COMP_WORDS": "mailstrom s", "COMP_CWORD": "1"}
from mailstrom.cli import main
try:
    main([])
finally:
    heavy = {"mailstrom.cli.send", "mailstrom.cli.sql", "rich", "structlog", "msgspec", "apsw"}
    print(sorted(heavy & set(sys.modules)))
"""  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "[]"
    assert "plain,send" in done.stdout


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_the_script_is_for_its_shell(run: Any, name: str) -> None:
    done = run("completion", name)
    assert done.code == 0
    assert f"_MAILSTROM_COMPLETE={name}_complete" in done.out
    program = shutil.which(name)
    if program is not None:
        checked = subprocess.run(
            [program, "-n"], input=done.out, capture_output=True, text=True, timeout=60
        )
        assert (checked.returncode, checked.stderr) == (0, "")


def test_another_shell_is_a_usage_error(run: Any) -> None:
    assert run("completion", "tcsh").code == 64


def test_a_broken_configuration_completes_without_a_word(shell: dict[str, str]) -> None:
    Path(shell["MAILSTROM_CONFIG"]).write_text("[[[")
    assert completed(shell, "mailstrom", "send", "--stream", "") == ["default"]
