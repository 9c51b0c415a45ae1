"""Postfix as a peer: its counter ``smtp-sink``, and a real receiving Postfix.

Both run Debian's binaries (``tests.support.debian.postfix``) on a loopback address and an
unprivileged port, as children that end with their context manager. Neither touches the machine's
own mail configuration. Each keeps what it received in files written before the final dot is
answered, so that what they tell is independent of what we believe to have sent.

Postfix gives up root for its daemons; it must be started as root, and its directories must be
reachable for others, which pytest's temporary directories are not: both make their own.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from email.policy import compat32
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support import debian
from tests.support.sockets import accepts, eventually, free_port

STOP_TIMEOUT = 10.0
_PATH = re.compile(r'<((?:"(?:\\.|[^"\\])*"|[^">])*)>')


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One content that a peer took over.

    Args:
        sender: envelope sender, "" for the null sender.
        recipients: envelope recipients in the order given.
        content: the bytes as on the wire, dots unstuffed, CRLF line ends (both peers store LF).
    """

    sender: str
    recipients: tuple[str, ...]
    content: bytes

    @property
    def message_id(self) -> str:
        """The Message-ID header with its angle brackets, "" without one."""
        found = BytesHeaderParser(policy=compat32).parsebytes(
            self.content.partition(b"\r\n\r\n")[0]
        )["Message-ID"]
        return str(found or "").strip()


