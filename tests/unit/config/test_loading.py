"""Reading the configuration: search order, overrides, errors that say what to write."""

from __future__ import annotations

import os
import re
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom.client import locate
from mailstrom.config import (
    Config,
    default_store,
    describe,
    from_json,
    from_tables,
    load,
    loading,
    places,
    schema,
    to_json,
)
from mailstrom.config.durations import duration, seconds
from mailstrom.config.settings import Table
from mailstrom.errors import ConfigError
from mailstrom.types import OnDoubt, Priority


@pytest.fixture(autouse=True)
def no_system_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(places, "SYSTEM_FILE", tmp_path / "etc" / "mailstrom.toml")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path / "home")}


def written(folder: Path, text: str, name: str = "mailstrom.toml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_without_any_file_the_documented_defaults_hold(environ: dict[str, str]) -> None:
    config = load(environ=environ)
    assert config.origin is None
    assert config.delivery.workers == "auto"
    assert (config.delivery.mode, config.delivery.port) == ("mx", 25)
    assert config.delivery.max_connections == 200
    assert config.delivery.on_doubt is OnDoubt.RETRY
    assert config.delivery.drain_timeout == 30
    assert config.delivery.pipelining == "full"
    minutes = (1, 3, 7, 15, 30, 60, 120, 240, 360)
    assert config.retry.schedule == tuple(60.0 * minute for minute in minutes)
    assert config.retry.max_age == 5 * 86400
    assert config.retry.jitter == 0.15
    assert (config.sites.connections, config.sites.messages_per_connection) == (20, 0)
    assert config.sites.suspend == tuple(60.0 * minute for minute in (1, 3, 7, 15, 30))
    assert config.spool.idempotency_window == 86400
    retention = config.spool.retention
    days = tuple(kept / 86400 for kept in (retention.bodies, retention.attempts, retention.events))
    assert days == (7, 30, 30)
    assert config.supervisor.watchdog == 60
    assert not config.dns.allow_loopback
    assert not config.tls.require


def test_stage_timeouts_default_to_the_rfc_values(environ: dict[str, str]) -> None:
    # RFC 5321 section 4.5.3.2
    timeouts = load(environ=environ).timeouts
    assert timeouts.greeting == timeouts.mail == timeouts.rcpt == 300
    assert (timeouts.data, timeouts.body, timeouts.dot) == (120, 180, 600)
    assert (timeouts.connect, timeouts.rset, timeouts.quit) == (30, 20, 5)


def test_the_search_order(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = written(tmp_path / "xdg" / "mailstrom", "[delivery]\nport = 4")
    environ["XDG_CONFIG_HOME"] = str(tmp_path / "xdg")
    assert load(environ=environ).origin == str(user)
    system = written(tmp_path / "etc", "[delivery]\nport = 3")
    assert load(environ=environ).origin == str(system)
    named = written(tmp_path / "named", "[delivery]\nport = 2")
    environ["MAILSTROM_CONFIG"] = str(named)
    assert load(environ=environ).delivery.port == 2
    argument = written(tmp_path / "argument", "[delivery]\nport = 1")
    monkeypatch.chdir(argument.parent)
    config = load(argument.name, environ=environ)
    assert (config.delivery.port, config.origin) == (1, str(argument))


def test_a_relative_xdg_directory_is_ignored(environ: dict[str, str], tmp_path: Path) -> None:
    home = written(tmp_path / "home" / ".config" / "mailstrom", "")
    environ["XDG_CONFIG_HOME"] = "relative"
    assert load(environ=environ).origin == str(home)


@pytest.mark.parametrize("by", ["--config", "MAILSTROM_CONFIG"])
def test_a_named_but_missing_file_is_an_error(
    by: str, environ: dict[str, str], tmp_path: Path
) -> None:
    missing = str(tmp_path / "none.toml")
    path = missing if by == "--config" else None
    if path is None:
        environ["MAILSTROM_CONFIG"] = missing
    with pytest.raises(ConfigError, match=re.escape(f"{missing}: no such") + f".*{by}"):
        load(path, environ=environ)


def test_a_default_file_that_cannot_be_read_is_an_error(
    environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "etc" / "mailstrom.toml").mkdir(parents=True)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(environ=environ)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x =", "not TOML: "),
        (
            "[delivery]\nprot = 1",
            r"unknown key \[delivery\] prot; did you mean \[delivery\] port\?",
        ),
        (
            "[tls]\nport = 1",
            r"unknown key \[tls\] port; did you mean \[delivery\] port or \[relay\]",
        ),
        ("[delivry]\nport = 1", r"unknown key delivry; did you mean delivery\?"),
        ('"\\u001b[2J\\u202e" = 1', r"unknown key \\x1b\[2J\\u202e; it takes store"),
        ('[log."a\\nb"]', r"unknown key \[log\] a\\x0ab"),
        ("x" * 5000 + " = 1", "unknown key x{99}…; it takes store"),
        ("zzz = 1", "unknown key zzz; it takes store, hostname"),
        ("delivery = 3", r"delivery is a table: write \[delivery\]"),
        ("stream = 3", r"write \[stream.NAME\]"),
        ("[stream]\nbulk = 3", r"write \[stream.bulk\]"),
        ("[stream.bulk]\npriorty = 'low'", r"\[stream.bulk\] priorty; did you mean"),
        ("[stream.bulk]\npriority = 'top'", r'\[stream.bulk\] priority: .*"high" or "normal"'),
        ("[spool.retention]\nbody = '1d'", r"\[spool.retention\] body; did you mean"),
        ("[delivery]\nport = true", r"\[delivery\] port: .*integer from 1 to 65535"),
        ("[delivery]\nport = '25'", r"\[delivery\] port: "),
        ("[delivery]\nport = 0", r"\[delivery\] port: "),
        ("[delivery]\nworkers = 0", r"\[delivery\] workers: .*\"auto\" or integer from 1"),
        ("[delivery]\nworkers = 'many'", r"\[delivery\] workers: "),
        ("[delivery]\ndrain_timeout = 30", r'30 has no unit: write text with a unit, as "30s"'),
        ("[supervisor]\nwatchdog = '100ms'", r"\[supervisor\] watchdog: .*duration from 5s to 1d"),
        ("[retry]\nschedule = ['1m', 'soon']", r"\[retry\] schedule: 'soon' is no duration"),
        ("[retry]\nschedule = []", r"schedule: \[\] does not fit; .* \(from 1 to 100 entries\)"),
        ("[retry]\njitter = 1.5", r"\[retry\] jitter: .*from 0 to 0.9"),
        ("[log]\nlevel = 'loud'", r'\[log\] level: .*"debug" or "info"'),
        ("store = ''", 'store: "" does not fit; it takes path'),
        ("[delivery]\nport = {}", "port: a table does not fit; it takes integer"),
        ("[delivery]\nport = [1, 'x']", r'port: \[1, "x"\] does not fit'),
        ("[delivery]\nport = 2030-01-31", r"port: .*2030-01-31.* does not fit"),
        ("[relay]\nusername = ''", "text that is not empty, up to 255 characters"),
    ],
)
def test_a_wrong_file_names_file_table_key_and_what_to_write(
    text: str, sentence: str, environ: dict[str, str], tmp_path: Path
) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError, match=sentence) as caught:
        load(file, environ=environ)
    assert str(caught.value).startswith(f"{file}: ")
    # what a library calls things is not how this file is written
    assert not re.search(r"Expected|`|\$|array|enum|object", str(caught.value))


