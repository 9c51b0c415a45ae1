"""A reload meets a file that somebody is still writing: mail goes where it went.

The files here are cut at every byte, since that is how a full disk, a crash or a slow editor leaves
them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from mailstrom.config import Config, load, require_kept
from mailstrom.errors import ConfigError

SECRET = "secret"

WHOLE = """\
# Mailstrom
store = "spool.db"
hostname = "mail.example.org"

[delivery]
mode = "relay"
workers = 12

[relay]
hosts = ["smtp.example.org", "spare.example.org:2525"]
port = 587
tls = "required"
username = "engine"
password_file = "secret"

[dns]
nameservers = ["192.0.2.53", "192.0.2.54"]
tls = true
tls_hostname = "dns.example.org"

[tls]
verify = true
min_version = "1.3"

[retry]
schedule = ["1m", "5m"]

[stream.receipts]
require_tls = true
on_doubt = "hold"
max_recipients = 100

[spool.retention]
bodies = "365d"

[sites]
connections = 40
"""

DIRECT = """\
store = "spool.db"
hostname = "mail.example.org"
[tls]
require = true
[dns]
resolver = "quad9"
tls = true
[stream.receipts]
require_tls = true
[sites]
connections = 40
"""


def loaded(folder: Path, text: str | bytes, *, whole: bool = False) -> Config:
    file = folder / "mailstrom.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(file, environ={}, whole=whole)


def reloaded(folder: Path, running: Config, text: str | bytes) -> Config:
    wanted = loaded(folder, text, whole=True)
    require_kept(running, wanted)
    return wanted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / SECRET).write_text("xyz\n")
    return tmp_path


def decides(config: Config) -> object:
    """Where mail goes, how it is protected, and what is deleted."""
    demands = {name: (s.require_tls, s.on_doubt) for name, s in config.stream.items()}
    return (
        config.store, config.hostname, config.delivery.mode, config.delivery.port, config.relay,
        config.dns, replace(config.tls, ca_file=None), config.spool.retention,
        {name: these for name, these in demands.items() if any(these)},
    )  # fmt: skip


@pytest.mark.parametrize("text", [WHOLE, DIRECT], ids=["relay", "direct"])
def test_each_beginning_of_the_file_in_force_is_rejected_or_harmless(
    folder: Path, text: str
) -> None:
    running = loaded(folder, text)
    taken = 0
    for end in range(len(text)):
        try:
            wanted = reloaded(folder, running, text[:end])
        except ConfigError:
            continue
        taken += 1
        assert decides(wanted) == decides(running), text[:end]
        assert wanted.sites.connections in (running.sites.connections, 20), text[:end]
        for name, stream in wanted.stream.items():
            assert stream.max_recipients in (None, running.stream[name].max_recipients)
    assert 0 < taken < 60  # what only lacks the last tables, which decide nothing of this


def test_each_beginning_of_a_changed_file_keeps_what_was_there(folder: Path) -> None:
    """An editor that writes in place: the new words, as far as they got."""
    running = loaded(folder, WHOLE)
    changed = WHOLE.replace("workers = 12", "workers = 4").replace('"1m"', '"2m"')
    for end in range(len(changed)):
        try:
            wanted = reloaded(folder, running, changed[:end])
        except ConfigError:
            continue
        assert decides(wanted) == decides(running), changed[:end]
    assert reloaded(folder, running, changed).delivery.workers == 4


@pytest.mark.parametrize("text", [b"", b"\n\n", b"# gone\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_rejected_though_nothing_was_set(folder: Path, text: bytes) -> None:
    running = loaded(folder, "")
    with pytest.raises(ConfigError, match="is empty; a file that is half written"):
        reloaded(folder, running, text)


def test_a_number_that_may_go_on_is_rejected(folder: Path) -> None:
    running = loaded(folder, "[sites]\nconnections = 20\n")
    with pytest.raises(ConfigError, match="ends in a number without a line end"):
        reloaded(folder, running, "[sites]\nconnections = 2")
    assert reloaded(folder, running, '[log]\nlevel = "debug"').log.level == "debug"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('[relay]\nhosts = ["a.test"]\n[delivery]\nmode = "relay"\n', '[delivery]\nmode = "mx"\n'),
        ('[dns]\nnameservers = ["192.0.2.1"]\n', '[dns]\nresolver = "google"\n'),
        ('[dns]\nresolver = "google"\n', '[dns]\nnameservers = ["192.0.2.1"]\n'),
        (
            '[dns]\nnameservers = ["192.0.2.1"]\ntls = true\ntls_hostname = "d.test"\n',
            '[dns]\nresolver = "google"\ntls = true\n',
        ),
        (
            '[dns]\nnameservers = ["192.0.2.1"]\ntls = true\ntls_hostname = "d.test"\n',
            '[dns]\nnameservers = ["192.0.2.1"]\ntls = false\n',
        ),
        ('[tls]\nca_file = "secret"\n', '[log]\nlevel = "info"\n'),
        ("[tls]\nrequire = true\n", "[tls]\nrequire = false\n"),
        ("[tls]\nrequire = true\n", "[tls]\nverify = true\n"),
        ("[stream.a]\nrequire_tls = true\n", "[stream.a]\nrequire_tls = false\n"),
        ('[stream.a]\npriority = "low"\n', '[stream.b]\npriority = "low"\n'),
        ("[sites]\nconnections = 2\n", '[log]\nlevel = "info"\n'),
    ],
)
def test_what_is_taken_back_in_so_many_words_is_accepted(
    folder: Path, before: str, after: str
) -> None:
    reloaded(folder, loaded(folder, before), after)


@pytest.mark.parametrize(
    ("before", "after", "lost"),
    [
        ('store = "a.db"\n', "[sites]\nconnections = 2\n", "store"),
        ('[relay]\nhosts = ["a.test"]\ntls = "required"\n[delivery]\nmode = "relay"\n',
         '[relay]\nhosts = ["a.test"]\n[delivery]\nmode = "relay"\n', "relay.tls"),
        ('[relay]\nhosts = ["a.test"]\n[delivery]\nmode = "relay"\n',
         '[log]\nlevel = "info"\n', "delivery.mode, relay.hosts"),
        ("[stream.a]\nrequire_tls = true\n", "[stream.b]\nrequire_tls = true\n",
         "stream.a.require_tls"),
    ],
)  # fmt: skip
def test_what_is_only_left_out_is_named(folder: Path, before: str, after: str, lost: str) -> None:
    running = loaded(folder, before)
    with pytest.raises(ConfigError) as caught:
        reloaded(folder, running, after)
    assert f"no longer says {lost}, which the running engine was told" in str(caught.value)
    assert "rename it over, or write another value, or restart the engine" in str(caught.value)


def test_what_the_environment_or_an_option_said_is_not_missed_in_the_file(folder: Path) -> None:
    file = folder / "mailstrom.toml"
    file.write_text("[sites]\nconnections = 2\n")
    environ = {"MAILSTROM_STORE": str(folder / "a.db")}
    require_kept(load(file, environ=environ), load(file, environ=environ, whole=True))
