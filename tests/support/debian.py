"""Debian's own programs as peers and witnesses: where they are and how they are run.

Postfix, Exim, OpenSMTPD, chasquid, swaks, msmtp and nodemailer are unpacked from their packages and
never installed (``apt-get download``, ``dpkg -x``), with the libraries they lack beside them, into
a cache shared by all runs of one user (``MAILSTROM_DEBIAN_CACHE``, else
``/tmp/mailstrom-debian-UID``). ``sqlite3`` and ``strace`` are used as installed, so are ``curl``,
``openssl``, ``perl`` and ``node``.

What is missing skips the test in one line naming the package; under ``MAILSTROM_REQUIRE_DEBIAN=1``
it fails instead, so that a run which promises these tests cannot quietly go without them.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

DOWNLOAD_TIMEOUT = 120.0
_PROGRAMS = ("usr/bin", "usr/sbin", "usr/lib/postfix/sbin", "usr/libexec/opensmtpd")
LIBRARY_ROUNDS = 4  # depth of "needs a library that needs a library"


def unavailable(package: str, why: str) -> NoReturn:
    """Skip the test, or fail it where Debian's programs were promised.

    Args:
        package: Debian package to install or make downloadable.
        why: what was looked for and not found.
    """
    text = f"Debian package {package} is missing: {why}"
    if os.environ.get("MAILSTROM_REQUIRE_DEBIAN") == "1":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """The tree of an unpacked package.

    Args:
        root: what ``/`` is to the package.
        libraries: directories for ``LD_LIBRARY_PATH``.
    """

    root: Path
    libraries: tuple[Path, ...]

    @property
    def library_path(self) -> str:
        """Value of ``LD_LIBRARY_PATH`` for every program of the tree."""
        return ":".join(map(str, self.libraries))

    def environ(self, **more: str) -> dict[str, str]:
        """Environment for a program of the tree; nothing of ours but PATH and the locale."""
        return {
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            "LC_ALL": "C",
            "TZ": "UTC",
            "LD_LIBRARY_PATH": self.library_path,
            **more,
        }

    def program(self, name: str) -> Path:
        """Path of a program, for example ``usr/sbin/smtp-sink``."""
        return self.root / name


def postfix() -> Unpacked:
    """Return Debian's postfix, unpacked; skips or fails the test where it cannot be had."""
    return _tree("postfix")


def exim() -> Unpacked:
    """Return Debian's Exim, unpacked; skips or fails the test where it cannot be had."""
    return _tree("exim4-daemon-light", "libnss-wrapper")


def opensmtpd() -> Unpacked:
    """Return Debian's OpenSMTPD, unpacked; skips or fails the test where it cannot be had."""
    return _tree("opensmtpd", "libnss-wrapper")


def chasquid() -> Unpacked:
    """Return Debian's chasquid, unpacked; skips or fails the test where it cannot be had."""
    return _tree("chasquid")


def swaks() -> Unpacked:
    """Return Debian's swaks with what it needs for TLS; needs perl, as installed."""
    return _tree("swaks", "libnet-ssleay-perl")


def sasl_modules() -> Unpacked:
    """Return what Debian's Postfix, as a client, loads to log in."""
    return _tree("libsasl2-modules")


def msmtp() -> Unpacked:
    """Return Debian's msmtp, unpacked; skips or fails the test where it cannot be had."""
    return _tree("msmtp")


def nodemailer() -> Unpacked:
    """Return Debian's nodemailer, a library of Node.js, which is used as installed."""
    return _tree("node-nodemailer")


def _tree(package: str, *beside: str) -> Unpacked:
    for tool in ("apt-get", "dpkg-deb", "ldd"):
        if shutil.which(tool) is None:
            unavailable(package, f"{tool} is not on this machine")
    home = _cache() / package
    with _locked(home.with_suffix(".lock")):
        if not (home / "complete").exists():
            try:
                _unpack(home, package, *beside)
            except (OSError, subprocess.SubprocessError) as error:
                shutil.rmtree(home, ignore_errors=True)
                detail = getattr(error, "stderr", None) or error
                unavailable(package, f"download or unpacking failed: {str(detail).strip()[-300:]}")
    return Unpacked(root=home / "root", libraries=_library_directories(home / "root"))