class Peer:
    """A child process on one address and port, with a directory that others may enter."""

    def __init__(self, address: str, port: int | None) -> None:
        self.address = address
        self.port = free_port(address) if port is None else port
        self.directory = Path(tempfile.mkdtemp(prefix="mailstrom-peer-"))
        self.directory.chmod(0o755)
        self._child: subprocess.Popen[bytes] | None = None

    def _start(self, command: Sequence[str | Path], environ: Mapping[str, str]) -> None:
        errors = self.directory / "stderr"
        with errors.open("wb") as stderr:
            child = subprocess.Popen(
                [str(word) for word in command],
                env=dict(environ),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        self._child = child
        try:
            eventually(
                lambda: child.poll() is not None or accepts(self.address, self.port),
                what=f"{self.address}:{self.port} listening",
            )
            if child.poll() is not None:
                raise RuntimeError(
                    f"{command[0]} ended at once ({child.returncode}): "
                    f"{errors.read_text(errors='replace')}{self.log()}"
                )
        except BaseException:
            self.close()
            raise

    def log(self) -> str:
        """What the peer logged; "" for one without a log."""
        return ""

    def __enter__(self) -> Self:
        """Return the running peer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the peer and remove its directory."""
        self.close()

    def stop(self) -> None:
        """End the peer's processes and keep its directory; a second call does nothing."""
        child, self._child = self._child, None
        if child is None:
            return
        child.terminate()
        try:
            child.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # the group is the peer's own session
            child.wait(STOP_TIMEOUT)

    def close(self) -> None:
        """End the peer and remove its directory."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


class SmtpSink(Peer):
    """Postfix's ``smtp-sink``: takes every message, at once, and dumps it before answering the dot.

    Args:
        address: loopback address.
        port: None for a free one.
        options: more options of smtp-sink(1), for example ``("-r", "RCPT")``.
        dump: whether received messages are kept (:meth:`received`).
    """

    def __init__(
        self,
        address: str = "127.0.0.1",
        port: int | None = None,
        *,
        options: Sequence[str] = (),
        dump: bool = True,
    ) -> None:
        tree = debian.postfix()
        super().__init__(address, port)
        # Content may hold anything, so the records are told apart by a word nobody can guess.
        self._marker = f"smtp-sink-record-{secrets.token_hex(12)}\n"
        command: list[str | Path] = [tree.program("usr/sbin/smtp-sink"), *options]
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.directory, nobody.pw_uid, -1)
            command += ["-u", "nobody"]
        self._dump = self.directory / "dump"
        if dump:
            command += ["-S", self._marker.replace("\n", "\\n"), "-D", self._dump]
        command += [f"{self.address}:{self.port}", "512"]
        self._start(command, tree.environ())

    def received(self) -> list[Received]:
        """Everything dumped so far, in order; whole records only once the senders are quiet."""
        if not self._dump.exists():
            return []
        _, *records = self._dump.read_bytes().split(self._marker.encode())
        return [_sink_record(record) for record in records]

    def count(self) -> int:
        """Number of messages dumped so far (a message with many recipients counts once)."""
        return self._dump.read_bytes().count(self._marker.encode()) if self._dump.exists() else 0


def _sink_record(record: bytes) -> Received:
    lines = record.split(b"\n")
    sender, recipients = "", []
    index = 0
    while not lines[index].startswith(b"Received: "):
        name, _, value = lines[index].partition(b": ")
        path = _PATH.search(value.decode("utf-8", "surrogateescape"))
        if name == b"X-Mail-Args" and path:
            sender = path[1]
        elif name == b"X-Rcpt-Args" and path:
            recipients.append(path[1])
        index += 1
    # Received: has three lines; an empty line is added behind the content.
    content = b"\r\n".join(lines[index + 3 : -2]) + b"\r\n"
    return Received(sender=sender, recipients=tuple(recipients), content=content)


class PostfixServer(Peer):
    """A real Postfix that receives for some domains into a Maildir, one file a recipient.

    Args:
        address: loopback address.
        port: None for a free one.
        hostname: its name in greeting and EHLO.
        domains: domains it takes mail for; others get ``554 5.7.1 Relay access denied``.
        tls: certificate chain and key, PEM; None offers no STARTTLS.
        refuse: address -> reply, for example ``{"no@a.test": "550 5.1.1 no such user"}``.
        settings: more main.cf settings, for example ``smtpd_tls_security_level=encrypt``.
        services: more lines of master.cf; without them nothing can leave it.
        more: more variables of the environment of all its processes.
    """

    def __init__(
        self,
        address: str = "127.0.0.1",
        port: int | None = None,
        *,
        hostname: str = "mx.postfix.test",
        domains: Sequence[str] = ("postfix.test",),
        tls: tuple[bytes, bytes] | None = None,
        refuse: Mapping[str, str] | None = None,
        settings: Mapping[str, str] | None = None,
        services: str = "",
        more: Mapping[str, str] | None = None,
    ) -> None:
        tree = debian.postfix()
        if os.getuid() != 0:
            debian.unavailable("postfix", "a receiving Postfix must be started as root")
        super().__init__(address, port)
        self._log = self.directory / "log"
        self._box = self.directory / "mail" / "box"
        owner, group, nobody = _accounts()
        self._make_directories(owner, group, nobody)
        main = {
            **_static_settings(tree, self.directory),
            "mail_owner": owner.pw_name,
            "setgid_group": group.gr_name,
            "default_privs": nobody.pw_name,
            "myhostname": hostname,
            "virtual_mailbox_domains": ", ".join(domains),
            "virtual_uid_maps": f"static:{nobody.pw_uid}",
            "virtual_gid_maps": f"static:{nobody.pw_gid}",
            **self._tls_settings(tls),
            **_refusals(refuse or {}),
            **(settings or {}),
        }
        variables = "".join(f" {name}={value}" for name, value in (more or {}).items())
        main["import_environment"] += variables
        conf = self.directory / "conf"
        lines = [f"{name} = {value}\n" for name, value in main.items()]
        (conf / "main.cf").write_text("".join(lines))
        (conf / "master.cf").write_text(
            f"{self.address}:{self.port} inet n - n - - smtpd\n{_MASTER}{services}"
        )
        self._start(
            [tree.program("usr/lib/postfix/sbin/master"), "-c", conf, "-d"],
            tree.environ(MAIL_CONFIG=str(conf)),
        )

    def log(self) -> str:
        """The mail log so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def received(self) -> list[Received]:
        """Everything delivered to mailboxes so far, one entry a recipient, in no order.

        Postfix answers the dot once its queue holds the message and delivers a moment later: use
        :func:`tests.support.sockets.eventually` around it.
        """
        files = sorted((self._box / "new").glob("*")) if self._box.exists() else []
        return [_mailbox_file(file.read_bytes()) for file in files]

    def _make_directories(
        self, owner: pwd.struct_passwd, group: grp.struct_group, nobody: pwd.struct_passwd
    ) -> None:
        for name in ("conf", "queue", "data", "mail"):
            (self.directory / name).mkdir(mode=0o755)
        os.chown(self.directory / "data", owner.pw_uid, -1)
        os.chown(self.directory / "mail", nobody.pw_uid, -1)
        queue = self.directory / "queue"
        for name, mode in _QUEUE.items():
            (queue / name).mkdir()
            if name != "pid":
                shared = name in ("public", "maildrop")
                os.chown(queue / name, owner.pw_uid, group.gr_gid if shared else -1)
            (queue / name).chmod(mode)

    def _tls_settings(self, tls: tuple[bytes, bytes] | None) -> dict[str, str]:
        if tls is None:
            return {"smtpd_tls_security_level": "none"}
        chain = self.directory / "conf" / "chain.pem"
        chain.write_bytes(tls[1] + tls[0])
        chain.chmod(0o600)
        return {"smtpd_tls_security_level": "may", "smtpd_tls_chain_files": str(chain)}


_QUEUE = {
    **dict.fromkeys(("active", "bounce", "corrupt", "defer", "deferred", "flush"), 0o700),
    **dict.fromkeys(("hold", "incoming", "private", "saved", "trace"), 0o700),
    "public": 0o710,
    "maildrop": 0o730,
    "pid": 0o755,
}

# What a receiving Postfix runs; no smtp(8) client, so nothing can leave it unless it is given one.
_MASTER = """\
cleanup    unix       n - n - 0 cleanup
qmgr       unix       n - n 300 1 qmgr
tlsmgr     unix       - - n 1000? 1 tlsmgr
rewrite    unix       - - n - - trivial-rewrite
bounce     unix       - - n - 0 bounce
defer      unix       - - n - 0 bounce
trace      unix       - - n - 0 bounce
proxymap   unix       - - n - - proxymap
error      unix       - - n - - error
retry      unix       - - n - - error
discard    unix       - - n - - discard
virtual    unix       - n n - - virtual
anvil      unix       - - n - 1 anvil
postlog    unix-dgram n - n - 1 postlogd
"""


def _static_settings(tree: debian.Unpacked, home: Path) -> dict[str, str]:
    return {
        "compatibility_level": "3.6",
        "queue_directory": str(home / "queue"),
        "data_directory": str(home / "data"),
        "daemon_directory": str(tree.program("usr/lib/postfix/sbin")),
        "command_directory": str(tree.program("usr/sbin")),
        "shlib_directory": str(tree.program("usr/lib/postfix")),
        "meta_directory": str(home / "conf"),
        "import_environment": f"LD_LIBRARY_PATH={tree.library_path} "
        f"MAIL_CONFIG={home / 'conf'} LC_ALL=C TZ=UTC",
        "maillog_file": str(home / "log"),
        "maillog_file_prefixes": str(home),
        # 127.x.y.z is bound in master.cf; this setting knows only addresses of interfaces.
        "inet_interfaces": "loopback-only",
        "inet_protocols": "ipv4",
        "mydestination": "",
        "mynetworks": "",
        "alias_maps": "",
        "local_recipient_maps": "",
        "virtual_mailbox_base": str(home / "mail"),
        "virtual_mailbox_maps": "static:box/",
        "virtual_minimum_uid": "1",
        "default_transport": "discard:",
        "disable_dns_lookups": "yes",
        "smtpd_peername_lookup": "no",
        "smtpd_relay_restrictions": "reject_unauth_destination",
        "smtpd_client_connection_count_limit": "0",
        "smtpd_client_connection_rate_limit": "0",
        # Content must stay as sent, so that its digest can be compared.
        "local_header_rewrite_clients": "",
        "enable_original_recipient": "no",
    }


def _refusals(refuse: Mapping[str, str]) -> dict[str, str]:
    if not refuse:
        return {}
    rules = ", ".join(f"{{ {address} = {reply} }}" for address, reply in refuse.items())
    return {"smtpd_recipient_restrictions": f"check_recipient_access inline:{{ {rules} }}"}


def _accounts() -> tuple[pwd.struct_passwd, grp.struct_group, pwd.struct_passwd]:
    """Accounts as Postfix demands: an owner that is not root, a set-gid group of its own."""
    nobody = pwd.getpwnam("nobody")
    owners = {one.pw_name: one for one in pwd.getpwall()}
    groups = {one.gr_name: one for one in grp.getgrall()}
    for owner_name, group_name in (("postfix", "postdrop"), ("mail", "uucp"), ("daemon", "games")):
        owner, group = owners.get(owner_name), groups.get(group_name)
        if owner and group and group.gr_gid not in (owner.pw_gid, nobody.pw_gid):
            break
    else:
        debian.unavailable("postfix", "no account postfix, mail or daemon to run it as")
    return owner, group, nobody


def _mailbox_file(stored: bytes) -> Received:
    """Take apart what virtual(8) wrote: Return-Path, Delivered-To, Received, then the content."""
    lines = stored.split(b"\n")
    sender = recipient = ""
    for index, line in enumerate(lines):
        name, _, value = line.partition(b": ")
        text = value.decode("utf-8", "surrogateescape")
        if name == b"Return-Path":
            sender = text.strip("<>")
        elif name == b"Delivered-To":
            recipient = text
        elif name == b"Received":
            start = index + 1
            while lines[start].startswith((b"\t", b" ")):
                start += 1
            content = b"\r\n".join(lines[start:])
            return Received(sender=sender, recipients=(recipient,), content=content)
    raise ValueError(f"no Received header of Postfix in {stored[:200]!r}")
