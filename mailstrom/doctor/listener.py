"""The listener: is the certificate that it offers good, and for how long?

``look`` reads the file, as the listener does at its start and at a reload; ``checks`` is pure.
Whether it runs is ``engine``'s, who may send ``configuration``'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mailstrom.config import Config
from mailstrom.doctor.finding import Finding, note, ok, problem, warning
from mailstrom.regular import beginning
from mailstrom.spans import span_text
from mailstrom.types import iso_ms

SOON_MS = 14 * 86_400_000
"""Before a certificate ends it should be renewed; those that renew by themselves do so earlier."""
_LARGEST = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """The first certificate of ``[listener] tls_cert``.

    Args:
        since_ms, until_ms: when it holds.
        names: DNS names in it, lower case.
        serial: its number.
        error: why it could not be read.
    """

    since_ms: int = 0
    until_ms: int = 0
    names: tuple[str, ...] = ()
    serial: int = 0
    error: str | None = None


def look(config: Config) -> Certificate | None:
    """Read the certificate; None where none is configured, or nothing listens."""
    path = config.listener.tls_cert
    if path is None or not config.listener.bind:
        return None
    try:
        return read(beginning(path, _LARGEST))
    except OSError as error:
        return Certificate(error=str(error))


def read(pem: bytes) -> Certificate:
    """The first certificate of a PEM text."""
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificates(pem)[0]
        try:
            found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
            names = found.value.get_values_for_type(x509.DNSName)
        except x509.ExtensionNotFound:
            names = []
        return Certificate(
            since_ms=int(certificate.not_valid_before_utc.timestamp() * 1000),
            until_ms=int(certificate.not_valid_after_utc.timestamp() * 1000),
            names=tuple(name.lower() for name in names),
            serial=certificate.serial_number,
        )
    except (ValueError, IndexError) as error:
        return Certificate(error=str(error))


def checks(certificate: Certificate | None, config: Config, now_ms: int) -> Iterator[Finding]:
    """All about the listener."""
    if certificate is None:
        return
    path, until = config.listener.tls_cert, iso_ms(certificate.until_ms)
    again = "Renew it, then 'systemctl reload mailstrom': the listener reads it anew."
    if certificate.error is not None:
        yield problem("listener.certificate", f"{path} cannot be read ({certificate.error})", again)
    elif now_ms > certificate.until_ms:
        yield problem("listener.certificate", f"{path} ended at {until}", again)
    elif now_ms < certificate.since_ms:
        since = iso_ms(certificate.since_ms)
        yield problem(
            "listener.certificate", f"{path} does not hold before {since}", "Look at the clock."
        )
    elif certificate.until_ms - now_ms < SOON_MS:
        left = span_text(certificate.until_ms - now_ms)
        yield warning("listener.certificate", f"{path} ends in {left}, at {until}", again)
    else:
        yield ok("listener.certificate", f"{path} holds until {until}")
    if certificate.error is None and not is_for(certificate, config.hostname):
        names = ", ".join(certificate.names) or "no name"
        yield note(
            "listener.name",
            f"{path} is not for {config.hostname}, but for {names}",
            "Clients that verify it must connect by a name that is in it.",
        )


def is_for(certificate: Certificate, hostname: str) -> bool:
    """Whether a name is in it."""
    parent = hostname.partition(".")[2]
    return hostname in certificate.names or f"*.{parent}" in certificate.names