def test_a_file_that_is_not_utf_8_or_endless_is_refused(
    environ: dict[str, str], tmp_path: Path
) -> None:
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'hostname = "gr\xfc\xdfe.example"')
    with pytest.raises(ConfigError, match="not UTF-8 at byte 14"):
        load(latin, environ=environ)
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(ConfigError, match="longer than"):
        load(large, environ=environ)


def test_relative_paths_start_where_they_are_named(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "conf", "store = '../data/spool.db'")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert load(file, environ=environ).store == str(tmp_path / "data" / "spool.db")
    environ["MAILSTROM_STORE"] = "mine.db"
    assert load(file, environ=environ).store == str(here / "mine.db")
    assert load(file, environ=environ, store="other.db").store == str(here / "other.db")


@pytest.mark.parametrize("store", ["spool.db", "../spool.db", "/abs/spool.db"])
def test_engine_and_client_find_the_same_spool(
    store: str, environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locate, "SYSTEM_FILE", str(tmp_path / "etc" / "mailstrom.toml"))
    file = written(tmp_path / "conf", f"store = '{store}'")
    for named, config, variables in (
        (None, str(file), {}),
        (None, None, {"MAILSTROM_CONFIG": str(file)}),
        (None, None, {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}),
        (None, str(file), {"MAILSTROM_STORE": "variable.db"}),
        (None, str(file), {"MAILSTROM_STORE": "sqlite:///abs/variable.db"}),
        ("argument.db", str(file), {"MAILSTROM_STORE": "variable.db"}),
        ("sqlite:///abs/argument.db", None, {}),
    ):
        written(tmp_path / "xdg" / "mailstrom", f"store = '{store}'")
        scene = environ | variables
        found = locate.locate_store(named, config, scene)
        assert load(config, environ=scene, store=named).store == found


