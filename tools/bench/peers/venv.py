"""A virtual environment of the Python peers, made once a user and version, in the temporary folder.

Contract. Versions are pinned; pip's own configuration says where packages come from. Nothing of it
reaches the interpreter that Mailstrom runs in.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = ("huey==3.5.4", "Django==5.2.19", "django-post-office==3.12.0")
INSTALL_S = 300.0


def interpreter() -> Path:
    """The peers' Python, with their packages; the first call installs them.

    Raises:
        RuntimeError: they cannot be had, with pip's words.
    """
    digest = hashlib.blake2b(repr((sys.version, PACKAGES)).encode(), digest_size=6).hexdigest()
    home = Path(tempfile.gettempdir()) / f"mailstrom-peers-{os.getuid()}-{digest}"
    home.mkdir(mode=0o755, exist_ok=True)
    if home.lstat().st_uid != os.getuid() or home.is_symlink():
        raise RuntimeError(f"{home} is not ours; remove it")
    python = home / "venv" / "bin" / "python"
    with (home / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (home / "complete").exists():
            for command in (
                [sys.executable, "-m", "venv", "--clear", str(home / "venv")],
                [str(python), "-m", "pip", "install", "--quiet", *PACKAGES],
            ):
                ran = subprocess.run(
                    command, env={**os.environ, "PYTHONPATH": ""}, text=True,
                    capture_output=True, timeout=INSTALL_S, check=False,
                )  # fmt: skip
                if ran.returncode:
                    raise RuntimeError(f"peers cannot be installed: {ran.stderr[-400:]}")
            (home / "complete").touch()
    return python
