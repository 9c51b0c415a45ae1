"""TLS as a client uses it: contexts by policy, what is read of records, and a peer's names.

Contract: contexts are built from their parts, apart from ssl's defaults, which change with the
Python version (3.13 adds VERIFY_X509_STRICT, which opportunistic TLS must not inherit). What whole
records held is handed on before a bad one behind them is an error.

Must not know: when TLS is wanted, sockets, SMTP.
"""

from __future__ import annotations

import asyncio
import functools
import ssl

from mailstrom.config.authorities import authorities
from mailstrom.smtp.reply import visible


class Records(ssl.SSLObject):
    """A session's records: one that is bad takes nothing along that was read before it.

    Loops read all that came in one piece and hand it on then: an error in the midst of it would
    lose a reply that came whole, and a message that was taken would be in doubt. So the error waits
    for the next read; ``spoiled``, which whoever is told asks, tells of it at once.

    Attributes:
        bad: what the next read raises.
    """

    bad: ssl.SSLError | None = None
    _read = False  # something, and nobody was told yet

    def read(self, len: int = 1024, buffer: bytearray | None = None) -> bytes | int:  # type: ignore[override]
        """As the base does; see the class."""
        if self.bad is not None:
            raise self.bad
        try:
            some = super().read(len, buffer)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLSyscallError):
            raise
        except ssl.SSLError as bad:
            if not self._read:
                raise
            self.bad = bad
            raise ssl.SSLWantReadError from bad
        self._read = bool(some)
        return some

    def told(self) -> bool:
        """What was read was handed on; whether a bad record is behind it."""
        self._read = False
        return self.bad is not None


def spoiled(transport: asyncio.BaseTransport) -> bool:
    """Whether a bad record came behind what was told last: nothing can be said here any more.

    To be asked each time that something is told.
    """
    records = transport.get_extra_info("ssl_object")
    return isinstance(records, Records) and records.told()


@functools.lru_cache(maxsize=16)
def client_context(verify: bool, ca_file: str | None, min_version: str) -> ssl.SSLContext:
    """A client context for the policy; built apart from ssl's defaults, which change by version.

    Args:
        verify: chain and name must check.
        ca_file: the roots to trust instead of the system's.
        min_version: "1.2" or "1.3".

    Raises:
        OSError: the roots cannot be read, or are none.
        ValueError: the file is no bundle of them.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslobject_class = Records
    context.minimum_version = {
        "1.2": ssl.TLSVersion.TLSv1_2,
        "1.3": ssl.TLSVersion.TLSv1_3,
    }[min_version]
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca_file is not None:
        context.load_verify_locations(cadata=authorities(ca_file))
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context


def forget_contexts() -> None:
    """A configuration was taken over: the roots are read again at the next session.

    The file that it names may be another one by now under the same name.
    """
    client_context.cache_clear()


def peer_names(certificate: bytes | None) -> str | None:
    """Common name and first alternative names of a DER certificate, or None."""
    if not certificate:
        return None
    from cryptography import x509  # a tenth of a start, for those who never meet a certificate
    from cryptography.x509.oid import NameOID

    try:
        parsed = x509.load_der_x509_certificate(certificate)
        names = [str(a.value) for a in parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        try:
            extension = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName)
            names += extension.value.get_values_for_type(x509.DNSName)[:4]
            names += [str(a) for a in extension.value.get_values_for_type(x509.IPAddress)[:2]]
        except x509.ExtensionNotFound:
            pass
    except Exception:  # a foreign parser on foreign octets: each release has errors of its own
        return "unreadable certificate"
    return visible(", ".join(dict.fromkeys(names)))[:200] or None
