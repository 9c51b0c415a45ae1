"""Names of certificates that no library writes, and what is read before a record that is bad."""

from __future__ import annotations

import contextlib
import ssl

import pytest
import trustme

from mailstrom_workers.tls import Records, client_context, peer_names

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


def _shaken(server: ssl.SSLContext) -> tuple[Records, ssl.MemoryBIO, ssl.SSLObject, ssl.MemoryBIO]:
    """Our side and what it reads; the other side and what it wrote."""
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(False, None, "1.2").wrap_bio(ours, theirs)
    peer = server.wrap_bio(theirs, ours, server_side=True)
    for _ in range(3):
        for side in (client, peer):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    assert isinstance(client, Records)
    return client, ours, peer, theirs


@pytest.fixture
def server() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("mx.example.org").configure_cert(context)
    return context


def test_a_bad_record_takes_nothing_along_that_came_whole_before_it(server: ssl.SSLContext) -> None:
    records, ours, peer, _ = _shaken(server)
    peer.write(b"250 2.0.0 taken\r\n")
    ours.write(b"451 not now\r\n")
    assert records.read(1024) == b"250 2.0.0 taken\r\n"
    with pytest.raises(ssl.SSLWantReadError):  # as if nothing were there: the reply is handed on
        records.read(1024)
    assert records.told()
    for _ in range(2):
        with pytest.raises(ssl.SSLError) as told:
            records.read(1024)
        assert not isinstance(told.value, ssl.SSLWantReadError)


def test_a_bad_record_that_comes_by_itself_is_an_error_at_once(server: ssl.SSLContext) -> None:
    records, ours, peer, _ = _shaken(server)
    peer.write(b"250 2.0.0 taken\r\n")
    assert records.read(1024) == b"250 2.0.0 taken\r\n"
    assert not records.told()
    ours.write(b"451 not now\r\n")
    with pytest.raises(ssl.SSLError) as told:
        records.read(1024)
    assert not isinstance(told.value, ssl.SSLWantReadError)
