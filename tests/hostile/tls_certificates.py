"""Certificates, good and bad, made at run time.

Contract. ``Issuer`` makes server contexts for a host's name. What is wrong with a certificate is a
word of ``FLAWS``; everything else about it is in order. Keys are on elliptic curves, but for the
weak one.

Must not know: SMTP, what a client makes of it.
"""

from __future__ import annotations

import datetime
import itertools
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)
CHAIN = 98
"""Authorities between the root and the host: with host and root a hundred certificates."""
NAMES = 1400
"""Alternative names, 46 octets each, that make 64 kB of them."""
_OID = {"names": "2.5.29.17"}
Key = CertificateIssuerPrivateKeyTypes


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Issuer:
    """A root that the engine is told to trust, and one that it is not.

    Args:
        folder: for PEM files.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._numbers = itertools.count(1)
        self._key: Key = ec.generate_private_key(ec.SECP256R1())
        self._root = self._issue("the root", self._key, None, None, authority=True)
        self._stranger_key: Key = ec.generate_private_key(ec.SECP256R1())
        self._stranger = self._issue("a stranger", self._stranger_key, None, None, authority=True)
        self._chain: tuple[Key, list[x509.Certificate]] | None = None
        self.roots = folder / "roots.pem"
        self.roots.write_bytes(_pem(self._root))

    def context(self, host: str, flaw: str = "") -> ssl.SSLContext:
        """A server's context whose certificate is for this name, but for the flaw."""
        key: Key = ec.generate_private_key(ec.SECP256R1())
        issuer: Key | None = self._key
        signer: x509.Certificate | None = self._root
        more: list[x509.Certificate] = []
        options: dict[str, object] = {}
        names = [host]
        if flaw == "expired":
            options["days"] = (-30, -1)
        elif flaw == "not yet valid":
            options["days"] = (1, 30)
        elif flaw == "another name":
            names = ["another.test"]
        elif flaw == "signed by itself":
            issuer = signer = None
        elif flaw == "of an unknown authority":
            issuer, signer = self._stranger_key, self._stranger
        elif flaw == "weak":
            key = rsa.generate_private_key(65537, 1024)
        elif flaw == "not for servers":
            options["use"] = ExtendedKeyUsageOID.CLIENT_AUTH
        elif flaw == "a link is missing":
            issuer, chain = self._links()
            signer = chain[0]
        elif flaw == "a chain of a hundred":
            issuer, more = self._links()
            signer = more[0]
        elif flaw == "a hundred strangers behind it":
            more = [self._stranger] * 99
        elif flaw == "64 kB of names":
            names += [f"{number:034}.{host[-6:]}.test" for number in range(NAMES)]
        elif flaw == "200 kB":
            names += [f"{number:034}.{host[-6:]}.test" for number in range(4 * NAMES)]
        elif flaw == "control characters":
            names = ["a\x1b[2J\r\nX: y\x00.test", host]
        leaf = self._issue(names[0][:64], key, issuer, signer, names=names, **options)
        return self._loaded(_pem(leaf) + b"".join(map(_pem, more)), key)

    def strange(self, host: str, raw: str) -> ssl.SSLContext:
        """A context whose certificate no library writes: ``raw`` says how it is odd."""
        key: Key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._issue(host, key, self._key, self._root, names=[host])
        der = certificate.public_bytes(serialization.Encoding.DER)
        body = certificate.tbs_certificate_bytes
        odd = {
            "version 9": body.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x09", 1),
            "an extension twice": body.replace(b"\x06\x03\x55\x1d\x13", b"\x06\x03\x55\x1d\x11"),
            "names that are none": body.replace(b"\x82" + bytes([len(host)]), b"\x9f\x7f"),
            "a name of no known kind": body.replace(
                b"\x82" + bytes([len(host)]), b"\xa3" + bytes([len(host)])
            ),
            "a text that is no text": body.replace(
                b"\x0c" + bytes([len(host)]) + host.encode(),
                b"\x0c" + bytes([len(host)]) + b"\xff" * len(host),
            ),
        }[raw]
        assert odd != body, raw
        forged = der.replace(body, odd)
        text = ssl.DER_cert_to_PEM_cert(forged).encode()
        return self._loaded(text, key)

    def _loaded(self, chain: bytes, key: Key) -> ssl.SSLContext:
        path = self._folder / f"{next(self._numbers)}.pem"
        path.write_bytes(chain + _private(key))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.load_cert_chain(path)
        return context

    def _links(self) -> tuple[Key, list[x509.Certificate]]:
        """A chain of authorities, the last one first."""
        if self._chain is None:
            key, signer, chain = self._key, self._root, []
            for number in range(CHAIN):
                below: Key = ec.generate_private_key(ec.SECP256R1())
                signer = self._issue(f"link {number}", below, key, signer, authority=True)
                key = below
                chain.insert(0, signer)
            self._chain = key, chain
        return self._chain

    def _issue(
        self,
        name: str,
        key: Key,
        issuer: Key | None,
        signer: x509.Certificate | None,
        *,
        names: list[str] | None = None,
        authority: bool = False,
        days: tuple[int, int] = (-1, 30),
        use: x509.ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(name) if signer is None else signer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + days[0] * DAY)
            .not_valid_after(now + days[1] * DAY)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if names is not None:
            alternatives = [x509.DNSName(one) for one in names if one.isprintable()]
            builder = builder.add_extension(
                x509.SubjectAlternativeName(alternatives), critical=False
            ).add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        return builder.sign(issuer or key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
