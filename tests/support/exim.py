"""Exim as a peer: Debian's binary receives on a loopback address and keeps what it took in a queue.

Nothing is delivered on: each message stands in the queue, two files written before its final dot
(or its BDAT) is answered, so that what they tell is independent of what we believe to have sent.

Exim must be started as root and insists on the account it was built for, which exists only where
it is installed: its children see that account through Debian's ``libnss_wrapper``, the machine's
own accounts stay as they are.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support import debian
from tests.support.postfix import Peer, Received

_ACCOUNT = "Debian-exim"
KEPT = "LD_LIBRARY_PATH:LD_PRELOAD:NSS_WRAPPER_PASSWD:NSS_WRAPPER_GROUP"

_CONFIGURATION = """\
exim_path = {program}
keep_environment = {kept}
spool_directory = {home}/spool
log_file_path = {home}/log/%slog
pid_file_path = {home}/pid
primary_hostname = {hostname}
queue_only = true
smtp_accept_max = 0
smtp_accept_max_per_connection = 0
smtp_accept_queue_per_connection = 0
smtp_accept_reserve = 0
host_lookup =
rfc1413_hosts =
dns_dnssec_ok = 0
{tls}chunking_advertise_hosts = {chunking}
pipelining_advertise_hosts = *
smtp_enforce_sync = true
acl_smtp_mail = at_mail
acl_smtp_rcpt = at_rcpt
acl_smtp_data = at_data
{more}

begin acl
at_mail:
{mail}  accept
at_rcpt:
{rcpt}  accept domains = {domains}
  deny message = 550 5.7.1 relay access denied
at_data:
{data}  accept
"""


class EximServer(Peer):
    """A real Exim that receives for some domains into its queue.

    Args:
        address: loopback address.
        port: None for a free one.
        hostname: its name in greeting and EHLO.
        domains: domains it takes mail for.
        chunking: whether it offers CHUNKING.
        tls: certificate chain and key, PEM; None offers no STARTTLS.
        refuse_senders, refuse, refuse_content: address -> reply, for example ``{"no@a.test": "550
            5.1.1 no such user"}``: at MAIL and at the end of content by sender, at RCPT by
            recipient.
        settings: more settings of the main section.
    """

    def __init__(
        self,
        address: str = "127.0.0.1",
        port: int | None = None,
        *,
        hostname: str = "mx.exim.test",
        domains: Sequence[str] = ("exim.test",),
        chunking: bool = True,
        tls: tuple[bytes, bytes] | None = None,
        refuse_senders: Mapping[str, str] | None = None,
        refuse: Mapping[str, str] | None = None,
        refuse_content: Mapping[str, str] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        tree = debian.exim()
        if os.getuid() != 0:
            debian.unavailable("exim4-daemon-light", "Exim must be started as root")
        super().__init__(address, port)
        nobody = pwd.getpwnam("nobody")
        for name in ("spool", "log"):
            (self.directory / name).mkdir()
            os.chown(self.directory / name, nobody.pw_uid, nobody.pw_gid)
        configuration = self.directory / "exim.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                program=tree.program("usr/sbin/exim4"),
                kept=KEPT,
                home=self.directory,
                hostname=hostname,
                chunking="*" if chunking else "",
                tls=self._secured(tls, nobody),
                domains=" : ".join(domains),
                mail=_verdicts("senders", refuse_senders or {}),
                rcpt=_verdicts("recipients", refuse or {}),
                data=_verdicts("senders", refuse_content or {}),
                more="\n".join(f"{name} = {value}" for name, value in (settings or {}).items()),
            )
        )
        configuration.chmod(0o644)
        self._start(
            [
                tree.program("usr/sbin/exim4"),
                *("-C", configuration, "-bdf", "-oX", f"<; [{self.address}]:{self.port}"),
            ],
            tree.environ(**accounts(tree, nobody, self.directory)),
        )

    def _secured(self, tls: tuple[bytes, bytes] | None, nobody: pwd.struct_passwd) -> str:
        if tls is None:
            return "tls_advertise_hosts =\n"
        lines = ["tls_advertise_hosts = *\n"]
        for setting, content in (("tls_certificate", tls[0]), ("tls_privatekey", tls[1])):
            file = self.directory / f"{setting}.pem"
            file.write_bytes(content)
            file.chmod(0o600)
            os.chown(file, nobody.pw_uid, -1)
            lines.append(f"{setting} = {file}\n")
        return "".join(lines)

    def log(self) -> str:
        """The logs so far: what was received, refused, and what made it panic."""
        files = sorted((self.directory / "log").glob("*log"))
        return "".join(file.read_text(errors="replace") for file in files)

    def received(self) -> list[Received]:
        """Everything in the queue, one entry a message, in the order of arrival."""
        heads = sorted((self.directory / "spool" / "input").glob("*-H"))
        return [_queued(head) for head in sorted(heads, key=lambda head: head.stat().st_mtime_ns)]


def accounts(tree: debian.Unpacked, nobody: pwd.struct_passwd, folder: Path) -> dict[str, str]:
    """Variables that show Exim the account it looks for, with the rights of nobody."""
    passwd, group = folder / "passwd", folder / "group"
    ids = f"{nobody.pw_uid}:{nobody.pw_gid}"
    passwd.write_text(f"root:x:0:0:root:/root:/bin/sh\n{_ACCOUNT}:x:{ids}::{folder}:/bin/false\n")
    group.write_text(f"root:x:0:\nmail:x:8:\n{_ACCOUNT}:x:{nobody.pw_gid}:\n")
    (wrapper,) = (
        found for one in tree.libraries for found in sorted(one.glob("libnss_wrapper.so"))
    )
    return {
        "LD_PRELOAD": str(wrapper),
        "NSS_WRAPPER_PASSWD": str(passwd),
        "NSS_WRAPPER_GROUP": str(group),
    }


def _verdicts(condition: str, replies: Mapping[str, str]) -> str:
    words = {"4": "defer", "5": "deny"}
    return "".join(
        f"  {words[reply[0]]} {condition} = {address}\n    message = {reply}\n"
        for address, reply in replies.items()
    )


_HEADER = re.compile(rb"(\d{3,})(.) ", re.DOTALL)


def _queued(head: Path) -> Received:
    """Take apart the two files of a queued message: envelope and headers, then the body."""
    stored = head.read_bytes()
    envelope, _, headers = stored.partition(b"\n\n")
    lines = envelope.split(b"\n")
    count = next(n for n, line in enumerate(lines) if n > 3 and line.isdigit())
    content: list[bytes] = []
    at = 0
    own = True  # its own Received stands in front of all others
    while found := _HEADER.match(headers, at):
        end = found.end() + int(found[1])
        text = headers[found.end() : end]
        if not own or not text.startswith(b"Received: "):
            content.append(text)
        own = False
        at = end
    body = head.with_name(head.name[:-1] + "D").read_bytes().partition(b"\n")[2]
    return Received(
        sender=lines[2].decode("utf-8", "surrogateescape")[1:-1],
        recipients=tuple(
            line.decode("utf-8", "surrogateescape") for line in lines[count + 1 :] if line
        ),
        content=(b"".join(content) + b"\n" + body).replace(b"\n", b"\r\n"),
    )
