"""Which spool is meant: argument, MAILSTROM_STORE, configuration file, default; as the engine."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mailstrom.client import locate
from mailstrom.config import places
from mailstrom.config.loading import load
from mailstrom.errors import ConfigError, MailstromError, SpoolError


@pytest.fixture(autouse=True)
def somebody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user on a machine without a system-wide file."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(locate, "SYSTEM_FILE", str(tmp_path / "etc/mailstrom.toml"))
    monkeypatch.setattr(places, "SYSTEM_FILE", tmp_path / "etc/mailstrom.toml")
    monkeypatch.chdir(tmp_path)


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    return {"HOME": str(tmp_path / "home"), **more}


def write(path: Path, store: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"store = {store!r}\n")
    return path


def test_the_order_is_argument_environment_file_default(tmp_path: Path) -> None:
    environ = environment(tmp_path)
    default = str(tmp_path / "home/.local/state/mailstrom/spool.db")
    assert locate.locate_store(None, None, environ) == default
    user = write(tmp_path / "home/.config/mailstrom/mailstrom.toml", "user.db")
    assert locate.locate_store(None, None, environ) == str(user.parent / "user.db")
    system = write(tmp_path / "etc/mailstrom.toml", "system.db")
    assert locate.locate_store(None, None, environ) == str(system.parent / "system.db")
    environ["MAILSTROM_CONFIG"] = str(write(tmp_path / "env.toml", "env.db"))
    assert locate.locate_store(None, None, environ) == str(tmp_path / "env.db")
    named = str(write(tmp_path / "sub/named.toml", "../named.db"))
    assert locate.locate_store(None, named, environ) == str(tmp_path / "named.db")
    environ["MAILSTROM_STORE"] = "variable.db"
    assert locate.locate_store(None, named, environ) == str(tmp_path / "variable.db")
    assert locate.locate_store("argument.db", named, environ) == str(tmp_path / "argument.db")
    assert locate.locate_store(tmp_path / "p.db", None, environ) == str(tmp_path / "p.db")


CASES = {
    "nothing set": {},
    "xdg": {"XDG_STATE_HOME": "{tmp}/state", "XDG_CONFIG_HOME": "{tmp}/config"},
    "relative xdg is ignored": {"XDG_STATE_HOME": "state", "XDG_CONFIG_HOME": "config"},
    "empty xdg is ignored": {"XDG_STATE_HOME": "", "XDG_CONFIG_HOME": ""},
    "empty variables": {"MAILSTROM_STORE": "", "MAILSTROM_CONFIG": ""},
    "file named": {"MAILSTROM_CONFIG": "{tmp}/named.toml"},
    "file named, relative": {"MAILSTROM_CONFIG": "named.toml"},
    "file with a url": {"MAILSTROM_CONFIG": "{tmp}/url.toml"},
    "file with a relative url": {"MAILSTROM_CONFIG": "{tmp}/relative.toml"},
    "file without a store": {"MAILSTROM_CONFIG": "{tmp}/bare.toml"},
    "store named": {"MAILSTROM_STORE": "some/../other.db"},
    "store url": {"MAILSTROM_STORE": "sqlite:///{tmp}/url.db"},
    "store of another kind": {"MAILSTROM_STORE": "postgresql://host/db"},
    "store without a path": {"MAILSTROM_STORE": "sqlite://"},
    "file missing": {"MAILSTROM_CONFIG": "{tmp}/nowhere.toml"},
    "file broken": {"MAILSTROM_CONFIG": "{tmp}/broken.toml"},
    "file not text": {"MAILSTROM_CONFIG": "{tmp}/binary.toml"},
    "store no text": {"MAILSTROM_CONFIG": "{tmp}/number.toml"},
}


@pytest.mark.parametrize("case", CASES)
def test_client_and_engine_find_the_same_spool(tmp_path: Path, case: str) -> None:
    write(tmp_path / "named.toml", "named.db")
    write(tmp_path / "url.toml", f"sqlite:///{tmp_path}/x.db")
    write(tmp_path / "relative.toml", "sqlite://x.db")
    write(tmp_path / "home/.config/mailstrom/mailstrom.toml", "/from/home.db")
    (tmp_path / "config/mailstrom").mkdir(parents=True)
    write(tmp_path / "config/mailstrom/mailstrom.toml", "../xdg.db")
    (tmp_path / "bare.toml").write_text("[delivery]\nport = 26\n")
    (tmp_path / "broken.toml").write_text("store = \n")
    (tmp_path / "binary.toml").write_bytes(b"store = '\xff'\n")
    (tmp_path / "number.toml").write_text("store = 5\n")
    environ = environment(tmp_path)
    environ |= {name: text.format(tmp=tmp_path) for name, text in CASES[case].items()}

    def outcome(find: object) -> str:
        try:
            return str(find())  # type: ignore[operator]
        except ConfigError:
            return "ConfigError"

    engine = outcome(lambda: load(environ=environ).store)
    assert outcome(lambda: locate.locate_store(None, None, environ)) == engine


def test_root_has_a_system_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    environ = environment(tmp_path)
    assert locate.default_store(environ) == places.default_store(environ)
    assert locate.default_store(environ) == "/var/lib/mailstrom/spool.db"


def test_the_default_directory_is_made_private(tmp_path: Path) -> None:
    path = Path(locate.locate_store(None, None, environment(tmp_path)))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.exists()


def test_a_default_directory_that_cannot_be_made_is_a_spool_error(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(SpoolError, match="name a spool or make the directory"):
        locate.locate_store(None, None, environment(tmp_path))


@pytest.mark.parametrize("store", ["", "postgresql://h/d", "sqlite://", "a\0b"])
def test_what_is_no_path_is_refused(tmp_path: Path, store: str) -> None:
    with pytest.raises(MailstromError, match="is no path"):
        locate.locate_store(store, None, environment(tmp_path))
