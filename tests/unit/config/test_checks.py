"""Settings that contradict each other, and what is worked out from settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from mailstrom.config import (
    Config,
    Dns,
    Relay,
    ehlo_name,
    load,
    nameserver_name,
    nameservers,
    places,
    relay_hosts,
    relay_password,
    report_author,
    stage_timeouts,
    warnings,
    worker_count,
)
from mailstrom.config.names import host_port, is_fqdn
from mailstrom.errors import ConfigError


@pytest.fixture(autouse=True)
def no_system_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(places, "SYSTEM_FILE", tmp_path / "etc" / "mailstrom.toml")


def loaded(folder: Path, text: str) -> Config:
    file = folder / "mailstrom.toml"
    file.write_text(text, encoding="utf-8")
    return load(file, environ={"HOME": str(folder)})


RELAY = '[delivery]\nmode = "relay"\n[relay]\nhosts = ["mail.example.org"]\n'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("hostname = 'grüße.example'", "hostname .* is no host name"),
        ("hostname = 'a b.example'", "hostname .* is no host name"),
        ("[delivery]\nmode = 'relay'", r"needs \[relay\] hosts"),
        ("[relay]\nhosts = ['mail.example.org']", r"hosts has no effect.*mode = \"relay\""),
        (RELAY + "[dns]\nnameservers = ['::1']\nresolver = 'google'", "exclude each other"),
        ("[dns]\nnameservers = ['::1']\nresolver = 'system'", "exclude each other"),
        ("[dns]\nnameservers = ['ns.example.org']", "'ns.example.org' is no address"),
        ("[dns]\nnameservers = ['192.0.2.1:0']", "port is a number from 1"),
        ("[dns]\ntls = true", "tls needs nameservers"),
        ("[dns]\ntls = true\nnameservers = ['192.0.2.1']", "needs tls_hostname"),
        ("[dns]\ntls_hostname = 'dns.example'", "no effect without tls"),
        ("[tls]\nverify = true\nrequire = false", "verify includes require.*remove one"),
        (RELAY + "tls = 'none'\n[tls]\nrequire = true", "require and .* contradict"),
        (RELAY + "tls = 'none'\n[tls]\nverify = true", "verify and .* contradict"),
        (RELAY + "username = 'u'\ntls = 'required'", "username needs password_file"),
        (RELAY + "password_file = 'secret'", "password_file needs username"),
        (RELAY + "username = 'u'\npassword_file = 'secret'", "password in plaintext"),
        (RELAY + "username = 'u'\npassword_file = 'none'\ntls = 'required'", "none: No such file"),
        (
            RELAY + "username = 'u'\npassword_file = 'empty'\ntls = 'required'",
            "its first line is not a password",
        ),
        ("[relay]\nhosts = ['a:b']\n[delivery]\nmode = 'relay'", "the port is a number"),
        ("[relay]\nhosts = ['::1']\n[delivery]\nmode = 'relay'", r"IPv6 .* write it as .\[::1\]"),
        ("[relay]\nhosts = ['a b']\n[delivery]\nmode = 'relay'", "is no host"),
        ("[tls]\nca_file = 'none.pem'", r"\[tls\] ca_file .*none.pem: No such file"),
        ("[delivery]\nconnect_timeout='1s'\n[timeouts]\nconnect='2s'", "one setting"),
        ("[retry]\nmax_age = '30s'", "nothing would be retried"),
        ("[reports]\nsender = 'postmaster'", r"\[reports\] sender: .* has no @"),
        ('[reports]\nsender = "a@b.example\\nBcc: c@d.example"', "control character or line break"),
        ("[reports]\nsender = 'pöst@b.example'", "needs SMTPUTF8.*write an ASCII address"),
        ("[reports]\ndelays = ['1d', '4h']", "delays do not grow"),
        ("[reports]\ndelays = ['4h', '240m']", "delays do not grow"),
        ("[stream.'a b']\npriority = 'low'", "stream's name"),
    ],
)
def test_contradictions_are_refused_with_what_to_write(
    text: str, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("s3cret\n")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigError, match=sentence) as caught:
        loaded(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "mailstrom.toml"))
    assert "s3cret" not in str(caught.value)


def test_every_contradiction_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, "hostname = '-'\n[retry]\nmax_age = '1s'\n[dns]\ntls = true")
    assert len(str(caught.value).splitlines()) == 3


def test_a_password_may_go_in_plaintext_only_over_loopback(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret\r\nsecond line")
    rest = "username = 'u'\npassword_file = 'secret'\n"
    text = '[delivery]\nmode = "relay"\n[relay]\nhosts = ["127.0.0.2:2525", "[::1]"]\n' + rest
    relay = loaded(tmp_path, text).relay
    assert relay_password(relay) == "s3cret"
    assert relay.password_file == str(tmp_path / "secret")
    with pytest.raises(ConfigError, match="plaintext"):
        loaded(tmp_path, text.replace("[::1]", "192.0.2.1"))


@pytest.mark.parametrize("text", ["", RELAY, RELAY + "tls = 'required'\n"])
def test_a_certificate_that_must_be_right_means_no_plaintext(text: str, tmp_path: Path) -> None:
    config = loaded(tmp_path, text + "[tls]\nverify = true")
    assert config.tls.require
    assert config.sources["tls.require"] == config.sources["tls.verify"]
    assert not loaded(tmp_path, text).tls.require


@pytest.mark.parametrize(
    ("mode", "word"), [(0o600, None), (0o640, None), (0o644, "read"), (0o602, "change")]
)
def test_a_password_that_everybody_may_read_is_warned_about(
    mode: int, word: str | None, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    secret.chmod(mode)
    rest = "username = 'u'\npassword_file = 'secret'\ntls = 'required'"
    found = warnings(loaded(tmp_path, RELAY + rest))
    assert len(found) == (word is not None)
    assert all(f"may {word} it" in text and "s3cret" not in text for text in found)
    assert warnings(loaded(tmp_path, "")) == []


def test_a_password_that_became_unreadable_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        relay_password(Relay(username="u", password_file=str(tmp_path / "gone")))
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        relay_password(Relay(username="u", password_file=str(binary)))
    assert relay_password(Relay()) is None


@pytest.mark.parametrize("key", ["[delivery]\nconnect_timeout", "[timeouts]\nconnect"])
def test_both_spellings_of_the_connect_timeout_mean_one(key: str, tmp_path: Path) -> None:
    config = loaded(tmp_path, f"{key} = '7s'")
    assert config.delivery.connect_timeout == config.timeouts.connect == 7
    assert stage_timeouts(config).connect == 7
    assert stage_timeouts(config).dot == 600


@pytest.mark.parametrize(
    ("dns", "servers", "name"),
    [
        (Dns(), None, None),
        (Dns(resolver="google"), [("8.8.8.8", 53), ("8.8.4.4", 53)], None),
        (Dns(resolver="cloudflare"), [("1.1.1.1", 53), ("1.0.0.1", 53)], None),
        (
            Dns(resolver="quad9", tls=True),
            [("9.9.9.9", 853), ("149.112.112.112", 853)],
            "dns.quad9.net",
        ),
        (
            Dns(nameservers=("192.0.2.1", "192.0.2.2:5353", "[::1]:53", "2001:db8::1", "[::2]")),
            [
                ("192.0.2.1", 53),
                ("192.0.2.2", 5353),
                ("::1", 53),
                ("2001:db8::1", 53),
                ("::2", 53),
            ],
            None,
        ),
        (
            Dns(nameservers=("192.0.2.1",), tls=True, tls_hostname="ns.example"),
            [("192.0.2.1", 853)],
            "ns.example",
        ),
    ],
)
def test_nameservers(dns: Dns, servers: list[tuple[str, int]] | None, name: str | None) -> None:
    assert nameservers(dns) == servers
    assert nameserver_name(dns) == name


@pytest.mark.parametrize(
    ("hostname", "address", "expected"),
    [
        ("mail.example.org", "192.0.2.1", "mail.example.org"),
        ("localhost", "192.0.2.1", "[192.0.2.1]"),
        ("box", "2001:DB8::1", "[IPv6:2001:db8::1]"),
        ("box.localdomain", "::ffff:192.0.2.1", "[192.0.2.1]"),
        ("192.0.2.7", "192.0.2.1", "[192.0.2.1]"),
        ("box", "fe80::1%eth0", "[IPv6:fe80::1]"),
    ],
)
def test_ehlo_name_is_a_full_name_or_an_address_literal(
    hostname: str, address: str, expected: str
) -> None:
    # RFC 5321 section 4.1.3
    assert ehlo_name(Config(store="x", hostname=hostname), address) == expected


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("a.example", True),
        ("xn--grsse-0ra.example", True),
        ("localhost", False),
        ("a..example", False),
        ("a_b.example", False),
        ("-a.example", False),
        ("10.0.0.1", False),
        ("1.0.0.127.in-addr.arpa", False),
        (f"{'a' * 64}.example", False),
        ("a.example.", False),
    ],
)
def test_what_is_a_full_name(name: str, full: bool) -> None:
    assert is_fqdn(name) is full


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mail.example", ("mail.example", None)),
        ("mail.example:587", ("mail.example", 587)),
        ("::1", ("::1", None)),
        ("[::1]", ("::1", None)),
        ("[::1]:25", ("::1", 25)),
        ("192.0.2.1:25", ("192.0.2.1", 25)),
    ],
)
def test_host_and_port(text: str, expected: tuple[str, int | None]) -> None:
    assert host_port(text) == expected


@pytest.mark.parametrize("text", ["a:", "a:0", "a:65536", "a:x", "a:٣", "[::1", "[a]:1", "[::1]25"])
def test_what_is_no_host_and_port(text: str) -> None:
    with pytest.raises(ValueError, match=r"port|brackets"):
        host_port(text)


def test_relay_hosts_keep_their_order_and_own_ports() -> None:
    relay = Relay(hosts=("B.example", "a.example:2525", "[::1]:26"))
    assert [(h.preference, h.name, h.port) for h in relay_hosts(relay)] == [
        (0, "b.example", 25),
        (1, "a.example", 2525),
        (2, "::1", 26),
    ]


@pytest.mark.parametrize(
    ("relay", "port"),
    [
        (Relay(hosts=("a",)), 25),
        (Relay(hosts=("a",), tls="implicit"), 465),
        (Relay(hosts=("a",), username="u", tls="required"), 587),
        (Relay(hosts=("a",), username="u", port=2525), 2525),
    ],
)
def test_relay_ports(relay: Relay, port: int) -> None:
    assert relay_hosts(relay)[0].port == port


def test_worker_count(tmp_path: Path) -> None:
    assert worker_count(loaded(tmp_path, "[delivery]\nworkers = 5")) == 5
    assert worker_count(loaded(tmp_path, "[delivery]\nworkers = 5"), 2) == 2
    assert worker_count(loaded(tmp_path, "")) >= 1


def test_an_error_repeats_foreign_values_harmlessly_and_not_without_end(tmp_path: Path) -> None:
    servers = ", ".join(f"'x{number}'" for number in range(300))
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, f'[tls]\nca_file = "a\\u001b[2Jb"\n[dns]\nnameservers = [{servers}]')
    text = str(caught.value)
    assert "\x1b" not in text
    assert "\\x1b[2Jb" in text or "more" in text
    assert len(text.splitlines()) <= 51
    assert "more" in text.splitlines()[-1]


def test_a_control_character_in_a_path_does_not_reach_a_terminal(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ca_file .*a\\x1b\[2Jb: No such file"):
        loaded(tmp_path, '[tls]\nca_file = "a\\u001b[2Jb"')


def test_reports_come_from_this_host_unless_said_otherwise(tmp_path: Path) -> None:
    config = loaded(tmp_path, "hostname = 'mail.example.org'")
    assert report_author(config) == "mailer-daemon@mail.example.org"
    assert config.reports.delays == (4 * 3600, 24 * 3600)
    assert config.reports.original_size == 256 * 1024
    assert config.reports.send
    said = "[reports]\nsender = 'post@example.org'\ndelays = []\noriginal_size = '1MiB'"
    config = loaded(tmp_path, said)
    assert report_author(config) == "post@example.org"
    assert (config.reports.delays, config.reports.original_size) == ((), 1 << 20)
