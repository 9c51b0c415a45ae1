"""``mailstrom user``: a file of users that a listener can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mailstrom.passwords import hash_password, matches
from mailstrom.userfile import read_users


@pytest.fixture
def users(tmp_path: Path) -> Path:
    return tmp_path / "users"


def test_a_user_is_added_checked_replaced_and_removed(run: Any, users: Path) -> None:
    file = ("--file", str(users))
    added = run("user", "add", "joe", *file, stdin=b"secret\n")
    assert (added.code, added.out) == (0, "joe: added\n")
    assert "secret" not in users.read_text()
    assert users.stat().st_mode & 0o777 == 0o600

    again = run("user", "add", "joe", *file, stdin=b"other\n")
    assert (again.code, again.out) == (1, "")
    assert "--replace" in again.err
    assert run("user", "check", "joe", *file, stdin=b"secret").out == "joe: ok\n"
    assert run("user", "add", "joe", "--replace", *file, stdin=b"other\n").out == "joe: replaced\n"
    assert run("user", "check", "joe", *file, stdin=b"secret\n").code == 1
    assert matches("other", read_users(users)["joe"])

    assert run("user", "add", "ann", *file, stdin=b"x\n").code == 0
    assert run("user", "list", *file).out == "joe\nann\n"
    assert run("user", "remove", "joe", *file).out == "joe: removed\n"
    assert run("user", "remove", "joe", *file).code == 1
    assert run("user", "check", "joe", *file, stdin=b"other\n").code == 1
    assert run("user", "list", *file).out == "ann\n"


def test_the_file_is_the_configurations_which_needs_not_be_usable_yet(
    run: Any, tmp_path: Path
) -> None:
    config = tmp_path / "mailstrom.toml"
    config.write_text('[listener]\nbind = ["127.0.0.1:587"]\nauth_file = "secret/users"\n')
    (tmp_path / "secret").mkdir()
    done = run("user", "add", "joe", "--config", str(config), stdin=b"secret\n")
    assert done.code == 0
    assert list(read_users(tmp_path / "secret" / "users")) == ["joe"]


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "said"),
    [
        (("add", "a:b"), b"x\n", 64, "no user name"),
        (("add", "joe"), b"", 64, "1 to 1024 characters"),
        (("add", "joe"), b"\xff\n", 64, "not UTF-8"),
        (("add", "joe"), b"a\0b\n", 64, "no NUL"),
        (("list",), b"", 78, "no such file"),
        (("remove", "joe"), b"", 78, "no such file"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    arguments: tuple[str, ...], stdin: bytes, code: int, said: str, run: Any, users: Path
) -> None:
    done = run("user", *arguments, "--file", str(users), stdin=stdin)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert not users.exists()


def test_no_file_is_named(run: Any, tmp_path: Path) -> None:
    config = tmp_path / "mailstrom.toml"
    config.write_text("[listener]\n")
    done = run("user", "list", "--config", str(config))
    assert done.code == 78
    assert "--file" in done.err


def test_a_broken_file_is_left_alone(run: Any, users: Path) -> None:
    users.write_text("joe:secret\n")
    done = run("user", "add", "ann", "--file", str(users), stdin=b"x\n")
    assert done.code == 78
    assert "line 1" in done.err
    assert users.read_text() == "joe:secret\n"


def test_who_is_added_meanwhile_by_another_is_not_replaced(
    run: Any, users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(password: str) -> str:
        users.write_text(f"joe:{hash_password('theirs')}\n")
        return hash_password(password)

    monkeypatch.setattr("mailstrom.passwords.hash_password", slowly)
    done = run("user", "add", "joe", "--file", str(users), stdin=b"ours\n")
    assert (done.code, done.out) == (1, "")
    assert "--replace" in done.err
    assert matches("theirs", read_users(users)["joe"])
