"""What is named in a configuration is a regular file, or refused at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mailstrom.config import load, places
from mailstrom.config.derived import SECRET_LIMIT, relay_password
from mailstrom.config.settings import Relay
from mailstrom.errors import ConfigError
from mailstrom.regular import beginning


def test_the_beginning_of_a_file_is_read_through_links(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abcdef")
    (tmp_path / "link").symlink_to("file")
    assert beginning(tmp_path / "link", 4) == b"abcd"
    assert beginning(tmp_path / "file", 10) == b"abcdef"


@pytest.mark.parametrize("name", ["fifo", "zero", "folder", "socket"])
def test_what_has_no_end_is_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"not a regular file|Is a directory|No such"):
        beginning(tmp_path / name, 10)


def test_a_pipe_at_the_default_path_is_refused_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "SYSTEM_FILE", tmp_path / "none")
    (tmp_path / "mailstrom").mkdir()
    os.mkfifo(tmp_path / "mailstrom" / "mailstrom.toml")
    with pytest.raises(ConfigError, match="not a regular file"):
        load(environ={"XDG_CONFIG_HOME": str(tmp_path)})


def test_a_password_is_one_line_whole(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    relay = Relay(password_file=str(file))
    file.write_bytes(b"p" * SECRET_LIMIT + b"\r\nmore")
    assert relay_password(relay) == "p" * SECRET_LIMIT
    for octets in (b"p" * (SECRET_LIMIT + 1), b"", b"\n", b"a\0b", b"a\x01auth=x", b"a\rb"):
        file.write_bytes(octets)
        with pytest.raises(ConfigError, match="not a password"):
            relay_password(relay)


@pytest.mark.parametrize("name", ["a\0b", "a\r\nQUIT", "a\x01auth=Bearer x", "a\u2028"])
def test_a_user_name_cannot_end_early(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("p\n")
    told = "".join(f"\\u{ord(char):04x}" for char in name)
    (tmp_path / "mailstrom.toml").write_text(
        '[delivery]\nmode = "relay"\n[relay]\nhosts = ["r.test"]\npassword_file = "secret"\n'
        f'username = "{told}"\n'
    )
    with pytest.raises(ConfigError, match=r"username .* is none"):
        load(tmp_path / "mailstrom.toml", environ={})
