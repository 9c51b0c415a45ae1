"""Certificates that no library writes: their names are told, or that they cannot be read."""

from __future__ import annotations

import ssl

import pytest
import trustme

from mailstrom_workers.tls import peer_names

HOST = b"mx.example.org"
SAN = b"\x82" + bytes((len(HOST),)) + HOST
ODD = {
    "a version that is none": (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x09"),
    "an extension that comes twice": (b"\x06\x03\x55\x1d\x13", b"\x06\x03\x55\x1d\x11"),
    "names that are none": (SAN, b"\x9f\x7f" + SAN[2:]),
    "a name of no known kind": (SAN, b"\xa3" + SAN[1:]),
    "a name beyond the end": (SAN, b"\x82\x7f" + SAN[2:]),
    "an address of fifteen octets": (SAN, b"\x87" + SAN[1:]),
    "a name that is no text": (SAN, SAN[:2] + b"\xff" * len(HOST)),
}


@pytest.fixture(scope="module")
def certificate() -> bytes:
    pem = trustme.CA().issue_cert("mx.example.org").cert_chain_pems[0].bytes()
    return ssl.PEM_cert_to_DER_cert(pem.decode())


def test_names_are_told(certificate: bytes) -> None:
    assert "mx.example.org" in (peer_names(certificate) or "")
    assert peer_names(None) is None


@pytest.mark.parametrize("odd", ODD)
def test_a_certificate_that_cannot_be_read_is_no_error(odd: str, certificate: bytes) -> None:
    there, instead = ODD[odd]
    assert there in certificate
    assert peer_names(certificate.replace(there, instead)) == "unreadable certificate"


def test_no_cut_of_a_certificate_is_an_error(certificate: bytes) -> None:
    for end in range(1, len(certificate)):
        assert peer_names(certificate[:end]) == "unreadable certificate"
