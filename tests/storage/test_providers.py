"""Stores by name: paths, schemes of ours, schemes that installed packages bring."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mailstrom.storage as storage
from mailstrom import Mailstrom
from mailstrom.config.loading import load
from mailstrom.errors import ConfigError, MailstromError, SpoolError
from mailstrom.storage import schemes
from mailstrom.supervisor.run import EXIT_CONFIG, main
from mailstrom.testing.smtp import SMTPServer
from mailstrom.types import Status
from tests.storage.toy import toy_store

RAW = b"From: a@example.com\r\nTo: b@example.org\r\nSubject: hello\r\n\r\nbody\r\n"


def install(folder: Path, module: str, source: str, **entries: str) -> None:
    """A distribution in a folder: a module, and metadata with entry points, as pip leaves them."""
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join(["[mailstrom.stores]", *lines, ""]))


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path; whatever was found in it is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    modules, found = set(sys.modules), dict(schemes._found)
    yield folder
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) and str(folder) in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]
    schemes._found.clear()
    schemes._found.update(found)


@pytest.fixture
def toy(packages: Path) -> Path:
    """The toy store, installed."""
    source = Path(toy_store.__file__).read_text()
    install(packages, "a_toy_store", source, toy="a_toy_store")
    return packages


# --- which kind a name means ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("spool.db", "sqlite"),
        ("/var/lib/a:b.db", "sqlite"),
        ("./a:b.db", "sqlite"),
        ("dir/a:b", "sqlite"),
        ("sqlite:x.db", "sqlite"),
        ("SQLite:///x.db", "sqlite"),
        ("memory:", "memory"),
        ("a:b.db", "a"),
        ("postgresql://host/db", "postgresql"),
        ("1:b.db", "sqlite"),
        (":memory:", "sqlite"),
        ("ä:b.db", "sqlite"),
    ],
)
def test_the_scheme_is_a_word_before_the_first_colon_of_the_first_part(
    name: str, scheme: str
) -> None:
    assert schemes.scheme_of(name) == scheme


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("x.db", "x.db"),
        ("sqlite:x.db", "x.db"),
        ("sqlite://x.db", "x.db"),
        ("sqlite:///x.db", "/x.db"),
        ("./a:b.db", "./a:b.db"),
    ],
)
def test_a_path_may_be_written_with_its_scheme(name: str, path: str) -> None:
    assert schemes.path_of(name) == path


def test_a_file_with_a_colon_in_its_name_is_named_by_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("./a:b.db", str(tmp_path / "c:d.db"), Path("e:f.db"), "sqlite:g:h.db"):
        with Mailstrom(name) as client:
            assert client.path == str(tmp_path / Path(client.path).name)
    assert {"a:b.db", "c:d.db", "e:f.db", "g:h.db"} <= set(os.listdir(tmp_path))
    assert load(store=Path("e:f.db"), environ={"HOME": str(tmp_path)}).store == str(
        tmp_path / "e:f.db"
    )
    with pytest.raises(ConfigError, match=r"'a:b\.db' is no path.*\./NAME"):
        Mailstrom("a:b.db")


def test_a_link_and_its_target_are_one_spool(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert storage.canonical(str(tmp_path / "link/x.db")) == str(tmp_path / "real/x.db")
    assert storage.canonical(f"sqlite://{tmp_path}/link/x.db") == str(tmp_path / "real/x.db")
    for name in ("", "sqlite:", "sqlite://"):
        with pytest.raises(ConfigError, match="is no path"):
            storage.canonical(name)


def test_an_unknown_scheme_names_itself_what_there_is_and_where_more_come_from(toy: Path) -> None:
    calls = (
        lambda: Mailstrom("nosuch:thing"),
        lambda: load(store="nosuch:thing"),
        lambda: storage.prepare("nosuch:thing"),
        lambda: storage.open_client_store("nosuch:thing"),
        lambda: storage.open_worker_store("nosuch:thing"),
        lambda: storage.run_directory("nosuch:thing"),
    )
    for call in calls:
        with pytest.raises(
            ConfigError,
            match=r"'nosuch'.*memory, sqlite, toy.*'mailstrom\.stores'.*write a path",
        ):
            call()


def test_a_plain_path_looks_for_no_packages(tmp_path: Path) -> None:
    """Neither the packages' metadata nor the engine's half of the store is loaded for it."""
    code = (
        "import sys, mailstrom\n"
        f"mailstrom.Mailstrom({str(tmp_path / 's.db')!r})\n"
        "unwanted = {'importlib.metadata', 'mailstrom.storage.base', 'mailstrom.storage.provider',"
        " 'mailstrom.storage.sqlite.worker', 'mailstrom.storage.sqlite.memory'}\n"
        "print(sorted(unwanted & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


# --- names in arguments, environment and files ---------------------------------------------------


def test_names_with_a_scheme_are_left_alone_and_paths_start_at_their_file(
    tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, found in (
        ("toy:x", "toy:x"),
        ("memory:both", "memory:both"),
        ("sqlite:x.db", str(tmp_path / "x.db")),
        ("x.db", str(tmp_path / "x.db")),
    ):
        file = tmp_path / "m.toml"
        file.write_text(f"store = '{name}'\n")
        environ = {"HOME": str(tmp_path)}
        assert load(file, environ=environ).store == found
        with Mailstrom(config=file) as client:
            assert client.path == found
        monkeypatch.chdir(tmp_path)
        assert load(environ={**environ, "MAILSTROM_STORE": name}).store == found
        monkeypatch.setenv("MAILSTROM_STORE", name)
        with Mailstrom() as client:
            assert client.path == found
        monkeypatch.delenv("MAILSTROM_STORE")


# --- supervisors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["memory:", "memory:x", "toy:x"])
def test_a_supervisor_refuses_what_only_this_process_could_see(
    toy: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MAILSTROM_CONFIG", raising=False)
    assert main(["--store", name]) == EXIT_CONFIG
    said = capsys.readouterr().err
    assert "only this process could see it" in said
    assert "start()" in said


# --- packages ------------------------------------------------------------------------------------


def test_a_store_from_a_package_is_used_by_its_scheme(toy: Path) -> None:
    with Mailstrom("TOY:x") as client:
        assert client.path == "toy:x"
        id = client.send(RAW, recipients=["b@example.org", "c@example.org"])
        assert client.status(id).status is Status.QUEUED
        assert client.raw(id).endswith(b"body\r\n")
        assert client.cancel(id, recipient="c@example.org") == 1
        with pytest.raises(SpoolError, match="no SQL"):
            client.query("SELECT 1")
        with Mailstrom("toy:y") as other, pytest.raises(MailstromError, match="no message"):
            other.status(id)


def test_a_store_from_a_package_delivers(toy: Path) -> None:
    with SMTPServer().in_thread() as server, Mailstrom("toy:deliver") as client:
        names = [f"r{n}@example.org" for n in range(5)]
        ids = [client.send(RAW, recipients=[name]) for name in names]
        mixed = client.send(
            RAW, recipients=["refuse@example.org", "defer-content-once@example.net"]
        )
        client.start(
            config={
                "hostname": "sender.test",
                "delivery": {"mode": "relay"},
                "relay": {"hosts": [f"127.0.0.1:{server.port}"], "tls": "none"},
                "retry": {"schedule": ["1s"], "jitter": 0.0},
            }
        )
        for id in ids:
            found = client.wait(id, timeout=45)
            assert found.succeeded
            (one,) = found.recipients.values()
            assert (one.reply_code, one.attempts) == (250, 1)
        ended = client.wait(mixed, timeout=45).recipients
        assert client.stop()
        assert sorted(a for dot in server.dots for a in dot.recipients if a in names) == names
        assert client.stats().waiting == {"queued": 0, "sending": 0, "deferred": 0, "held": 0}
        refused, again = ended["refuse@example.org"], ended["defer-content-once@example.net"]
        assert (refused.status, refused.reason, refused.reply_code) == ("failed", "bounced", 550)
        assert (again.status, again.reply_code, again.attempts) == ("delivered", 250, 2)


def test_two_packages_with_one_scheme_are_told_apart_by_nobody(packages: Path) -> None:
    install(packages, "one_store", "", twin="one_store")
    install(packages, "two_store", "", twin="two_store")
    with pytest.raises(ConfigError, match=r"several installed packages .*one_store, two_store"):
        Mailstrom("twin:x")


def test_a_package_installed_twice_is_one(packages: Path, tmp_path: Path) -> None:
    source = Path(toy_store.__file__).read_text()
    install(packages, "a_toy_store", source, toy="a_toy_store")
    shutil.copytree(packages / "a_toy_store-1.0.dist-info", packages / "copy-1.0.dist-info")
    with Mailstrom("toy:x") as client:
        assert client.path == "toy:x"


def test_a_package_that_cannot_be_imported_is_named_with_its_error(packages: Path) -> None:
    install(packages, "broken_store", "raise RuntimeError('no luck')", broken="broken_store")
    with pytest.raises(ConfigError, match=r"'broken' \(broken_store\).*RuntimeError: no luck"):
        Mailstrom("broken:x")


def test_what_a_provider_lacks_is_named(packages: Path) -> None:
    install(packages, "half_store", "shared = False\ndef prepare(): ...", half="half_store")
    with pytest.raises(ConfigError, match="has no canonical, open_client, open_worker"):
        Mailstrom("half:x")
