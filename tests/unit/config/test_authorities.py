"""``ca_file``: the octets that were checked are what TLS trusts, and no path is waited for."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest
import trustme

from mailstrom.config import Config, load
from mailstrom.config.authorities import LARGEST_BUNDLE, authorities
from mailstrom.doctor import tls
from mailstrom.errors import ConfigError
from mailstrom_workers.nameservers import Nameservers
from mailstrom_workers.tls import client_context

TRUSTED = trustme.CA().cert_pem.bytes().replace(b"N CERT", b"N TRUSTED CERT")


def bundle(*each: trustme.CA) -> bytes:
    name = "# T\u00dcRKTRUST, \u8d44\u9762\n".encode()
    return b"".join(name + one.cert_pem.bytes() for one in each)


def trusting(file: Path) -> Config:
    file.with_name("mailstrom.toml").write_text(f'[tls]\nca_file = "{file.name}"\n')
    return load(file.with_name("mailstrom.toml"), environ={})


def test_all_of_a_bundle_is_trusted_whatever_its_comments_say(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(bundle(trustme.CA(), trustme.CA(), trustme.CA()))
    by_path = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    by_path.load_verify_locations(cafile=file)
    loaded = client_context(True, str(file), "1.2").get_ca_certs(binary_form=True)
    assert sorted(loaded) == sorted(by_path.get_ca_certs(binary_form=True))
    assert len(loaded) == tls.look(trusting(file)).authorities == 3


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "how", ["fifo", "zero", "folder", "gone", "empty", "long", "trusted", "words"]
)
def test_what_came_in_its_place_is_refused_and_not_waited_for(how: str, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(bundle(trustme.CA()))
    config = trusting(file)
    assert config.tls.ca_file == str(file)
    file.unlink()
    if how == "fifo":
        os.mkfifo(file)
    elif how == "zero":
        file.symlink_to("/dev/zero")
    elif how == "folder":
        file.mkdir()
    elif how == "long":
        with file.open("wb") as stream:
            stream.write(b"#")
            stream.truncate(LARGEST_BUNDLE + 1)
    elif how != "gone":
        text = {"empty": b"", "trusted": TRUSTED, "words": b"no certificate\n"}[how]
        file.write_bytes(text)
    with pytest.raises((OSError, ValueError)):
        client_context(True, str(file), "1.2")
    with pytest.raises(ConfigError, match=r"certificates for DNS over TLS"):
        Nameservers.of(
            [("192.0.2.1", 853)], 1.0, tls=True, tls_hostname="a.test", tls_ca_file=str(file)
        )
    assert tls.look(config).error
    if how != "words":
        with pytest.raises(ConfigError, match=r"\[tls\] ca_file"):
            trusting(file)


def test_a_file_that_is_replaced_while_it_is_loaded_is_not_opened_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, other = trustme.CA(), trustme.CA()
    file = tmp_path / "ca.pem"
    file.write_bytes(bundle(wanted))

    def swapped(path: str) -> str:
        text = authorities(path)
        Path(path).write_bytes(bundle(other))
        return text

    monkeypatch.setattr("mailstrom_workers.tls.authorities", swapped)
    (loaded,) = client_context(True, str(file), "1.3").get_ca_certs(binary_form=True)
    assert loaded == ssl.PEM_cert_to_DER_cert(wanted.cert_pem.bytes().decode())
