"""CSV is exact for a program, and harmless on a terminal."""

from __future__ import annotations

import pytest

from mailstrom.cli import output


@pytest.mark.parametrize(("terminal", "shown"), [(False, "a\u202eb"), (True, "a\\u202eb")])
def test_text_that_turns_its_direction(
    terminal: bool, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "terminal", lambda: terminal)
    output.print_csv(["x", "y"], [["a\u202eb", None], [b"\x01", 2]])
    octets = "x'01'" if terminal else "01"
    assert capsys.readouterr().out == f"x,y\n{shown},\n{octets},2\n"
