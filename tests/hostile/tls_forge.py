"""TLS records that no library writes, sealed under the keys of a real handshake.

Contract. ``Forge`` takes a line whose handshake is over: from then on every record of the
server is made here, from the secrets that OpenSSL writes into its key log: handshake messages that
come after the handshake (RFC 8446 section 4.6, RFC 5246 section 7.4.1.1), alerts, records of any
type, empty or damaged. The client's records are read by the library as ever.

Must not know: SMTP.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl
import struct
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from tests.hostile.tls_line import Line

ALERT, HANDSHAKE, DATA = 21, 22, 23
INTERNAL_ERROR, RECORD_OVERFLOW = b"\x02\x50", b"\x02\x16"
_TAG = 16
_MOST = 1 << 14

KEY_UPDATE = b"\x18\x00\x00\x01\x00"
KEY_UPDATE_ASKED = b"\x18\x00\x00\x01\x01"
HELLO_REQUEST = b"\x00\x00\x00\x00"


def ticket(length: int = 64) -> bytes:
    """A NewSessionTicket of TLS 1.3, well made."""
    body = struct.pack(">II", 7200, 1) + b"\x01n" + struct.pack(">H", length) + b"t" * length
    return b"\x04" + (len(body) + 2).to_bytes(3) + body + b"\0\0"


BROKEN_TICKET = b"\x04\x00\x00\x0a" + b"\xff" * 10


def prepared(context: ssl.SSLContext, version: str, log: Path) -> ssl.SSLContext:
    """The context, made to speak one version with ciphers that are known here, and to tell keys.

    Args:
        version: ``"1.2"`` or ``"1.3"``.
        log: where it writes them; new.
    """
    one = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[version]
    context.minimum_version = context.maximum_version = one
    context.set_ciphers("ECDHE+AESGCM:@SECLEVEL=0")
    context.num_tickets = 0  # nothing is sealed before the forge begins
    context.keylog_filename = str(log)
    return context


class Forge:
    """The server's half of a connection.

    Args:
        line: under TLS; nothing was said on it since its handshake.
        log: its key log, with no other connection's secrets in it.
        first: what came out of the server during the handshake, for TLS 1.2.
    """

    def __init__(self, line: Line, log: Path, first: bytes = b"") -> None:
        assert line.tls is not None
        name, version, _ = line.tls.cipher() or ("", "", 0)
        self._new = line.tls.version() == "TLSv1.3"
        assert "GCM" in name or name == "TLS_AES_256_GCM_SHA384", (name, version)
        long = "256" in name
        self._size = 32 if long else 16
        self._hash: hashes.HashAlgorithm = hashes.SHA384() if "384" in name else hashes.SHA256()
        self._digest = hashlib.sha384 if "384" in name else hashlib.sha256
        secrets = _secrets(log)
        if self._new:
            self._secret = secrets["SERVER_TRAFFIC_SECRET_0"][1]
            self._count = 0
            self._derive()
        else:
            self._old_keys(secrets["CLIENT_RANDOM"], first)
            self._count = 1  # Finished was the first
        self._line = line
        line.put = self.say
        line.through = self._hush  # what the library answers by itself would break the count

    def _hush(self, octets: bytes) -> None:
        return None

    # Keys

    def _expanded(self, label: str, length: int) -> bytes:
        full = b"tls13 " + label.encode()
        told = struct.pack(">HB", length, len(full)) + full + b"\0"
        return HKDFExpand(self._hash, length, told).derive(self._secret)

    def _derive(self) -> None:
        self._cipher = AESGCM(self._expanded("key", self._size))
        self._iv = self._expanded("iv", 12)

    def _old_keys(self, told: tuple[bytes, bytes], first: bytes) -> None:
        client, master = told
        # The server's random stands in its hello, behind record header, type, length, version.
        seed = b"key expansion" + first[11:43] + client
        block, chained = b"", seed
        while len(block) < 2 * self._size + 8:
            chained = hmac.new(master, chained, self._digest).digest()
            block += hmac.new(master, chained + seed, self._digest).digest()
        self._cipher = AESGCM(block[self._size : 2 * self._size])
        self._iv = block[2 * self._size + 4 : 2 * self._size + 8]

    # Records

    def sealed(self, kind: int, octets: bytes) -> bytes:
        """One record."""
        number = self._count.to_bytes(8)
        self._count += 1
        if self._new:
            nonce = bytes(a ^ b for a, b in zip(self._iv, bytes(4) + number, strict=True))
            head = struct.pack(">BHH", DATA, 0x0303, len(octets) + 1 + _TAG)
            return head + self._cipher.encrypt(nonce, octets + bytes((kind,)), head)
        told = number + struct.pack(">BHH", kind, 0x0303, len(octets))
        sealed = number + self._cipher.encrypt(self._iv + number, octets, told)
        return struct.pack(">BHH", kind, 0x0303, len(sealed)) + sealed

    def say(self, octets: bytes) -> None:
        """Octets of the application."""
        for start in range(0, len(octets), _MOST):
            self._line.write(self.sealed(DATA, octets[start : start + _MOST]))

    def turned(self, message: bytes = KEY_UPDATE) -> bytes:
        """A KeyUpdate, and the next key from then on."""
        record = self.sealed(HANDSHAKE, message)
        self._secret = self._expanded("traffic upd", self._digest().digest_size)
        self._derive()
        self._count = 0
        return record

    def damaged(self, octets: bytes) -> bytes:
        """A record of the application with one octet altered on its way."""
        record = bytearray(self.sealed(DATA, octets))
        record[-1] ^= 1
        return bytes(record)


def _secrets(log: Path) -> dict[str, tuple[bytes, bytes]]:
    """By label: the client's random and the secret; the last of each."""
    found = {}
    for line in log.read_text().splitlines():
        if line.startswith("#"):
            continue
        label, client, secret = line.split()
        found[label] = bytes.fromhex(client), bytes.fromhex(secret)
    return found
