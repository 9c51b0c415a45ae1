"""The table of docs/reliability.md: steps of one kind are one row, with all that was found."""

from __future__ import annotations

from tests.torture.table import Row, merged


def test_steps_of_one_kind_are_one_row_with_all_that_was_found() -> None:
    other = Row(part="power", fault="power cut: torn", tried=3)
    rows = [
        Row(part="named_kills", fault="C1: client: killed", tried=2, messages=6),
        other,
        Row(part="named_kills", fault="W3: router: killed", tried=1, messages=5, lost=1, silent=2,
            marked=3, worst_recovery_s=0.5, findings=("stuck",)),
        Row(part="named_kills", fault="W3: router: stopped for 3 s", tried=4),
    ]  # fmt: skip
    assert merged(rows) == [
        Row(part="named_kills", fault="at each named step: killed", tried=3, messages=11, lost=1,
            silent=2, marked=3, worst_recovery_s=0.5, findings=("W3: stuck",)),
        other,
        Row(part="named_kills", fault="at each named step: stopped for 3 s", tried=4),
    ]  # fmt: skip
