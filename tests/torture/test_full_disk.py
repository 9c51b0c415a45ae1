"""A full disk, in the short form: refused or done, nothing lost, all resumes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.trial import Plan
from tests.torture import full_disk
from tests.torture.full_disk import Disk, disk, run

LEAST = {
    "disk full at enqueue": 10,
    "disk full at checkpoint, expiry and purge": 4,
    "disk full at migration": 3,
    "no inode left": 2,
    "files and directory made read-only": 1,
    "disk full and free again under load": 3,
    "disk full and free again under load (limit on file size)": 3,
}


@pytest.mark.timeout(240)
def test_a_full_disk_loses_nothing_and_all_resumes_by_itself(tmp_path: Path) -> None:
    rows = list(run(Plan(folder=tmp_path)))
    for row in rows:
        assert row.clean, row
        assert row.tried >= LEAST[row.fault], row
    assert rows[-1].messages > 50
    assert rows[-1].worst_recovery_s is not None


def test_a_disk_is_full_until_it_is_emptied(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "1m", inodes=20) as place:
        if not place.mounted:
            pytest.skip("this process may not mount")
        place.fill()
        with pytest.raises(OSError, match="No space"):
            (place.folder / "more").write_bytes(bytes(8192))
        place.empty()
        (place.folder / "more").write_bytes(bytes(8192))
        assert place.fill_inodes() > 0
        with pytest.raises(OSError, match="No space"):
            (place.folder / "another").touch()


def test_a_delivery_that_was_erased_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault: what was delivered waits again and is sent a second time, unmarked."""
    real = Disk.empty
    calls: list[int] = []

    def empty(self: Disk) -> None:
        real(self)
        calls.append(1)
        if len(calls) == 2:  # the first cycle's mail is recorded by now
            load = loads[0]
            load.engine.tamper(
                "UPDATE recipient SET state = 'deferred', due_ms = 1, finished_ms = NULL"
                " WHERE seq = (SELECT min(seq) FROM recipient WHERE state = 'delivered')"
            )
            load.engine.tamper(
                "UPDATE message SET finished_ms = NULL"
                " WHERE seq IN (SELECT message FROM recipient WHERE finished_ms IS NULL)"
            )
            load.engine.tamper("UPDATE site SET next_due_ms = 1")

    loads: list[full_disk._Load] = []
    made = full_disk._Load.__init__

    def keep(self: full_disk._Load, *args: object, **named: object) -> None:
        made(self, *args, **named)  # type: ignore[arg-type]
        loads.append(self)

    monkeypatch.setattr(full_disk._Load, "__init__", keep)
    monkeypatch.setattr(Disk, "empty", empty)
    monkeypatch.setattr(Plan, "pick", lambda self, short, long: 2)
    probe = Disk(tmp_path / "probe", "1m")
    probe.close()
    if not probe.mounted:
        pytest.skip("this process may not mount")
    (row,) = full_disk._cycles(Plan(folder=tmp_path), mounted=True)
    assert row.silent == 1
    assert not row.clean
