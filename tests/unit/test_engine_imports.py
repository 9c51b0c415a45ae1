"""What a process of the engine loads before it does anything: each is one of several."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import importlib
import sys
importlib.import_module(sys.argv[1])
from mailstrom import events
events.configure("info", "json")
events.bind(kind="any")
events.engine_failed(where="nowhere", error="nothing")
print(" ".join(sorted({"structlog", "rich", "cryptography.x509"} & set(sys.modules))))
"""


@pytest.mark.parametrize("module", ["delivery", "janitor"])
def test_neither_the_console_form_nor_certificates_are_loaded_unasked(module: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, f"mailstrom_workers.{module}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    said, loaded = ran.stdout.splitlines()
    assert '"event":"engine.failed"' in said
    assert '"kind":"any"' in said
    assert loaded == ""
