"""Debian's Postfix as a relaying queue: mail in by smtp-source, out by its smtp(8) to one host.

Contract. Unpacked, never installed (``tests.support.debian``); must be started as root, which it
gives up for its daemons. Settings are its defaults: concurrency 20, connections reused on demand,
queue files synced; ``in_flow_delay`` 0 only while it is filled with delivery held, and TLS off on
both sides. It logs to a syslog that is not there, which costs it less than a real one. Held is: no
queue manager runs; released: it is started again with one.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.support.sockets import accepts, eventually, free_port
from tools.bench.processes import Started
from tools.bench.stations import postfix_tree, source

_QUEUE = {
    "pid": 0o755, "public": 0o710, "maildrop": 0o730,
    **dict.fromkeys(("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold",
                     "incoming", "private", "saved", "trace"), 0o700),
}  # fmt: skip
# service type private unprivileged chroot wakeup limit command
_SERVICES = """\
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
{qmgr}
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
tlsmgr unix - - n 1000? 1 tlsmgr
127.0.0.1:{port} inet n - n - - smtpd
"""


class Postfix:
    """One Postfix, for one run.

    Args:
        home: directory of the run; others must be able to enter it.
        port: where all mail goes.
        connections: at most so many to there.
        settings: of its main.cf, over those that all runs have.
    """

    def __init__(
        self,
        home: Path,
        port: int,
        *,
        connections: int = 20,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        if os.getuid() != 0:
            raise RuntimeError("Postfix must be started as root; leave it out: --peer none")
        self._tree = postfix_tree()
        self._home = home
        self._target = port
        self._connections = connections
        self._settings = dict(settings or {})
        self.port = free_port()
        self._started: Started | None = None
        home.chmod(0o755)
        self._make_directories()

    def _make_directories(self) -> None:
        owner, group = _accounts()
        for name in ("conf", "queue", "data"):
            (self._home / name).mkdir(mode=0o755)
        os.chown(self._home / "data", owner.pw_uid, -1)
        for name, mode in _QUEUE.items():
            directory = self._home / "queue" / name
            directory.mkdir()
            if name != "pid":
                shared = name in ("public", "maildrop")
                os.chown(directory, owner.pw_uid, group.gr_gid if shared else -1)
            directory.chmod(mode)

    def _configure(self, *, held: bool) -> None:
        owner, group = _accounts()
        program, conf = self._tree.program, self._home / "conf"
        settings = {
            "compatibility_level": "3.6",
            "queue_directory": self._home / "queue",
            "data_directory": self._home / "data",
            "daemon_directory": program("usr/lib/postfix/sbin"),
            "command_directory": program("usr/sbin"),
            "shlib_directory": program("usr/lib/postfix"),
            "meta_directory": conf,
            "import_environment": f"LD_LIBRARY_PATH={self._tree.library_path} MAIL_CONFIG={conf}"
            " LC_ALL=C TZ=UTC",
            "mail_owner": owner.pw_name,
            "setgid_group": group.gr_name,
            "inet_interfaces": "loopback-only",
            "inet_protocols": "ipv4",
            "myhostname": "peer.bench.test",
            "mydestination": "",
            "alias_maps": "",
            "local_recipient_maps": "",
            "mynetworks": "127.0.0.0/8",
            "relayhost": f"[127.0.0.1]:{self._target}",
            "disable_dns_lookups": "yes",
            "smtp_tls_security_level": "none",
            "smtpd_tls_security_level": "none",
            "smtpd_peername_lookup": "no",
            "default_destination_concurrency_limit": self._connections,
            **({"in_flow_delay": 0} if held else {}),
            **self._settings,
        }
        (conf / "main.cf").write_text("".join(f"{key} = {to}\n" for key, to in settings.items()))
        qmgr = "" if held else "qmgr unix n - n 300 1 qmgr"
        (conf / "master.cf").write_text(_SERVICES.format(qmgr=qmgr, port=self.port))

    def _run(self, *, held: bool) -> None:
        self._stop()
        self._configure(held=held)
        conf = self._home / "conf"
        started = Started(
            [self._tree.program("usr/lib/postfix/sbin/master"), "-c", conf, "-d"],
            environ=self._tree.environ(MAIL_CONFIG=str(conf)), log=self._home / "master.log",
        )  # fmt: skip
        self._started = started
        eventually(
            lambda: started.process.poll() is not None or accepts("127.0.0.1", self.port),
            what="Postfix listening",
        )
        if started.process.poll() is not None:
            raise RuntimeError(f"Postfix ended at once: {started.words()}")

    def _stop(self) -> None:
        started, self._started = self._started, None
        if started:
            started.stop()

    def fill(self, messages: int) -> float:
        """By SMTP over 20 connections that are kept."""
        self._run(held=True)
        begin, end = self.offer(messages)
        self._stop()
        return end - begin

    def deliver(self) -> None:
        """Starts it with a queue manager."""
        self._run(held=False)

    def serve(self) -> None:
        """Starts it with a queue manager."""
        self._run(held=False)

    def offer(self, messages: int) -> tuple[float, float]:
        """By SMTP over 20 connections that are kept."""
        return source(self.port, messages)

    def hold(self) -> None:
        """Starts it without a queue manager: what it takes stays where smtpd put it."""
        self._run(held=True)

    def roots(self) -> Iterable[int]:
        """Its master process."""
        return [self._started.pid] if self._started else []

    def left(self) -> int:
        """Queue files that are left."""
        queue = self._home / "queue"
        names = ("incoming", "active", "deferred", "maildrop")
        return sum(1 for name in names for file in (queue / name).rglob("*") if file.is_file())

    def words(self) -> str:
        """What its master said; it logs nowhere."""
        return self._started.words() if self._started else ""

    def close(self) -> None:
        """Ends it and removes its queue."""
        self._stop()
        shutil.rmtree(self._home / "queue", ignore_errors=True)


def _accounts() -> tuple[pwd.struct_passwd, grp.struct_group]:
    """An account that is not root's, and a group that is not the account's, as it demands."""
    for owner_name, group_name in (("postfix", "postdrop"), ("mail", "uucp"), ("daemon", "games")):
        try:
            owner, group = pwd.getpwnam(owner_name), grp.getgrnam(group_name)
        except KeyError:
            continue
        if group.gr_gid not in (owner.pw_gid, pwd.getpwnam("nobody").pw_gid):
            return owner, group
    raise RuntimeError("no account postfix, mail or daemon to run Postfix as")
