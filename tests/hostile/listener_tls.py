"""TLS that a client does not mean: commands in its place, old versions, negotiation without end.

Contract. What is no handshake cuts the connection; a client of TLS 1.1 or before gets none; one
that negotiates anew is refused (OpenSSL's own default since 3.0). Nothing said in clear counts
behind a handshake.
"""

from __future__ import annotations

import ssl
import subprocess
import warnings
from collections.abc import Iterator
from typing import IO

from tests.hostile.gate import Gate, codes, until_closed
from tests.hostile.table import Row
from tests.support.trial import Plan

LIMIT_S = 20.0
REFUSED = "refused"


def run(gate: Gate, plan: Plan) -> Iterator[Row]:
    """Each once; the negotiations as often as they are let."""
    yield gate.measured(
        "STARTTLS, then commands in clear", "cut, no reply", lambda: _in_clear(gate)
    )
    yield gate.measured("TLS 1.1 and nothing newer", REFUSED, lambda: _old(gate))
    yield gate.measured("EHLO and MAIL before STARTTLS", "503 to RCPT", lambda: _forgotten(gate))
    yield gate.measured("a negotiation anew, TLS 1.2", REFUSED, lambda: _anew(gate))


def _in_clear(gate: Gate) -> str:
    with gate.talk() as talk:
        talk.ehlo()
        talk.say("STARTTLS")
        talk.send(b"EHLO x.test\r\nMAIL FROM:<evil@x.test>\r\nRCPT TO:<evil@y.test>\r\n")
        found = codes(until_closed(talk.sock))
    return "cut, no reply" if not found else f"{found} in clear"


def _old(gate: Gate) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with gate.talk() as talk:
        talk.ehlo()
        talk.say("STARTTLS")
        try:
            talk.seal(context)
        except (ssl.SSLError, ConnectionError):
            return REFUSED
        assert isinstance(talk.sock, ssl.SSLSocket)
        return f"{talk.sock.version()}"


def _forgotten(gate: Gate) -> str:
    """What was said in clear is forgotten behind the handshake (RFC 3207 section 4.2)."""
    with gate.talk() as talk:
        talk.ehlo()
        talk.starttls()
        mail = talk.say("MAIL FROM:<a@x.test>").code
        talk.say("HELO x.test")
        found = talk.say("RCPT TO:<b@y.test>").code
    return f"{found} to RCPT" if mail == 503 else f"{mail} to MAIL behind a forgotten EHLO"


def _read_until(lines: IO[bytes], words: bytes) -> None:
    for line in lines:
        if words in line:
            return
    raise EOFError(f"no {words!r}")


def _anew(gate: Gate) -> str:
    """Openssl negotiates anew where a line begins with R."""
    words = [
        "openssl", "s_client", "-tls1_2", "-connect", f"{gate.address}:{gate.implicit}",
    ]  # fmt: skip
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            _read_until(child.stdout, b"Verify return code")
            child.stdin.write(b"R\n")
            child.stdin.flush()
            _read_until(child.stdout, b"RENEGOTIATING")  # the R was read by itself
            said, _ = child.communicate(b"NOOP\r\n", timeout=LIMIT_S)
        finally:
            child.kill()
    if b"no renegotiation" in said.lower() or b"handshake failure" in said.lower():
        return REFUSED
    return said[-200:].decode(errors="replace").strip() or "negotiated"
