"""Sizes, streams, and the tables of an application that brings its own configuration."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.config import describe, from_json, from_tables, load, places, to_json
from mailstrom.config.sizes import octets, size
from mailstrom.errors import ConfigError


@pytest.fixture(autouse=True)
def no_system_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(places, "SYSTEM_FILE", tmp_path / "etc" / "mailstrom.toml")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path / "home")}


def written(folder: Path, text: str) -> Path:
    file = folder / "mailstrom.toml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1B", 1),
        ("500kB", 500_000),
        ("10MB", 10_000_000),
        ("25MiB", 25 * 1024 * 1024),
        ("25 mib", 25 * 1024 * 1024),
        ("1.5MiB", 1_572_864),
        ("2GiB", 2 * 1024**3),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert octets(text) == value
    assert octets(size(value)) == value


@given(st.integers(min_value=1, max_value=1 << 40))
def test_a_size_as_text_is_that_size(value: int) -> None:
    assert octets(size(value)) == value


@pytest.mark.parametrize("text", ["", "MB", "10", "10 apples", "-1MB", "1e3MB", "0.0001kB", "１MB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|number of bytes"):
        octets(text)


def test_a_size_is_bytes_or_text_with_a_unit(tmp_path: Path, environ: dict[str, str]) -> None:
    file = written(
        tmp_path, "[stream.a]\nmax_size = 1000\n[stream.b]\nmax_size = '25MiB'\n[stream.c]\n"
    )
    config = load(file, environ=environ)
    assert [config.stream[name].max_size for name in "abc"] == [1000, 25 * 1024**2, None]
    shown = {setting.key: (setting.value, setting.plain) for setting in describe(config)}
    assert shown["stream.b.max_size"] == ('"25MiB"', 25 * 1024**2)


@pytest.mark.parametrize("value", ["'many'", "'0B'", "1.5", "true", "['1MB']"])
def test_what_is_no_size_names_the_key_and_what_to_write(
    tmp_path: Path, environ: dict[str, str], value: str
) -> None:
    with pytest.raises(ConfigError, match=r"\[stream.a\] max_size: .*bytes or size from 1B"):
        load(written(tmp_path, f"[stream.a]\nmax_size = {value}\n"), environ=environ)


def test_a_stream_has_every_setting_of_a_policy(tmp_path: Path, environ: dict[str, str]) -> None:
    config = load(
        written(
            tmp_path,
            "[stream.bulk]\npriority = 'low'\nmax_age = '2h'\non_doubt = 'hold'\n"
            "require_tls = true\nmax_size = '1MB'\nmax_recipients = 50\n",
        ),
        environ=environ,
    )
    stream = config.stream["bulk"]
    assert (stream.priority, stream.max_age, stream.on_doubt) == ("low", 7200.0, "hold")
    assert (stream.require_tls, stream.max_size, stream.max_recipients) == (True, 1_000_000, 50)
    assert from_json(to_json(config)) == config


# Tables of an application


def test_tables_of_an_application_are_what_a_file_would_hold(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x\n")
    tables = MappingProxyType(
        {
            "hostname": "mx.example.org",
            "delivery": MappingProxyType({"mode": "relay", "drain_timeout": "5s"}),
            "relay": {
                "hosts": ("smtp.example.org",),
                "tls": "required",
                "username": "joe",
                "password_file": secret,
            },
            "stream": {"bulk": {"max_size": "1MB"}},
        }
    )
    config = from_tables(tables, environ=environ, store=tmp_path / "spool.db")
    assert config.relay.hosts == ("smtp.example.org",)
    assert config.relay.password_file == str(secret)
    assert config.delivery.drain_timeout == 5.0
    assert config.stream["bulk"].max_size == 1_000_000
    assert config.store == str(tmp_path / "spool.db")
    assert config.origin is None
    assert config.sources["relay.username"] == "the configuration given"


def test_no_file_is_looked_for_beside_an_applications_tables(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    file = written(tmp_path, "hostname = 'other.example.org'\n[delivery]\nport = 2525\n")
    config = from_tables({}, environ={**environ, "MAILSTROM_CONFIG": str(file)})
    assert config.delivery.port == 25


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        ({"delivery": 3}, "the configuration given: delivery is a table"),
        ({"delivry": {}}, "unknown key delivry; did you mean delivery"),
        ({1: 2}, "unknown key 1"),
        ({"relay": {"password_file": 3}}, r"\[relay\] password_file: 3 does not fit"),
        ({"retry": {"max_age": timedelta(days=1)}}, r"\[retry\] max_age: .* does not fit"),
        ({"dns": {"nameservers": [object()]}}, r"\[dns\] nameservers"),
    ],
)
def test_bad_tables_of_an_application_are_named(
    tables: dict[str, object], text: str, environ: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match=text):
        from_tables(tables, environ=environ)


def test_xoauth2_needs_a_username(tmp_path: Path, environ: dict[str, str]) -> None:
    text = (
        "[delivery]\nmode = 'relay'\n[relay]\nhosts = ['smtp.example.org']\ntls = 'required'\n"
        "mechanism = 'xoauth2'\n"
    )
    with pytest.raises(ConfigError, match=r'mechanism = "xoauth2" needs username'):
        load(written(tmp_path, text), environ=environ)
