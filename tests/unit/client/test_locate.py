"""Which spool is meant: argument, MAILSTROM_STORE, configuration file, default; as the engine."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mailstrom.cli.spool import place
from mailstrom.client import Mailstrom, locate
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
    "store url of three slashes": {"MAILSTROM_STORE": "sqlite://{tmp}/url.db"},
    "store url of six slashes": {"MAILSTROM_STORE": "sqlite://///{tmp}/url.db"},
    "store with two slashes": {"MAILSTROM_STORE": "/{tmp}//url.db"},
    "file with a url of three slashes": {"MAILSTROM_CONFIG": "{tmp}/three.toml"},
    "file named with two slashes": {"MAILSTROM_CONFIG": "/{tmp}/named.toml"},
    "xdg with two slashes": {"XDG_STATE_HOME": "/{tmp}/s", "XDG_CONFIG_HOME": "/{tmp}/none"},
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
    write(tmp_path / "three.toml", f"sqlite://{tmp_path}/x.db")
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
    assert engine == "ConfigError" or (engine[0] == "/" and "//" not in engine)


def test_a_configuration_that_is_kept_from_the_user_is_no_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "etc/mailstrom.toml", "system.db")
    closed = str(tmp_path / "etc")
    see, enter = os.path.lexists, os.access
    # As the system tells a user who may not enter; root may enter everywhere.
    monkeypatch.setattr(os.path, "lexists", lambda path: closed not in str(path) and see(path))
    monkeypatch.setattr(os, "access", lambda path, how: path != closed and enter(path, how))
    environ = environment(tmp_path)
    for name in ("MAILSTROM_STORE", "MAILSTROM_CONFIG", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", environ["HOME"])
    for find in (
        lambda: locate.locate_store(None, None, environ),
        lambda: load(environ=environ),
        lambda: place(None, None),  # the command line's
    ):
        with pytest.raises(ConfigError, match=r"etc cannot be entered by this user, .* its group"):
            find()
    assert not (tmp_path / "home/.local").exists()
    named = environment(tmp_path, MAILSTROM_STORE=str(tmp_path / "own.db"))
    assert locate.locate_store(None, None, named) == load(environ=named).store
    assert load(environ=environ, store="own.db").store == str(tmp_path / "own.db")
    own = write(tmp_path / "home/.config/mailstrom/mailstrom.toml", "user.db")
    found = str(own.parent / "user.db")
    assert locate.locate_store(None, None, environ) == load(environ=environ).store == found


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


@pytest.mark.parametrize("store", ["sqlite:///{tmp}/x.db", "sqlite://{tmp}/x.db", "/{tmp}/x.db"])
def test_however_many_slashes_it_is_one_path(tmp_path: Path, store: str) -> None:
    named = store.format(tmp=tmp_path)
    plain = str(tmp_path / "x.db")
    file = str(write(tmp_path / "named.toml", named))
    assert locate.locate_store(named, None, {}) == plain
    assert locate.locate_store(None, None, {"MAILSTROM_STORE": named}) == plain
    assert locate.locate_store(None, file, {}) == plain
    assert locate.locate_store(None, f"/{file}", {}) == plain


def test_a_path_that_sqlite_cannot_be_given_is_refused(tmp_path: Path) -> None:
    """Bytes of another charset in the environment arrive as lone surrogates."""
    with pytest.raises(ConfigError, match=r"MAILSTROM_STORE: .* is not UTF-8"):
        locate.locate_store(None, None, environment(tmp_path, MAILSTROM_STORE="/tmp/\udcff.db"))


def test_a_working_directory_that_is_gone_matters_to_relative_paths_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert locate.locate_store("/absolute.db", None, {}) == "/absolute.db"
    with pytest.raises(
        ConfigError, match=r"store: 'relative\.db' is relative to a working directory"
    ):
        locate.locate_store("relative.db", None, {})
    monkeypatch.chdir(tmp_path)


def test_without_a_home_directory_a_store_must_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # a user id without an entry
    for environ in ({}, {"HOME": ""}, {"HOME": "relative"}):
        with pytest.raises(ConfigError, match=r"no home directory.*MAILSTROM_STORE"):
            locate.locate_store(None, None, environ)
        assert locate.locate_store("x.db", None, environ) == str(tmp_path / "x.db")
    write(tmp_path / "etc/mailstrom.toml", "/system.db")
    assert locate.locate_store(None, None, {}) == "/system.db"
    assert not (tmp_path / "~").exists()


# --- as an application opens it -----------------------------------------------------------------


OPENED = {
    "nothing": ({}, "home/.local/state/mailstrom/spool.db"),
    "empty": (
        {"MAILSTROM_STORE": "", "MAILSTROM_CONFIG": "", "XDG_STATE_HOME": ""},
        "home/.local/state/mailstrom/spool.db",
    ),
    "state": ({"XDG_STATE_HOME": "{tmp}/state"}, "state/mailstrom/spool.db"),
    "path": ({"MAILSTROM_STORE": "{tmp}/a.db"}, "a.db"),
    "relative": ({"MAILSTROM_STORE": "a.db"}, "a.db"),
    "url": ({"MAILSTROM_STORE": "sqlite:///{tmp}/a.db"}, "a.db"),
    "empty store, file": ({"MAILSTROM_STORE": "", "MAILSTROM_CONFIG": "{tmp}/f.toml"}, "f.db"),
}


@pytest.mark.parametrize("case", OPENED)
def test_the_environment_says_which_spool_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    write(tmp_path / "f.toml", f"sqlite:///{tmp_path}/f.db")
    variables, expected = OPENED[case]
    for name in ("MAILSTROM_STORE", "MAILSTROM_CONFIG", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, text in variables.items():
        monkeypatch.setenv(name, text.format(tmp=tmp_path))
    with Mailstrom() as client:
        assert client.path == str(tmp_path / expected)
        assert client.query("SELECT count(*) FROM messages") == [(0,)]
    assert (tmp_path / expected).is_file()


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"MAILSTROM_STORE": "postgresql://host/db"}, "MAILSTROM_STORE: .* is no path"),
        ({"MAILSTROM_STORE": "sqlite://"}, "MAILSTROM_STORE: .* is no path"),
        ({"MAILSTROM_STORE": "missing/a.db"}, "make it first"),
        ({"MAILSTROM_CONFIG": "missing.toml"}, "no such configuration file"),
        ({"MAILSTROM_CONFIG": "."}, "not a regular file"),
    ],
    ids=str,
)
def test_an_environment_that_names_nothing_usable_is_an_error_and_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], text: str
) -> None:
    for name in ("MAILSTROM_STORE", "MAILSTROM_CONFIG", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MailstromError, match=text):
        Mailstrom()
    assert list(tmp_path.iterdir()) == []
