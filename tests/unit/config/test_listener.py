"""``[listener]``: what it takes, what is refused with what to write, what is unwise."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trustme

from mailstrom.config import (
    Bind,
    Config,
    binds,
    load,
    networks,
    places,
    require_kept,
    restart_needed,
    server_context,
    warnings,
    with_start_kept,
)
from mailstrom.errors import ConfigError
from mailstrom.passwords import hash_password


@pytest.fixture(autouse=True)
def no_system_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(places, "SYSTEM_FILE", tmp_path / "etc" / "mailstrom.toml")


def loaded(folder: Path, text: str) -> Config:
    file = folder / "mailstrom.toml"
    file.write_text(f"[listener]\n{text}", encoding="utf-8")
    return load(file, environ={"HOME": str(folder)})


@pytest.fixture
def pems(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate and its key."""
    issued = trustme.CA().issue_cert("mx.example.org")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    key.chmod(0o600)
    return cert, key


def test_nothing_listens_by_default_and_only_this_machine_may_send(tmp_path: Path) -> None:
    listener = loaded(tmp_path, "").listener

    assert (listener.bind, listener.workers, listener.role) == ((), 1, "submission")
    assert [str(one) for one in networks(listener.allow_networks)] == ["127.0.0.0/8", "::1/128"]
    assert listener.proxy_networks == ()
    assert server_context(listener) is None
    assert warnings(loaded(tmp_path, "")) == []


def test_addresses_as_they_are_written(tmp_path: Path, pems: tuple[Path, Path]) -> None:
    text = (
        'bind = ["127.0.0.1:25", "[::]:587", "0.0.0.0:465/tls"]\n'
        "tls_cert = 'cert.pem'\ntls_key = 'key.pem'\n"
    )
    listener = loaded(tmp_path, text).listener

    assert binds(listener) == (
        Bind("127.0.0.1", 25, False),
        Bind("::", 587, False),
        Bind("0.0.0.0", 465, True),
    )
    assert str(binds(listener)[1]) == "[::]:587"
    all_tls = loaded(tmp_path, text + "implicit_tls = true\n").listener
    assert all(bind.implicit_tls for bind in binds(all_tls))


BIND = "bind = ['127.0.0.1:25']\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("bind = ['mx.example.org:25']", "is no address with a port"),
        ("bind = ['127.0.0.1']", "is no address with a port"),
        ("bind = ['127.0.0.1:0']", "port is a number from 1"),
        ("bind = ['127.0.0.1:465/ssl']", 'behind the port nothing but "/tls" may stand'),
        ("bind = '127.0.0.1:25'", r'a list of text .*; write \["127.0.0.1:25"\]$'),
        ("bind = ['127.0.0.1:25', '127.0.0.1:25/tls']", "127.0.0.1:25 stands there twice"),
        ("bind = ['127.0.0.1:465/tls']", "needs tls_cert"),
        ("allow_networks = ['10.0.0.1/8']", 'write "10.0.0.0/8"'),
        ("allow_networks = ['localhost']", "is no network"),
        ("proxy_networks = ['x']", r"\[listener\] proxy_networks: 'x' is no network"),
        ("tls_key = 'key.pem'", "tls_key needs tls_cert"),
        ("auth_file = 'users'", "auth_file needs tls_cert"),
        ("workers = 0", "integer from 1 to 64"),
        ("max_size = '1GiB'", "up to|from"),
        ("role = 'mx'", '"submission" or "relay"'),
        (BIND + "tls_cert = 'none.pem'", "tls_cert .*none.pem: No such file.*able to read"),
        (BIND + "tls_cert = 'cert.pem'", "name the certificate with its chain"),
        (BIND + "tls_cert = 'cert.pem'\ntls_key = 'cert.pem'", "unencrypted private key"),
        (
            BIND + "tls_cert = 'cert.pem'\ntls_key = 'key.pem'\nauth_file = 'none'",
            "auth_file .*none: No such file.*mailstrom user add",
        ),
        (
            BIND + "tls_cert = 'cert.pem'\ntls_key = 'key.pem'\nauth_file = 'bad'",
            "auth_file .*bad: line 1: no hash",
        ),
    ],
)
def test_what_is_refused_says_what_to_write(
    text: str, sentence: str, tmp_path: Path, pems: tuple[Path, Path]
) -> None:
    (tmp_path / "bad").write_text("joe:secret\n")
    with pytest.raises(ConfigError, match=sentence):
        loaded(tmp_path, text)