def _cache() -> Path:
    named = os.environ.get("MAILSTROM_DEBIAN_CACHE")
    home = Path(named) if named else Path(f"/tmp/mailstrom-debian-{os.getuid()}")
    home.mkdir(mode=0o755, parents=True, exist_ok=True)
    # Programs of this tree run as root: nobody else may have made it, and others must be able to
    # enter it, as Postfix gives up root.
    if home.lstat().st_uid != os.getuid() or home.is_symlink():
        raise PermissionError(f"{home} is not ours; remove it or set MAILSTROM_DEBIAN_CACHE")
    home.chmod(0o755)
    return home


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _unpack(home: Path, *packages: str) -> None:
    shutil.rmtree(home, ignore_errors=True)
    root = home / "root"
    root.mkdir(parents=True)
    unpacked: set[str] = set()
    wanted = [*packages]
    for _ in range(LIBRARY_ROUNDS):
        needs: list[str] = []
        for name in wanted:
            needs += _fetch(name, home, root)
        unpacked.update(wanted)
        missing = _missing_libraries(root)
        if not missing:
            break
        wanted = sorted({need for need in needs if need.startswith("lib")} - unpacked)
    else:
        raise OSError(f"{packages[0]} still needs {', '.join(sorted(missing))}")
    for directory in (home, root):
        directory.chmod(0o755)
    (home / "complete").touch()


def _fetch(package: str, home: Path, root: Path) -> list[str]:
    """Download and unpack one package; returns the names it depends on."""
    with tempfile.TemporaryDirectory(dir=home) as workplace:
        _run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package, cwd=workplace)
        archive = next(Path(workplace).glob("*.deb"))
        _run("dpkg-deb", "-x", str(archive), str(root))
        depends = _run("dpkg-deb", "-f", str(archive), "Depends")
    first_choices = [alternatives.split("|")[0] for alternatives in depends.split(",")]
    return [choice.split()[0].partition(":")[0] for choice in first_choices if choice.strip()]


def _run(*command: str, cwd: str | None = None) -> str:
    return subprocess.run(
        command,
        cwd=cwd,
        check=True,
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=DOWNLOAD_TIMEOUT,
    ).stdout


def _library_directories(root: Path) -> tuple[Path, ...]:
    patterns = ("usr/lib/postfix", "usr/lib/*-linux-*", "lib/*-linux-*")
    return tuple(path for pattern in patterns for path in sorted(root.glob(pattern)))


def _missing_libraries(root: Path) -> set[str]:
    """Names of shared libraries that neither the machine nor the tree has."""
    path = ":".join(map(str, _library_directories(root)))
    missing: set[str] = set()
    for directory in _PROGRAMS:
        for program in sorted((root / directory).glob("*")):
            if not program.is_file():  # a link into what is not unpacked
                continue
            with program.open("rb") as opened:
                if opened.read(4) != b"\x7fELF":
                    continue
            listed = subprocess.run(
                ["ldd", str(program)],
                env={**os.environ, "LD_LIBRARY_PATH": path},
                text=True,
                capture_output=True,
                check=False,
            ).stdout
            missing.update(line.split()[0] for line in listed.splitlines() if "not found" in line)
    return missing


def sqlite3_readonly(database: Path, sql: str, *, timeout: float = 30.0) -> list[dict[str, object]]:
    """Run one query by Debian's ``sqlite3 -readonly``, in another process as it must be.

    Returns:
        one dict a row, by column name.

    Raises:
        RuntimeError: sqlite3 refused; its own words.
    """
    if shutil.which("sqlite3") is None:
        unavailable("sqlite3", "no sqlite3 in PATH")
    ran = subprocess.run(
        ["sqlite3", "-readonly", "-batch", "-bail", "-json", "-init", os.devnull, str(database)],
        input=sql,
        text=True,
        capture_output=True,
        timeout=timeout,
        check=False,
    )
    if ran.returncode or ran.stderr.strip():
        raise RuntimeError(f"sqlite3 -readonly {database}: {ran.stderr.strip()} (query: {sql})")
    rows: list[dict[str, object]] = json.loads(ran.stdout or "[]")
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """What a traced command did.

    Args:
        calls: lines of strace in order, each ``PID call(arguments) = result``, descriptors with
            their paths.
    """

    returncode: int
    stdout: str
    stderr: str
    calls: tuple[str, ...]


def strace(
    command: Sequence[str],
    *,
    calls: str,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 60.0,
) -> Traced:
    """Run a command and its children under strace.

    Args:
        command: program and arguments.
        calls: value of ``-e trace=``, for example ``"fcntl,fdatasync,pwrite64"``.
        environ: the command's environment; None means ours.

    Raises:
        subprocess.TimeoutExpired: it ran longer than ``timeout`` seconds.
    """
    if shutil.which("strace") is None:
        unavailable("strace", "no strace in PATH")
    with tempfile.TemporaryDirectory() as directory:
        record = Path(directory) / "calls"
        ran = subprocess.run(
            ["strace", "-f", "-y", "-s", "64", "-o", str(record), "-e", f"trace={calls}", *command],
            env=None if environ is None else dict(environ),
            cwd=cwd,
            text=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
            check=False,
        )
        if "PTRACE_TRACEME" in ran.stderr:
            unavailable("strace", "this machine does not allow ptrace")
        lines = record.read_text(errors="replace").splitlines() if record.exists() else []
    return Traced(
        returncode=ran.returncode, stdout=ran.stdout, stderr=ran.stderr, calls=tuple(lines)
    )