def test_engine_and_client_have_the_same_default_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for user in (0, 1000):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        for variables in ({"XDG_STATE_HOME": "/x"}, {}):
            scene = variables | {"HOME": str(tmp_path)}
            monkeypatch.setenv("HOME", str(tmp_path))
            assert default_store(scene) == locate.default_store(scene)


def test_an_unknown_kind_of_store_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"MAILSTROM_STORE: store: .*write a path or sqlite"):
        load(environ=environ | {"MAILSTROM_STORE": "postgresql://host/db"})


def test_sources_say_where_each_value_came_from(environ: dict[str, str], tmp_path: Path) -> None:
    file = written(tmp_path, "store = 'a.db'\n[log]\nlevel = 'debug'\nformat = 'json'")
    environ |= {"MAILSTROM_LOG_LEVEL": "error", "MAILSTROM_LOG_FORMAT": ""}
    config = load(file, environ=environ, store="/b.db")
    assert config.log.level == "error"
    origins = {setting.key: setting.origin for setting in describe(config)}
    assert origins["store"] == "--store"
    assert origins["log.level"] == "MAILSTROM_LOG_LEVEL"
    assert origins["log.format"] == str(file)  # an empty variable is no variable
    assert origins["delivery.port"] == "default"


def test_a_wrong_variable_is_named(environ: dict[str, str]) -> None:
    environ["MAILSTROM_LOG_LEVEL"] = "loud"
    with pytest.raises(ConfigError, match=r"^MAILSTROM_LOG_LEVEL: \[log\] level"):
        load(environ=environ)


def test_the_effective_configuration_survives_the_way_to_a_child(
    environ: dict[str, str], tmp_path: Path
) -> None:
    text = """
    store = "x.db"
    [delivery]
    workers = 3
    on_doubt = "hold"
    connect_timeout = "1500ms"
    [retry]
    schedule = ["1s", "1.5h"]
    [stream.bulk]
    priority = "low"
    [spool.retention]
    bodies = "0s"
    """
    config = load(written(tmp_path, text), environ=environ)
    assert config.retry.schedule == (1.0, 5400.0)
    assert config.stream["bulk"].priority is Priority.LOW
    assert config.spool.retention.bodies == 0
    again = from_json(to_json(config))
    assert again == config
    assert isinstance(again.delivery.on_doubt, OnDoubt)
    assert isinstance(again.retry.schedule, tuple)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"store": 1}', b'{"store":"a","hostname":"b","x":1}']
)
def test_damaged_json_from_a_parent_is_a_config_error(data: bytes) -> None:
    with pytest.raises(ConfigError, match="parent process"):
        from_json(data)


def test_a_config_cannot_be_changed(environ: dict[str, str]) -> None:
    config = load(environ=environ)
    with pytest.raises(AttributeError):
        config.delivery.port = 26  # type: ignore[misc]