def test_a_pipe_in_place_of_a_certificate_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cert.pem")
    with pytest.raises(ConfigError, match="not a regular file"):
        loaded(tmp_path, BIND + "tls_cert = 'cert.pem'")


@pytest.mark.parametrize(
    ("network", "wide"),
    [
        ("0.0.0.0/0", True),
        ("128.0.0.0/1", True),
        ("::/0", True),
        ("2000::/3", True),
        ("10.0.0.0/8", False),
        ("192.0.2.0/24", False),
        ("fd00::/8", False),
    ],
)
def test_an_open_relay_is_warned_of(network: str, wide: bool, tmp_path: Path) -> None:
    told = warnings(loaded(tmp_path, BIND + f"allow_networks = ['{network}']"))
    assert bool(told) is wide
    assert not wide or "an open relay" in told[0]


def test_a_proxy_that_may_be_anybody_is_warned_of(tmp_path: Path) -> None:
    [told] = warnings(loaded(tmp_path, BIND + "proxy_networks = ['0.0.0.0/0', '192.0.2.1']"))
    assert told.startswith("[listener] proxy_networks 0.0.0.0/0 lets strangers claim any address")
    assert not warnings(loaded(tmp_path, BIND + "proxy_networks = ['192.0.2.0/24']"))


def test_settings_of_no_listener_and_exposed_secrets_are_warned_of(
    tmp_path: Path, pems: tuple[Path, Path]
) -> None:
    users = tmp_path / "users"
    users.write_text(f"joe:{hash_password('x')}\n")
    users.chmod(0o644)
    files = "tls_cert = 'cert.pem'\ntls_key = 'key.pem'\nauth_file = 'users'\n"

    exposed, unbound = warnings(loaded(tmp_path, files))

    assert "auth_file" in exposed
    assert "chmod 600" in exposed
    assert "nothing listens" in unbound


@pytest.mark.parametrize("text", ["", "\n", "# joe\n"], ids=["empty", "line", "comment"])
def test_a_file_of_users_that_holds_nobody_is_warned_of(
    tmp_path: Path, pems: tuple[Path, Path], text: str
) -> None:
    users = tmp_path / "users"
    users.write_text(text)
    users.chmod(0o600)
    files = "tls_cert = 'cert.pem'\ntls_key = 'key.pem'\nauth_file = 'users'\n"
    [told] = warnings(loaded(tmp_path, BIND + files))
    assert told.startswith(f"[listener] auth_file {users} holds no user, so that every login")
    users.write_text(f"joe:{hash_password('x')}\n")
    assert not warnings(loaded(tmp_path, BIND + files))


def test_a_reload_that_loses_who_may_send_is_refused(tmp_path: Path) -> None:
    running = loaded(tmp_path, BIND + "proxy_networks = ['192.0.2.1']")
    with pytest.raises(ConfigError, match=r"listener\.proxy_networks"):
        require_kept(running, loaded(tmp_path, BIND))


def test_addresses_and_processes_need_a_restart(tmp_path: Path) -> None:
    before = loaded(tmp_path, BIND)
    after = loaded(tmp_path, "bind = ['127.0.0.1:26']\nworkers = 2\nmax_size = 2048\n")
    assert restart_needed(before, after) == ["listener.bind", "listener.workers"]
    kept = with_start_kept(before, after)
    assert (kept.listener.bind, kept.listener.workers) == (before.listener.bind, 1)
    assert kept.listener.max_size == 2048
    assert restart_needed(before, kept) == []


def test_what_never_came_into_force_is_not_missed(tmp_path: Path, pems: tuple[Path, Path]) -> None:
    cert = BIND + "tls_cert = 'cert.pem'\ntls_key = 'key.pem'\n"
    at_start, added = loaded(tmp_path, cert), loaded(tmp_path, cert + "implicit_tls = true")
    require_kept(with_start_kept(at_start, added), loaded(tmp_path, cert))
    with pytest.raises(ConfigError, match=r"listener\.implicit_tls"):
        require_kept(with_start_kept(added, added), loaded(tmp_path, cert))
    wanted = loaded(tmp_path, cert + "implicit_tls = false")
    with pytest.raises(ConfigError, match=r"listener\.implicit_tls"):
        require_kept(with_start_kept(added, wanted), loaded(tmp_path, cert))
