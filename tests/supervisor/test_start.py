"""What the supervisor refuses before it starts anything, and the folders it survives."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.supervisor.conftest import Stage, Supervised

MODULE = [sys.executable, "-m", "mailstrom.supervisor"]
HOSTILE = ("email", "workers", "queue", "dns", "config", "tools", "fnmatch", "pathlib")


def test_usage_errors_exit_64(stage: Stage) -> None:
    for arguments in (["--nonsense"], ["--workers", "0"], ["--workers", "many"], ["extra"]):
        refused = stage.run([*MODULE, *arguments], cwd=stage.folder)
        assert refused.wait_exit() == 64
        assert "usage:" in refused.stderr


def test_an_unusable_configuration_exits_78_and_names_the_key(stage: Stage) -> None:
    stage.config.write_text("[delivery]\nworkerz = 3\n")
    refused = stage.run([*MODULE, "--config", str(stage.config)], cwd=stage.folder)

    assert refused.wait_exit() == 78
    assert "workerz" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_missing_configuration_exits_78(stage: Stage) -> None:
    missing = stage.folder / "missing.toml"
    refused = stage.run([*MODULE, "--config", str(missing)], cwd=stage.folder)

    assert refused.wait_exit() == 78
    assert str(missing) in refused.stderr


def test_a_file_that_is_no_spool_exits_78_and_is_left_alone(stage: Stage) -> None:
    stage.store.write_bytes(b"dear diary\n" * 1000)
    refused = stage.start()

    assert refused.wait_exit() == 78
    assert str(stage.store) in refused.stderr
    assert stage.store.read_bytes() == b"dear diary\n" * 1000
    assert "Traceback" not in refused.stderr


def test_a_spool_that_cannot_be_made_exits_73(stage: Stage) -> None:
    (stage.folder / "file").write_text("in the way")
    stage.store = stage.folder / "file" / "spool.db"
    stage.write_config()
    refused = stage.start()

    assert refused.wait_exit() == 73
    assert str(stage.store) in refused.stderr
    assert "Traceback" not in refused.stderr


def test_without_the_engines_package_it_exits_78_with_a_hint(stage: Stage) -> None:
    hide = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name: None if name == 'mailstrom_workers' else find(name)\n"
        "from mailstrom.supervisor.run import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    refused = stage.run(
        [sys.executable, "-P", "-c", hide, "--config", str(stage.config)], cwd=stage.folder
    )

    assert refused.wait_exit() == 78
    assert "pip install ." in refused.stderr
    assert not stage.store.exists()


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A working directory of packages that end whoever imports them."""
    folder = tmp_path / "application"
    for name in HOSTILE:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise SystemExit('imported our {name}')\n")
    return folder


def test_the_hostile_folder_really_is_one(hostile: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import email.message"],
        cwd=hostile,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "imported our email" in done.stderr


@pytest.mark.parametrize(
    ("package_in", "found"),
    [("application", True), ("application/venv/lib", False), ("elsewhere", False)],
)
def test_the_working_directory_is_imported_from_only_if_it_holds_our_package(
    hostile: Path, package_in: str, found: bool
) -> None:
    # The real entry point beside a main that looks for a module of the working directory.
    folder = hostile.parent / package_in
    package = folder / "mailstrom" / "supervisor"
    package.mkdir(parents=True)
    for name, place in (
        ("supervisor.__main__", package),
        ("supervisor.early", package),
        ("pathguard", package.parent),
    ):
        spec = importlib.util.find_spec(f"mailstrom.{name}")
        assert spec is not None
        assert spec.origin is not None
        shutil.copy(spec.origin, place)
    (package / "run.py").write_text(
        "from importlib.util import find_spec\n"
        "def main(argv: list[str]) -> str:\n"
        "    return f'found: {find_spec(\"workers\") is not None}'\n"
    )
    for init in (package, package.parent):
        (init / "__init__.py").write_text("")
    done = subprocess.run(
        MODULE,
        cwd=hostile,
        env={**os.environ, "PYTHONPATH": "" if folder == hostile else str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.stderr.strip() == f"found: {found}"


def scripted(stage: Stage) -> Path:
    """A folder with scripted children under the engine's own names, for the real command lines."""
    engine = stage.folder / "engine" / "mailstrom_workers"
    engine.mkdir(parents=True)
    (engine / "__init__.py").write_text("")
    for module in ("delivery", "janitor"):
        (engine / f"{module}.py").write_text(
            "import runpy, sys\n"
            f"sys.argv = {stage.fakechild('well')[2:]!r}\n"
            "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        )
    return engine.parent


# Signals this process while it loads what it needs: the first of it is msgspec.
EARLY = """
import os, sys
class Early:
    def find_spec(self, name, path=None, target=None):
        if name == "msgspec" and "EARLY" in os.environ:
            os.kill(os.getpid(), int(os.environ.pop("EARLY")))
sys.meta_path.insert(0, Early())
"""
COMMANDS = [MODULE, [sys.executable, "-m", "mailstrom", "serve"]]


def signalled(stage: Stage, command: list[str], number: int) -> Supervised:
    folder = scripted(stage)
    (folder / "sitecustomize.py").write_text(EARLY)
    return stage.run(
        [*command, "--config", str(stage.config), "--workers", "1"],
        cwd=stage.folder,
        PYTHONPATH=stage.import_path(folder),
        EARLY=str(int(number)),
    )


@pytest.mark.parametrize("command", COMMANDS, ids=["module", "command"])
def test_a_hup_while_it_loads_ends_nothing(stage: Stage, command: list[str]) -> None:
    supervised = signalled(stage, command, signal.SIGHUP)

    supervised.wait("supervisor.ready")
    assert len(supervised.lines("config.reloaded")) == 1, "it was kept, and obeyed"
    supervised.signal(signal.SIGTERM)
    assert supervised.wait_exit() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", COMMANDS, ids=["module", "command"])
def test_an_end_while_it_loads_is_a_drain_of_nothing(
    stage: Stage, command: list[str], number: signal.Signals
) -> None:
    supervised = signalled(stage, command, number)

    assert supervised.wait_exit() == 0
    assert [line["signal"] for line in supervised.lines("supervisor.draining")] == [number.name]
    assert not supervised.lines("worker.started")
    assert supervised.stderr == ""


@pytest.mark.parametrize("command", COMMANDS, ids=["module", "command"])
def test_what_is_wrong_is_told_also_where_an_end_came_early(
    stage: Stage, command: list[str]
) -> None:
    stage.config.write_text("[delivery]\nworkerz = 3\n")
    supervised = signalled(stage, command, signal.SIGTERM)

    assert supervised.wait_exit() == 78
    assert "workerz" in supervised.stderr


def test_it_serves_and_drains_in_a_hostile_working_directory(stage: Stage, hostile: Path) -> None:
    supervised = stage.run(
        [*MODULE, "--config", str(stage.config), "--workers", "2"],
        cwd=hostile,
        PYTHONPATH=stage.import_path(scripted(stage)),
    )
    supervised.wait("supervisor.ready", workers=2)
    hellos = supervised.wait_traced("hello", count=3)
    supervised.signal(signal.SIGTERM)

    assert supervised.wait_exit() == 0
    assert "imported our" not in supervised.stderr
    for hello in hellos:
        assert "" not in hello["path"]
        assert str(hostile) not in hello["path"]
        assert "/" not in hello["path"]
