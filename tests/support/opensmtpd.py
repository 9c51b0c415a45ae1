"""OpenSMTPD as a peer: Debian's binary receives on a loopback address and hands each mail on.

What takes it is a script that writes sender, recipient and content into a file of its own, a moment
after the final dot was answered; nothing is sent on.

OpenSMTPD must be started as root. Its paths are compiled in and its accounts exist only where it is
installed: it runs in a mount namespace where those paths are the peer's own directory, and sees the
accounts through Debian's ``libnss_wrapper``. The machine's own files and accounts stay as they are.
"""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
from collections.abc import Mapping, Sequence

from tests.support import debian
from tests.support.kept import Kept
from tests.support.postfix import Peer, Received

_START = """\
set -e
mount --bind {home}/spool /var/spool
mount -t tmpfs -o size=1m tmpfs /run
mount -t tmpfs -o size=1m tmpfs /var/lib
mkdir -p /var/lib/opensmtpd/empty /run/opensmtpd
mount --bind {libexec} /usr/libexec
export LD_PRELOAD={wrapper}
exec {program} -d -f {home}/smtpd.conf >{home}/log 2>&1
"""

_KEEP = """\
#!/bin/sh
set -e
f=$(mktemp {home}/box/.XXXXXXXXXX)
{{ printf '%s\\n%s\\n' "$SENDER" "$RECIPIENT"; cat; }} >"$f"
mv "$f" "$f.mail"
"""


class OpenSMTPDServer(Peer):
    """A real OpenSMTPD that receives for some domains, one file a recipient.

    Args:
        address: loopback address.
        port: None for a free one.
        hostname: its name in greeting and EHLO.
        domains: domains it takes mail for; others get ``550 Invalid recipient``.
        tls: certificate chain and key, PEM; None offers no STARTTLS.
        refuse: address -> reply, for example ``{"no@a.test": "550 5.1.1 no such user"}``.
        size: the largest content it takes, in octets.
        mails: how many it takes of a connection; MAIL gets ``452 4.5.3`` behind them.
    """

    def __init__(
        self,
        address: str = "127.0.0.1",
        port: int | None = None,
        *,
        hostname: str = "mx.opensmtpd.test",
        domains: Sequence[str] = ("opensmtpd.test",),
        tls: tuple[bytes, bytes] | None = None,
        refuse: Mapping[str, str] | None = None,
        size: int = 35 << 20,
        mails: int = 100,
    ) -> None:
        tree = debian.opensmtpd()
        if os.getuid() != 0:
            debian.unavailable("opensmtpd", "OpenSMTPD must be started as root")
        if shutil.which("unshare") is None:
            debian.unavailable("util-linux", "no unshare in PATH")
        super().__init__(address, port)
        nobody = pwd.getpwnam("nobody")
        (self.directory / "spool" / "smtpd").mkdir(parents=True)
        (self.directory / "spool" / "smtpd").chmod(0o711)
        box = self.directory / "box"
        box.mkdir()
        os.chown(box, nobody.pw_uid, nobody.pw_gid)
        self._kept = Kept(box, _added)
        keep = self.directory / "keep"
        keep.write_text(_KEEP.format(home=self.directory))
        keep.chmod(0o755)
        limits = (f"smtp max-message-size {size}", f"smtp limit max-mails {mails}")
        self._configure(hostname, domains, tls, refuse or {}, limits)
        wrapper = next(
            found for one in tree.libraries for found in sorted(one.glob("libnss_wrapper.so"))
        )
        start = self.directory / "start"
        start.write_text(
            _START.format(
                home=self.directory,
                libexec=tree.program("usr/libexec"),
                wrapper=wrapper,
                program=shlex.quote(str(tree.program("usr/sbin/smtpd"))),
            )
        )
        self._start(
            ["unshare", "--mount", "sh", start],
            tree.environ(
                NSS_WRAPPER_PASSWD=str(self.directory / "passwd"),
                NSS_WRAPPER_GROUP=str(self.directory / "group"),
            ),
        )

    def log(self) -> str:
        """What it logged so far: connections, commands that failed, deliveries."""
        log = self.directory / "log"
        return log.read_text(errors="replace") if log.exists() else ""

    def received(self) -> list[Received]:
        """Everything handed on so far, one entry a recipient, in no order."""
        return self._kept.received()

    def _configure(
        self,
        hostname: str,
        domains: Sequence[str],
        tls: tuple[bytes, bytes] | None,
        refuse: Mapping[str, str],
        limits: Sequence[str],
    ) -> None:
        """Write the configuration and the accounts, all of the unprivileged ones apart."""
        home = self.directory
        lines = [*limits]
        secured = ""
        if tls is not None:
            for name, content in (("cert", tls[0]), ("key", tls[1])):
                (home / name).write_bytes(content)
                (home / name).chmod(0o600)
                lines.append(f'pki "{hostname}" {name} "{home / name}"')
            secured = f'tls pki "{hostname}"'
        chain = ""
        for number, (recipient, reply) in enumerate(refuse.items()):
            lines.append(f'table t{number} {{ "{recipient}" }}')
            lines.append(
                f'filter f{number} phase rcpt-to match rcpt-to <t{number}> reject "{reply}"'
            )
        if refuse:
            names = ", ".join(f"f{number}" for number in range(len(refuse)))
            lines.append(f"filter refusals chain {{ {names} }}")
            chain = "filter refusals"
        lines.append(
            f"listen on {self.address} port {self.port} {secured} {chain} hostname {hostname}"
        )
        lines.append(f'action "keep" mda "{home / "keep"}" virtual {{ "@" = nobody }}')
        lines += [f'match from any for domain "{one}" action "keep"' for one in domains]
        (home / "smtpd.conf").write_text("\n".join(lines) + "\n")
        (home / "smtpd.conf").chmod(0o600)
        nobody = pwd.getpwnam("nobody")
        users = {"opensmtpd": 65533, "opensmtpq": 65532}
        (home / "passwd").write_text(
            "root:x:0:0:root:/root:/bin/sh\n"
            f"nobody:x:{nobody.pw_uid}:{nobody.pw_gid}::/:/bin/false\n"
            + "".join(
                f"{name}:x:{id}:{id}::/var/lib/opensmtpd/empty:/bin/false\n"
                for name, id in users.items()
            )
        )
        (home / "group").write_text(
            f"root:x:0:\nnogroup:x:{nobody.pw_gid}:\n"
            + "".join(f"{name}:x:{id}:\n" for name, id in users.items())
        )


def _added(sender: str) -> Sequence[str]:
    own = ("Delivered-To", "Received")
    return ("Return-Path", *own) if sender else own
