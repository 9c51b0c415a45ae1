"""The file of trusted roots that a configuration names: what is looked at is what is loaded.

Contract: whoever checks ``ca_file`` and whoever loads it into a TLS context reads it here, and
gives OpenSSL the text, never the path: opened again it could name another file by then, or a pipe,
which OpenSSL waits for. Knows nothing of contexts, nor what a certificate holds.
"""

from __future__ import annotations

from mailstrom.regular import beginning

_TRUSTED = b"-----BEGIN TRUSTED CERTIFICATE-----"
LARGEST_BUNDLE = 1 << 24  # octets; all the world's authorities are a fiftieth of it


def authorities(path: str) -> str:
    """The text of a PEM file, for ``load_verify_locations(cadata=...)``.

    Args:
        path: of a regular file.

    Returns:
        ASCII: bundles name authorities in other scripts between the certificates.

    Raises:
        OSError: it cannot be opened or read, or is no regular file.
        ValueError: it is longer than ``LARGEST_BUNDLE``, begins with an empty line, or holds what
            only OpenSSL reads, and from a path alone.
    """
    octets = beginning(path, LARGEST_BUNDLE + 1)
    if len(octets) > LARGEST_BUNDLE:
        raise ValueError(f"longer than {LARGEST_BUNDLE} bytes: name a PEM bundle")
    if not octets.split(b"\n", 1)[0].strip():
        raise ValueError("the first line is empty")
    if _TRUSTED in octets:
        raise ValueError(
            "holds a TRUSTED CERTIFICATE: make it a CERTIFICATE ('openssl x509 -in OLD -out NEW')"
        )
    return octets.decode("ascii", "backslashreplace")
