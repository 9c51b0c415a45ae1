"""From a command line to a running supervisor and its exit code.

Checks what must be in place before any process is started: a configuration, the engine's package,
a spool of ours, no other supervisor on it, and the addresses to listen at. What is wrong is said
once, on standard error, with what to do; the log belongs to the running engine. Exit codes are
those of the whole program: 0 drained, 1 stopped at once, drained with a child lost, or spool
damaged, 64 usage, 73 cannot create, or listen at a port that needs a right, 75 busy, full, already
supervised or an address that is taken (or drained, since another supervisor took its place), 78
configuration, foreign spool or engine not installed.
"""

from __future__ import annotations

import argparse
import errno
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import NoReturn

from msgspec.structs import replace

from mailstrom import events
from mailstrom.config import Config, binds, load, require_kept, worker_count
from mailstrom.errors import (
    ConfigError,
    NotASpool,
    SchemaMismatch,
    SpoolBusy,
    SpoolCorrupt,
    SpoolError,
    SpoolFull,
)
from mailstrom.printable import printable
from mailstrom.server.sockets import CannotListen, listen
from mailstrom.storage import canonical, prepare, require_shared
from mailstrom.supervisor.instance import Holder, Instance, lock_path, take_lock
from mailstrom.supervisor.standard import open_standard
from mailstrom.supervisor.supervision import DELIVERY, JANITOR, LISTENER, Supervision, Timing

EXIT_FAILED = 1
EXIT_USAGE = 64
EXIT_CANNOT_CREATE = 73
EXIT_BUSY = 75
EXIT_CONFIG = 78

_ENGINE = "mailstrom_workers"
_NO_ENGINE = (
    f"mailstrom: the engine's package {_ENGINE!r} is not installed for {sys.executable}; install"
    f" Mailstrom there as a whole, from its checkout: {sys.executable} -m pip install ."
)

# Matched in order; whatever else a spool may say means that it cannot be made or written here.
_SPOOL_EXITS: tuple[tuple[type[SpoolError], int], ...] = (
    (SpoolBusy, EXIT_BUSY),
    (SpoolFull, EXIT_BUSY),
    (SpoolCorrupt, EXIT_FAILED),
    (NotASpool, EXIT_CONFIG),
    (SchemaMismatch, EXIT_CONFIG),
    (SpoolError, EXIT_CANNOT_CREATE),
)


def engine_commands() -> dict[str, Sequence[str]]:
    """The argv of each kind of child: this interpreter, and no working directory on its path."""
    python = (sys.executable, "-P", "-m")
    return {
        DELIVERY: (*python, f"{_ENGINE}.delivery"),
        LISTENER: (*python, f"{_ENGINE}.listener"),
        JANITOR: (*python, f"{_ENGINE}.janitor"),
    }


