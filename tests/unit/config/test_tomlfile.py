"""A TOML file, however broken, is read or refused in words, by engine and client alike."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailstrom.client import locate
from mailstrom.config import from_tables, load
from mailstrom.errors import ConfigError
from mailstrom.tomlfile import LARGEST_FILE, tables

DEEP = 5_000

BROKEN: dict[str, tuple[bytes, str]] = {
    "nested lists": (b"x = " + b"[" * DEEP + b"]" * DEEP, "nested too deeply"),
    "nested tables": (b"x = " + b"{a=" * DEEP + b"1" + b"}" * DEEP, "nested too deeply"),
    "nested keys": (b".".join([b"x"] * 200_000) + b" = 1", "nested too deeply"),
    "quoted keys": (b"x = {" + b'"". ' * 5_000 + b"y = 1}", "nested too deeply"),
    "digits": (b"x = " + b"9" * 5_000, "4300 digits"),
    "no such day": (b"x = 2026-02-31", "not TOML"),
    "nul": (b"\0" * 100, "not TOML"),
    "utf-16": ('store = "ü"'.encode("utf-16"), "not UTF-8 at byte 0"),
    "not utf-8 behind a mark": (b'\xef\xbb\xbfa = "\xff"', "not UTF-8 at byte 8"),
    "two marks": (b"\xef\xbb\xbf" * 2, "not TOML"),
    "endless": (b"#" * (LARGEST_FILE + 1), "longer than"),
}

Reader = Callable[[Path], object]
READERS: dict[str, Reader] = {
    "engine": lambda file: load(file, environ={}),
    "client": lambda file: locate.locate_store(None, file, {}),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", BROKEN)
def test_what_no_parser_takes_is_refused_in_words(case: str, reader: str, tmp_path: Path) -> None:
    data, words = BROKEN[case]
    file = tmp_path / "mailstrom.toml"
    file.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        READERS[reader](file)
    assert str(caught.value).startswith(f"{file}: ")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(file))


@pytest.mark.parametrize("reader", READERS)
def test_a_byte_order_mark_is_passed_over(reader: str, tmp_path: Path) -> None:
    file = tmp_path / "mailstrom.toml"
    file.write_text('store = "spool.db"\n', encoding="utf-8-sig")
    found = READERS[reader](file)
    assert getattr(found, "store", found) == str(tmp_path / "spool.db")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["x" * 5_000, "x" * 300, "/" + "x/" * 50_000, "a\0b"])
def test_a_name_that_no_file_can_have_is_a_missing_file(name: str, reader: str) -> None:
    with pytest.raises(ConfigError, match="no such configuration file") as caught:
        READERS[reader](Path(name))
    assert len(str(caught.value)) < 4_500


@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_may_not_be_looked_for_is_no_missing_one(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "shut" / "mailstrom.toml"
    look = os.stat

    def stat(path: Any, **how: Any) -> os.stat_result:
        """As the system tells a user who may not enter; root may enter everywhere."""
        if str(path) == str(file):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return look(path, **how)

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(ConfigError, match=r"toml: cannot be reached by this user") as caught:
        READERS[reader](file)
    assert "create it" not in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 5_000, "memory:" + "x" * 5_000, "/tmp/" + "x/" * 50_000])
def test_a_name_that_no_spool_can_have_is_refused_and_not_repeated(name: str) -> None:
    with pytest.raises(ConfigError, match="no spool's name has more than 4096") as caught:
        locate.locate_store(name, None, {})
    assert len(str(caught.value)) < 300


def test_values_beyond_every_number_and_every_depth_are_refused_in_words(tmp_path: Path) -> None:
    file = tmp_path / "mailstrom.toml"
    file.write_text(f"[delivery]\nworkers = 0x{'f' * 20_000}\n")
    with pytest.raises(ConfigError, match="a number of thousands of digits does not fit"):
        load(file, environ={})
    file.write_text(f"store = 0x{'f' * 20_000}\n")
    with pytest.raises(ConfigError, match="must be a path in quotes, not int"):
        locate.locate_store(None, file, {})
    endless: dict[str, object] = {}
    endless["delivery"] = endless
    with pytest.raises(ConfigError, match="nested too deeply"):
        from_tables(endless, environ={})
    deep: list[object] = []
    for _ in range(DEEP):
        deep = [deep]
    with pytest.raises(ConfigError, match=r"nested too deeply|does not fit"):
        from_tables({"relay": {"hosts": deep}}, environ={})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.binary(max_size=60) | st.text(alphabet='[]{}=."\n\\#-:ea0_9', max_size=60))
def test_any_bytes_are_tables_or_refused(tmp_path: Path, data: bytes | str) -> None:
    file = tmp_path / "any.toml"
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    for whole in (False, True):
        with contextlib.suppress(ConfigError):
            assert isinstance(tables(file, whole=whole), dict)
