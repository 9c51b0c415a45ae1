"""Exim as a client: a relay that hands everything to our server, by BDAT where it is offered."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
from collections.abc import Iterator
from pathlib import Path

from tests.clients import judge
from tests.clients.cases import CASES, USER, Case
from tests.clients.command import output
from tests.clients.judge import Kind, Said
from tests.clients.relaying import WAIT_S, handed
from tests.clients.station import Station
from tests.clients.table import Row
from tests.support import debian
from tests.support.exim import KEPT, accounts
from tests.support.postfix import Peer
from tests.support.sockets import eventually
from tests.support.trial import Plan

_CONFIGURATION = """\
exim_path = {program}
keep_environment = {kept}
spool_directory = {home}/spool
log_file_path = {home}/log/%slog
pid_file_path = {home}/pid
primary_hostname = relay.clients.test
host_lookup =
rfc1413_hosts =
dns_dnssec_ok = 0
queue_only = true
tls_advertise_hosts =
dsn_advertise_hosts = *
smtputf8_advertise_hosts = *
acl_smtp_rcpt = accept
acl_smtp_data = accept
acl_smtp_predata = accept
acl_smtp_mail = accept
no_message_logs
log_selector = +smtp_confirmation

begin routers
{routers}
begin transports
{transports}
begin retry
* * F,1h,10m

begin authenticators
{authenticators}
"""


def _router(case: Case, address: str) -> str:
    return (
        f"to_{case.word}:\n  driver = manualroute\n  domains = {case.word}.clients.test\n"
        f"  route_list = * {address}\n  transport = {case.word}\n  self = send\n"
    )


def _transport(case: Case, port: int, authority: Path) -> str:
    lines = [
        f"{case.word}:", "driver = smtp", f"port = {port}", "allow_localhost",
        "helo_data = client.test", "hosts_try_dane =", "message_linelength_limit = 1000",
    ]  # fmt: skip
    if not case.tls:
        lines.append("hosts_avoid_tls = *")
    else:
        lines += [
            "hosts_require_tls = *", "tls_verify_hosts = *", "tls_verify_cert_hostnames = :",
            f"tls_verify_certificates = {authority}",
        ]  # fmt: skip
    if case.tls == "implicit":
        lines.append("protocol = smtps")
    if case.auth:
        lines.append("hosts_require_auth = *")
    return "\n  ".join(lines) + "\n"


def _authenticators() -> str:
    """One of each mechanism; the password is that of the case that a transport is for."""
    found = ""
    for mechanism, form in (("PLAIN", "^{0}^{1}"), ("LOGIN", ": {0} : {1}")):
        cases = [case for case in CASES if case.auth == mechanism]
        secret = "{}"
        for case in cases:
            secret = f"{{${{if eq{{$transport_name}}{{{case.word}}}{{{case.password}}}{secret}}}}}"
        words = ":".join(case.word for case in cases)
        found += (
            f"{mechanism.lower()}:\n  driver = plaintext\n  public_name = {mechanism}\n"
            f"  client_send = {form.format(USER, secret[1:-1])}\n"
            f"  client_condition = ${{if inlist{{$transport_name}}{{{words}}}}}\n"
        )
    return found


class Exim(Peer):
    """One Exim for all cases; what it has taken it delivers when it is told to, as root."""

    def __init__(self, station: Station, folder: Path) -> None:
        tree = debian.exim()
        if os.getuid() != 0:
            debian.unavailable("exim4-daemon-light", "Exim must be started as root")
        super().__init__("127.0.0.1", None)
        nobody = pwd.getpwnam("nobody")
        for name in ("spool", "log"):
            (self.directory / name).mkdir()
            os.chown(self.directory / name, nobody.pw_uid, nobody.pw_gid)
        authority = self.directory / "trusted.pem"
        authority.write_bytes(station.files.authority.read_bytes())
        authority.chmod(0o644)
        program = tree.program("usr/sbin/exim4")
        configuration = self.directory / "exim.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                program=program, kept=KEPT, home=self.directory,
                routers="".join(_router(case, station.address) for case in CASES),
                transports="".join(
                    _transport(case, station.line(case).port, authority) for case in CASES
                ),
                authenticators=_authenticators(),
            )
        )  # fmt: skip
        configuration.chmod(0o644)
        environ = tree.environ(**accounts(tree, nobody, self.directory))
        self._command, self._environ = [program, "-C", configuration], environ
        told = output([*self._command, "-bV"], environ)
        if "Exim version " not in told:
            raise RuntimeError(f"Exim does not take its configuration: {told} {self.log()}")
        self.program = f"Exim {told.split()[2]}"
        self._start(
            [*self._command, "-bdf", "-oX", f"<; [{self.address}]:{self.port}"],
            environ,
        )

    def log(self) -> str:
        """All its logs."""
        files = sorted((self.directory / "log").glob("*log"))
        return "".join(file.read_text(errors="replace") for file in files)

    def send(self, case: Case, contents: list[bytes]) -> Said:
        """Hand over, and wait for what the log says of each recipient."""
        texts = handed(self.address, self.port, case, contents)
        ids = [text.rpartition("id=")[2] for text in texts]
        said = output([*self._command, "-M", *ids], self._environ)
        wanted = len(ids) * len(case.addresses)
        found = eventually(
            lambda: len(lines := self._fates(ids)) >= wanted and lines, WAIT_S,
            what=f"{wanted} fates of {case.name}: {said} {self.log()[-2000:]}",
        )  # fmt: skip
        bad = [line for line in found if " ** " in line or " == " in line]
        return Said(ok=not bad, words="\n".join(found))

    def _fates(self, ids: list[str]) -> list[str]:
        pattern = re.compile(rf" (?:{'|'.join(ids)}) (?:=>|->|\*\*|==) ")
        return [line for line in self.log().splitlines() if pattern.search(line)]


@contextlib.contextmanager
def _open(station: Station, folder: Path) -> Iterator[Exim]:
    with Exim(station, folder) as client:
        yield client


KIND = Kind(
    name="exim", open=_open, adds=1,
    cannot={
        "8BITMIME": "Exim hands 8-bit content on as it is, and says no BODY",
        "several messages over one connection": "Exim does so only for mail that waited",
    },
)  # fmt: skip


def run(plan: Plan) -> Iterator[Row]:
    """Every case."""
    yield from judge.run(KIND, plan)