def serve(
    config: Config,
    workers: int | None = None,
    *,
    commands: Mapping[str, Sequence[str]] | None = None,
    reload: Callable[[], Config] | None = None,
    timing: Timing | None = None,
) -> int:
    """Run the supervisor in this process, in its main thread, until a signal ends it.

    Args:
        config: the effective configuration; ``config.store`` is the spool, created if missing.
        workers: number of delivery workers; None for what the configuration says.
        commands: argv by kind of child; the engine's own when None.
        reload: loads the configuration anew on HUP; when None, the file it came from is read again.
        timing: the parent's own patience.

    Returns:
        The exit code for the process, see the head of this file.
    """
    open_standard()
    if commands is None:
        if find_spec(_ENGINE) is None:
            return _refuse(EXIT_CONFIG, _NO_ENGINE)
        commands = engine_commands()
    config = _with_workers(config, workers)
    try:
        require_shared(config.store)
        store = canonical(config.store)
        prepare(store, engine=True)
    except ConfigError as error:
        return _refuse(EXIT_CONFIG, f"mailstrom: {error}")
    except SpoolError as error:
        code = next(code for kind, code in _SPOOL_EXITS if isinstance(error, kind))
        return _refuse(code, f"mailstrom: {error}")
    try:
        lock = take_lock(store)
    except OSError as error:
        return _refuse(
            EXIT_CANNOT_CREATE, f"mailstrom: cannot take the lock {lock_path(store)}: {error}"
        )
    if isinstance(lock, Holder):
        return _refuse(
            EXIT_BUSY,
            f"mailstrom: a supervisor already serves {store}: pid {lock.pid} on host {lock.host}; "
            "end that one first, or give this one another store",
        )
    instance = Instance(store, lock)
    listening: list[socket.socket] = []
    try:
        # Bound here and once: a process that dies takes no connection with it that still waits.
        try:
            listening += (listen(str(bind)) for bind in binds(config.listener))
        except CannotListen as error:
            denied = error.errno in (errno.EACCES, errno.EPERM)
            return _refuse(
                EXIT_CANNOT_CREATE if denied else EXIT_BUSY, f"mailstrom: [listener] bind: {error}"
            )
        events.configure(config.log.level, config.log.format)
        return Supervision(
            config,
            worker_count(config),
            store=store,
            instance=instance,
            commands=commands,
            listening=listening,
            reload=lambda running: _reloaded(running, store, reload, workers),
            timing=timing or Timing(),
        ).run()
    finally:
        for bound in listening:
            bound.close()
        instance.release()


def main(argv: Sequence[str]) -> int:
    """``python -m mailstrom.supervisor [--config F] [--store S] [--workers N]``.

    Args:
        argv: the arguments, without the program's name.

    Returns:
        The exit code for the process, see the head of this file.

    Raises:
        SystemExit: 64 on a usage error, 0 after ``--help``.
    """
    arguments = _Parser().parse_args(argv)
    try:
        config = load(arguments.config, store=arguments.store)
    except ConfigError as error:
        return _refuse(EXIT_CONFIG, f"mailstrom: {error}")
    return serve(config, arguments.workers)


def _with_workers(config: Config, workers: int | None) -> Config:
    """The command line's number of workers, where it has one, goes before the file's."""
    if workers is None:
        return config
    sources = config.sources | {"delivery.workers": "--workers"}
    return replace(config, delivery=replace(config.delivery, workers=workers), sources=sources)


def _reloaded(
    running: Config, store: str, reload: Callable[[], Config] | None, workers: int | None
) -> Config:
    """The configuration of now, if this engine may go on with it.

    Raises:
        ConfigError: it is unusable, looks cut off, lacks what a reload may not lose, or names
            another spool than the one that is served.
    """
    config = _with_workers(reload() if reload is not None else _read_again(running), workers)
    require_kept(running, config)
    if canonical(config.store) != store:
        raise ConfigError(
            f"{config.origin or 'the configuration'}: store is {config.store}, and this engine"
            f" serves {store}: restart it to serve another spool"
        )
    return config


def _read_again(running: Config) -> Config:
    """What ``running`` was loaded from, as it is now; a store named by an option stays named."""
    store = running.store if running.sources.get("store") == "--store" else None
    return load(running.origin, store=store, whole=True)


class _Parser(argparse.ArgumentParser):
    """The few options of the bare supervisor; ``mailstrom serve`` has the same."""

    def __init__(self) -> None:
        super().__init__(
            prog="python -m mailstrom.supervisor",
            description="Deliver the mail of a spool until told to end (TERM drains, HUP reloads).",
            allow_abbrev=False,
        )
        self.add_argument("--config", metavar="FILE", help="configuration file (TOML)")
        self.add_argument("--store", metavar="PATH", help="the spool; created if missing")
        self.add_argument(
            "--workers", metavar="N", type=_positive, help="delivery workers (default: processors)"
        )

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: {printable(message, 2000)}\n")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of workers; give 1 or more")
    return number


def _refuse(code: int, sentence: str) -> int:
    for line in sentence.split("\n"):  # a name in it may hold anything
        print(printable(line, 2000), file=sys.stderr, flush=True)
    return code
