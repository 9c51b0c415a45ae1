"""chasquid as a peer: Debian's binary receives on a loopback address and hands each mail on.

What takes it is a script that writes sender, recipient and content into a file of its own, a moment
after the final dot was answered; nothing is sent on. It asks the DNS about every sender (SPF): in
its mount namespace the name server is a loopback address where nobody listens, so that no question
leaves this machine.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from tests.support import debian
from tests.support.kept import Kept
from tests.support.postfix import Peer, Received

_CONFIGURATION = """\
hostname: "{hostname}"
smtp_address: "{address}:{port}"
data_dir: "{home}/data"
mail_delivery_agent_bin: "{home}/keep"
mail_delivery_agent_args: "%from%"
mail_delivery_agent_args: "%to%"
mail_log_path: "<stderr>"
max_data_size_mb: {megabytes}
suffix_separators: ""
drop_characters: ""
"""

_START = """\
set -e
mount --bind {home}/resolv.conf /etc/resolv.conf
exec {program} -config_dir {home} >{home}/log 2>&1
"""

_KEEP = """\
#!/bin/sh
set -e
f=$(mktemp {home}/box/.XXXXXXXXXX)
{{ printf '%s\\n%s\\n' "$1" "$2"; cat; }} >"$f"
mv "$f" "$f.mail"
"""


class ChasquidServer(Peer):
    """A real chasquid that receives for some domains, one file a recipient.

    Args:
        address: loopback address.
        port: None for a free one.
        hostname: its name in greeting and EHLO.
        domains: domains it takes mail for; others get ``503 5.7.1 Relay not allowed``.
        tls: certificate chain and key, PEM; it does not run without and always offers STARTTLS.
        users: local parts it knows in each domain; all others get ``550 5.1.1 Destination address
            is unknown``, and the third such reply of a connection ends it.
        refuse_content: senders that get ``451 4.3.0`` at the end of content.
        megabytes: the largest content it takes.
    """

    def __init__(
        self,
        address: str = "127.0.0.1",
        port: int | None = None,
        *,
        tls: tuple[bytes, bytes],
        hostname: str = "mx.chasquid.test",
        domains: Sequence[str] = ("chasquid.test",),
        users: Sequence[str] = (),
        refuse_content: Sequence[str] = (),
        megabytes: int = 50,
    ) -> None:
        tree = debian.chasquid()
        if os.getuid() != 0 or shutil.which("unshare") is None:
            debian.unavailable("chasquid", "its name server is set by unshare, as root")
        super().__init__(address, port)
        home = self.directory
        files = {
            "chasquid.conf": _CONFIGURATION.format(
                hostname=hostname,
                address=self.address,
                port=self.port,
                home=home,
                megabytes=megabytes,
            ),
            "resolv.conf": "nameserver 127.255.255.254\n",
            f"certs/{hostname}/fullchain.pem": tls[0].decode(),
            f"certs/{hostname}/privkey.pem": tls[1].decode(),
            **{f"domains/{one}/users": _users(users) for one in domains},
            "start": _START.format(home=home, program=tree.program("usr/bin/chasquid")),
        }
        scripts = {
            "keep": _KEEP.format(home=home),
            "hooks/post-data": _refusing(refuse_content),
        }
        for name, text in {**files, **scripts}.items():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_text(text)
            (home / name).chmod(0o755 if name in scripts else 0o600)
        (home / "box").mkdir()
        (home / "data").mkdir()
        self._kept = Kept(home / "box", _added)
        self._start(["unshare", "--mount", "sh", home / "start"], tree.environ())

    def log(self) -> str:
        """What it logged so far, of connections and of mail."""
        log = self.directory / "log"
        return log.read_text(errors="replace") if log.exists() else ""

    def received(self) -> list[Received]:
        """Everything handed on so far, one entry a recipient, in no order."""
        return self._kept.received()


def _users(names: Sequence[str]) -> str:
    """Its database of users, who all have some password."""
    return "".join(
        f'users: {{ key: "{name}" value: {{ plain: {{ password: "none" }} }} }}\n' for name in names
    )


def _refusing(senders: Sequence[str]) -> str:
    """What it runs with a content before it answers: ends with 1 for these senders."""
    cases = "".join(f"'{address}') echo not now; exit 1;;\n" for address in senders)
    return f'#!/bin/sh\ncat >/dev/null\ncase "$MAIL_FROM" in\n{cases}esac\nexit 0\n'


def _added(sender: str) -> Sequence[str]:
    return ("Received-SPF", "Received") if sender else ("Received",)