def test_every_key_has_a_sentence_and_is_described_once(environ: dict[str, str]) -> None:
    def walk(table: type[Table], prefix: str) -> list[str]:
        found = []
        for key in schema.keys(table):
            if key.table is not None:
                found += walk(key.table, f"{prefix}{key.name}.")
            elif schema.streams(key) is None:
                assert key.sentence.endswith("."), key.name
                assert schema.accepts(key.hint, key.unit)
                found.append(prefix + key.name)
        return found

    assert [setting.key for setting in describe(load(environ=environ))] == walk(Config, "")


def test_the_shown_values_are_toml_that_loads_to_the_same(
    environ: dict[str, str], tmp_path: Path
) -> None:
    config = load(environ=environ, store=tmp_path / 'a "b" \\ c.db')
    text = "\n".join(
        f"{setting.key} = {setting.value}"
        for setting in describe(config)
        # the two name one setting; "system" written out is a choice
        if setting.value and setting.key not in {"timeouts.connect"}
    )
    again = load(written(tmp_path, text), environ=environ)
    assert [s[:2] for s in describe(again)] == [s[:2] for s in describe(config)]


def test_the_default_store_of_root_and_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_store({"XDG_STATE_HOME": "/x"}) == "/var/lib/mailstrom/spool.db"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_store({"XDG_STATE_HOME": "/x"}) == "/x/mailstrom/spool.db"
    assert default_store({"HOME": "/h"}) == "/h/.local/state/mailstrom/spool.db"
    assert default_store({"HOME": "/h", "XDG_STATE_HOME": "rel"}).startswith("/h/.local/state/")


@pytest.mark.parametrize(
    ("text", "value"),
    [("500ms", 0.5), ("30s", 30), ("5m", 300), ("4h", 14400), ("5d", 432000), ("1.5h", 5400)],
)
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "5", "5 m", "-5m", "5M", "m", "1e3s", "5m5s", "٣s", "5m\n"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is no duration"):
        seconds(text)


@given(st.integers(0, 10**12 - 1))
def test_a_shown_duration_reads_back(milliseconds: int) -> None:
    value = milliseconds / 1000
    assert seconds(duration(value)) == value


def test_a_doubled_slash_at_the_front_of_a_path_is_one(tmp_path: Path) -> None:
    """POSIX lets two slashes mean something of their own, and ``os.path`` keeps them."""
    assert places.plain_path("//a//b/../c.db") == "/a/c.db"
    assert places.plain_path("c.db", "//a") == "/a/c.db"
    assert places.plain_path("///c.db", "/elsewhere") == "/c.db"
    for text in ("//a/b", "x", "../x", "///a/./b//", "/"):
        assert places.plain_path(text, "/folder") == locate.plain_path(text, "/folder")
    written(tmp_path, f'store = "sqlite:///{tmp_path}/x.db"\n')
    file = places.find_file(f"/{tmp_path}/mailstrom.toml", {})
    assert str(file) == str(tmp_path / "mailstrom.toml")
    assert load(file, environ={}).store == str(tmp_path / "x.db")


def test_a_working_directory_that_is_gone_matters_to_relative_paths_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert load(environ=environ, store="/absolute.db").store == "/absolute.db"
    tables = {"store": "/absolute.db"}
    assert from_tables(tables, environ=environ).store == "/absolute.db"
    with pytest.raises(ConfigError, match=r"store: 'relative\.db' is relative to a working"):
        load(environ=environ, store="relative.db")
    monkeypatch.chdir(tmp_path)
    assert load(environ=environ, store="relative.db").store == str(tmp_path / "relative.db")


def test_a_dns_that_does_not_tell_our_name_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    over = threading.Event()

    def getfqdn(name: str) -> str:
        assert over.wait(60)
        return f"{name}.late.test"

    monkeypatch.setattr(socket, "gethostname", lambda: "short")
    monkeypatch.setattr(socket, "getfqdn", getfqdn)
    monkeypatch.setattr(loading, "OWN_NAME_S", 0.01)
    assert load(environ=environ).hostname == "localhost"
    over.set()
    monkeypatch.setattr(loading, "OWN_NAME_S", 60)
    assert load(environ=environ).hostname == "short.late.test"


def test_a_machine_whose_name_no_resolver_can_write_has_none(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "x" * 64)
    assert load(environ=environ).hostname == "localhost"
