"""The file of users: read within bounds, changed whole, and never half."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from mailstrom.passwords import hash_password
from mailstrom.userfile import change_users, read_users, require_name

HASH = "$scrypt$ln=4,r=8,p=1$MDEyMzQ1Njc4OWFiY2RlZg$" + "A" * 43


def _add(path: Path, name: str, hashed: str = HASH) -> None:
    change_users(str(path), lambda users: {**users, name: hashed})


def test_a_new_file_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "users"
    _add(path, "joe")

    assert read_users(path) == {"joe": HASH}
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(file.name for file in tmp_path.iterdir()) == ["users"]


def test_what_is_not_changed_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text(f"# printers\nhp:{HASH}\n\nold:{HASH}\n")
    path.chmod(0o640)
    other = hash_password("other")

    change_users(str(path), lambda users: {"hp": other, "new": HASH})

    assert path.read_text() == f"# printers\nhp:{other}\n\nnew:{HASH}\n"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").write_text(f"joe:{HASH}\n")
    link = tmp_path / "users"
    link.symlink_to("real")
    _add(link, "ann")

    assert link.is_symlink()
    assert list(read_users(tmp_path / "real")) == ["joe", "ann"]


def test_an_error_leaves_the_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "users"
    _add(path, "joe")

    def fail(users: dict[str, str]) -> dict[str, str]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        change_users(str(path), fail)

    assert read_users(path) == {"joe": HASH}
    assert os.listdir(tmp_path) == ["users"]


def test_changes_at_once_all_stand(tmp_path: Path) -> None:
    path = tmp_path / "users"
    threads = [threading.Thread(target=_add, args=(path, f"u{n}")) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(read_users(path)) == sorted(f"u{n}" for n in range(12))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("joe\n", "line 1: write user:hash"),
        (f"joe:{HASH}\nann:secret\n", "line 2: no hash"),
        (f"joe:{HASH}\njoe:{HASH}\n", "line 2: 'joe' stands in an earlier line"),
        (f":{HASH}\n", "line 1: '' is no user name"),
        (f"a\x07b:{HASH}\n", "no user name"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "users"
    path.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_users(path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "users")
    with pytest.raises(OSError, match="not a regular file"):
        read_users(tmp_path / "users")


@pytest.mark.parametrize("name", ["joe", "joe@example.org", "Grüße", "a b"])
def test_names(name: str) -> None:
    require_name(name)


@pytest.mark.parametrize("name", ["", " a", "a ", "#a", "a:b", "a\nb", "a\x00", "x" * 256])
def test_no_names(name: str) -> None:
    with pytest.raises(ValueError, match="no user name"):
        require_name(name)
