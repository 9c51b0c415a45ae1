"""Postfix as a client: a relay that hands everything to our server (``relayhost``)."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.clients import judge
from tests.clients.cases import CASES, PASSWORD, USER, Case
from tests.clients.judge import Kind, Said
from tests.clients.relaying import WAIT_S, handed
from tests.clients.station import HOSTNAME, Station
from tests.clients.table import Row
from tests.support import debian
from tests.support.postfix import PostfixServer
from tests.support.sockets import eventually
from tests.support.trial import Plan


def _service(case: Case, authority: Path) -> str:
    """A delivery agent of its own for each way to send."""
    words = [f"{case.word} unix - - n - 1 smtp", "-o smtp_helo_name=client.test"]
    if not case.tls:
        words.append("-o smtp_tls_security_level=none")
    else:
        words += [
            "-o smtp_tls_security_level=secure", f"-o smtp_tls_secure_cert_match={HOSTNAME}",
            f"-o smtp_tls_CAfile={authority}",
        ]  # fmt: skip
    if case.tls == "implicit":
        words.append("-o smtp_tls_wrappermode=yes")
    if case.auth:
        right = "right" if case.password == PASSWORD else "wrong"
        words += [
            "-o smtp_sasl_auth_enable=yes", f"-o smtp_sasl_password_maps=${right}_password",
            f"-o smtp_sasl_mechanism_filter={case.auth.lower()}",
            "-o smtp_sasl_security_options=noanonymous",
        ]  # fmt: skip
    if case.messages > 1:
        words.append("-o smtp_connection_cache_destinations=static:all")
    return " ".join(words) + "\n"


class Postfix:
    """One Postfix for all cases."""

    def __init__(self, station: Station, folder: Path) -> None:
        authority = folder / "trusted.pem"
        authority.write_bytes(station.files.authority.read_bytes())
        authority.chmod(0o644)
        ways = {case.word: f"{case.word}:[{station.address}]:{station.line(case).port}"
                for case in CASES}  # fmt: skip
        transports = ", ".join(f"{{ {word}.clients.test = {way} }}" for word, way in ways.items())
        hops = {way.partition(":")[2] for way in ways.values()}
        modules = debian.sasl_modules()
        (plugins,) = modules.root.glob("usr/lib/*/sasl2")
        self._server = PostfixServer(
            hostname="relay.clients.test",
            settings={
                "mynetworks": "127.0.0.0/8",
                "smtpd_relay_restrictions": "permit_mynetworks, reject",
                "transport_maps": f"inline:{{ {transports} }}",
                "default_destination_concurrency_limit": "1",
                "initial_destination_concurrency": "1",
                "right_password": _passwords(hops, PASSWORD),
                "wrong_password": _passwords(hops, "open barley"),
            },
            services="".join(_service(case, authority) for case in CASES)
            + "scache unix - - n - 1 scache\n",
            more={"SASL_PATH": str(plugins)},
        )
        tree = debian.postfix()
        said = subprocess.run(
            [str(tree.program("usr/sbin/postconf")), "-dh", "mail_version"], check=True,
            env=tree.environ(MAIL_CONFIG="/nonexistent"), capture_output=True, text=True,
        )  # fmt: skip
        self.program = f"Postfix {said.stdout.strip()}"

    def send(self, case: Case, contents: list[bytes]) -> Said:
        """Hand over, and wait for what the log says of each recipient."""
        texts = handed(self._server.address, self._server.port, case, contents)
        ids = [text.rpartition(" ")[2] for text in texts]
        wanted = len(ids) * len(case.addresses)
        found = eventually(
            lambda: len(lines := self._fates(ids)) >= wanted and lines, WAIT_S,
            what=f"{wanted} fates of {case.name} in {self._server.log()[-2000:]}",
        )  # fmt: skip
        return Said(ok=all(" status=sent " in line for line in found), words="\n".join(found))

    def _fates(self, ids: list[str]) -> list[str]:
        pattern = re.compile(rf": (?:{'|'.join(ids)}): to=<.* status=")
        return [line for line in self._server.log().splitlines() if pattern.search(line)]

    def close(self) -> None:
        """End it."""
        self._server.close()


def _passwords(hops: set[str], password: str) -> str:
    pairs = ", ".join(f"{{ {hop} = {USER}:{password} }}" for hop in sorted(hops))
    return f"inline:{{ {pairs} }}"


@contextlib.contextmanager
def _open(station: Station, folder: Path) -> Iterator[Postfix]:
    client = Postfix(station, folder)
    try:
        yield client
    finally:
        client.close()


KIND = Kind(
    name="postfix", open=_open, adds=1,
    cannot={"CHUNKING": "Postfix's client knows no BDAT"},
)  # fmt: skip


def run(plan: Plan) -> Iterator[Row]:
    """Every case."""
    yield from judge.run(KIND, plan)
