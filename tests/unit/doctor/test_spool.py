"""Checks of the spool's files, its log, who shares it, and the clock, on facts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mailstrom.doctor import clock, log, sharing, spool
from mailstrom.storage.examined import (
    CheckFacts,
    FileFacts,
    Reader,
    RoomFacts,
    Sharer,
    Trouble,
    TroubleKind,
)
from tests.unit.doctor.facts import (
    CLOCK,
    FILES,
    GIB,
    LOG,
    MIB,
    NOW,
    ROWS,
    SEEN,
    file,
    levels,
    only,
    sick,
)

# --- spool ----------------------------------------------------------------------------------------


def test_a_healthy_spool_is_well() -> None:
    assert set(levels(spool.checks(SEEN)).values()) == {"ok"}


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        ("missing", "spool.found"),
        ("not_a_spool", "spool.kind"),
        ("schema", "spool.schema"),
        ("corrupt", "spool.sound"),
        ("busy", "spool.busy"),
        ("denied", "spool.readable"),
        ("other", "spool.readable"),
    ],
)
def test_a_spool_that_cannot_be_read_is_a_problem_with_a_way_out(kind: Any, check: str) -> None:
    seen = sick(trouble=Trouble(kind=kind, text="why it is so"), contents=None, check=None)
    found = only(spool.checks(seen), check)
    assert (found.level, bool(found.advice)) == ("problem", True)
    assert "{path}" not in found.advice


def test_nobody_is_told_to_change_the_modes_of_what_is_no_spool() -> None:
    """A home directory, say, that was named in the place of a file in it."""
    trouble = Trouble(kind=TroubleKind.NOT_A_SPOOL, text="/home/me: is a directory")
    files = {**FILES, "database": file("me", 0o755)}
    seen = sick(trouble=trouble, files=files, contents=None, check=None)
    assert "spool.modes" not in levels(spool.checks(seen))
    damaged = replace(seen, trouble=replace(trouble, kind=TroubleKind.CORRUPT))
    assert levels(spool.checks(damaged))["spool.modes"] == "warning"


def test_damage_is_told_once_and_the_way_out_once() -> None:
    text = "/s/spool.db: SQLite found the file damaged; put a backup in its place: restore COPY"
    trouble = Trouble(kind=TroubleKind.CORRUPT, text=text)
    found = only(spool.checks(sick(trouble=trouble, contents=None, check=None)), "spool.sound")
    assert found.found == "/s/spool.db: SQLite found the file damaged"
    assert "restore COPY" in found.advice


def test_who_may_not_read_is_not_told_that_reading_is_allowed() -> None:
    shut = {**FILES, "database": file("spool.db", readable=False, writable=False)}
    trouble = Trouble(kind=TroubleKind.DENIED, text="x")
    found = levels(spool.checks(sick(trouble=trouble, files=shut, contents=None, check=None)))
    assert "spool.writable" not in found
    assert found["spool.readable"] == "problem"


def test_a_path_with_a_blank_is_quoted_in_a_command() -> None:
    seen = sick(path="/my mail/s.db", trouble=Trouble(kind="missing", text="x"), contents=None)  # type: ignore[arg-type]
    assert "store init '/my mail/s.db'" in only(spool.checks(seen), "spool.found").advice


def test_a_copy_is_told_before_somebody_waits_for_its_mail() -> None:
    rows = replace(ROWS, copied_ms=NOW, copied_from="/old/spool.db", waiting={"queued": 7})
    found = only(spool.checks(sick(contents=rows)), "spool.copy")
    assert (found.level, found.evidence) == ("warning", {"waiting": 7})
    assert "store adopt" in found.advice


def test_broken_invariants_are_problems_and_a_long_list_is_cut() -> None:
    sentences = tuple(f"row {n} is broken: restore a copy" for n in range(9))
    told = [*spool.checks(sick(check=CheckFacts(findings=sentences, asked=39, left=0)))]
    broken = [one for one in told if one.check == "spool.sound"]
    assert [one.level for one in broken] == ["problem"] * 6
    assert (broken[0].found, broken[0].advice) == ("row 0 is broken", "Restore a copy.")
    assert "4 more" in broken[-1].found


def test_a_check_that_ran_out_of_time_does_not_say_that_all_is_sound() -> None:
    told = levels(spool.checks(sick(check=CheckFacts(findings=(), asked=39, left=3))))
    assert told["spool.checked"] == "note"
    assert "spool.sound" not in told


def test_a_disk_error_that_is_not_repaired_is_a_problem() -> None:
    flag = "nothing can be acknowledged: seen 3 s ago, and is not repaired: do this"
    found = only(spool.checks(sick(poisoned=(flag,))), "spool.disk")
    assert found.level == "problem"
    assert found.advice.endswith("do this.")
    lock = "/s: another process saw a disk error and cannot write /f; so: make that writable"
    found = only(spool.checks(sick(poisoned=(lock,))), "spool.disk")
    assert found.advice.endswith("make that writable.")
    assert "another process saw a disk error" in found.found


def test_a_directory_of_lock_files_that_is_gone_is_a_problem_where_the_spool_is_open() -> None:
    gone = {**FILES, "run": FileFacts(path="/s.db-run", error="No such file or directory")}
    one = Sharer(pid=9, command="app", copies=1, writes=True, ours=True)
    found = only(spool.checks(sick(files=gone, sharers=(one,))), "spool.directory")
    assert found.level == "problem"
    assert "/s.db-run: No such file" in found.found
    assert "spool.directory" not in levels(spool.checks(sick(files=gone, sharers=())))
    assert "spool.directory" not in levels(spool.checks(sick(sharers=(one,))))


@pytest.mark.parametrize(
    ("free", "total", "level"),
    [
        (4 * MIB, GIB, "problem"),
        (100 * MIB, GIB, "warning"),
        (GIB, 100 * GIB, "warning"),
        (GIB, 10 * GIB, "ok"),
        (50 * GIB, 4000 * GIB, "ok"),
    ],
)
def test_room_on_the_disk(free: int, total: int, level: str) -> None:
    room = RoomFacts(free_bytes=free, total_bytes=total, free_files=None)
    assert levels(spool.checks(sick(room=room)))["spool.room"] == level


def test_a_network_file_system_and_a_disk_without_inodes_are_told() -> None:
    room = RoomFacts(free_bytes=GIB, total_bytes=GIB, free_files=3, network="it is nfs")
    told = levels(spool.checks(sick(room=room)))
    assert (told["spool.local"], told["spool.inodes"]) == ("problem", "warning")


@pytest.mark.parametrize(
    ("name", "one", "check"),
    [
        ("database", file("spool.db", 0o644), "spool.modes"),
        ("log", file("spool.db-wal", 0o602), "spool.modes"),
        ("run", file("spool.db-run", 0o707), "spool.modes"),
        ("directory", file("", 0o777), "spool.modes"),
        ("log", file("spool.db-wal", uid=0), "spool.owner"),
    ],
)
def test_files_that_others_may_read_or_change_are_a_warning(
    name: str, one: FileFacts, check: str
) -> None:
    findings = [*spool.checks(sick(files={**FILES, name: one}))]
    assert levels(findings)[check] == "warning"
    assert one.path in next(found.advice for found in findings if found.check == check)


def test_files_with_wrong_modes_are_one_finding_and_one_command() -> None:
    files = {**FILES, "database": file("spool.db", 0o644), "log": file("spool.db-wal", 0o644)}
    found = only(spool.checks(sick(files=files)), "spool.modes")
    assert found.advice == "chmod o-rwx /s/spool.db /s/spool.db-wal"


def test_a_shared_spool_is_its_groups_affair() -> None:
    shared = {name: replace(one, mode=one.mode | 0o060) for name, one in FILES.items()}
    shared["directory"] = file("", 0o2770)
    shared["log"] = replace(shared["log"], uid=7)
    assert levels(spool.checks(sick(files=shared)))["spool.modes"] == "ok"


def test_who_may_only_read_is_told_and_it_is_no_fault() -> None:
    files = {**FILES, "database": file("spool.db", writable=False)}
    assert levels(spool.checks(sick(files=files)))["spool.writable"] == "note"


def test_who_may_not_even_read_is_not_told_that_he_may() -> None:
    files = {**FILES, "database": file("spool.db", readable=False, writable=False)}
    denied = Trouble(kind=TroubleKind.DENIED, text="cannot be opened")
    found = levels(spool.checks(sick(files=files, trouble=denied, contents=None, check=None)))
    assert found["spool.readable"] == "problem"
    assert "spool.writable" not in found


def test_a_second_name_is_a_problem() -> None:
    assert levels(spool.checks(sick(named="has a second name")))["spool.name"] == "problem"


def test_what_is_no_spool_is_left_as_its_owner_has_it() -> None:
    """A directory has more names than one, and a file named by mistake may be for all to read."""
    other = Trouble(kind=TroubleKind.NOT_A_SPOOL, text="is a directory")
    files = {**FILES, "database": file("", 0o755)}
    seen = sick(trouble=other, named="has a second name", files=files, contents=None, check=None)
    assert set(levels(spool.checks(seen))) == {"spool.kind", "spool.room"}


# --- log ------------------------------------------------------------------------------------------


def test_a_short_log_is_well() -> None:
    assert levels(log.checks(SEEN)) == {"log.length": "ok"}


@pytest.mark.parametrize(
    ("size", "pinned", "level"),
    [
        (65 * MIB, None, "note"),
        (65 * MIB, "process 9 (report) keeps it: end its transaction", "warning"),
        (GIB, "process 9 (report) keeps it: end its transaction", "problem"),
        (GIB, None, "problem"),
    ],
)
def test_a_long_log_is_as_bad_as_what_it_stops(size: int, pinned: str | None, level: str) -> None:
    found = only(log.checks(sick(log=replace(LOG, size=size, pinned=pinned))), "log.length")
    assert found.level == level
    assert ("process 9 (report)" in found.found) == (pinned is not None)


def test_a_reader_that_stays_is_named_before_the_log_is_long() -> None:
    reader = Reader(pid=77, command="psql-like", looked_s=1.2, behind_frames=40)
    found = only(log.checks(sick(log=replace(LOG, readers=(reader,)))), "log.reader")
    assert found.level == "note"
    assert "process 77 (psql-like)" in found.found
    assert "kill 77" in found.advice


def test_who_keeps_the_write_lock_is_a_problem() -> None:
    writer = "process 8 (x) has held the write lock for more than a second: nothing is accepted; so"
    found = only(log.checks(sick(log=replace(LOG, writer=writer))), "log.writer")
    assert (found.level, found.evidence) == ("problem", {})
    assert "process 8 (x)" in found.found


def test_who_writes_is_not_told_as_a_reader_too() -> None:
    reader = Reader(pid=8, command="x", looked_s=1.2, behind_frames=0)
    sentence = "process 8 (x) has held the write lock for more than a second: nothing is accepted"
    both = replace(LOG, writer=sentence, readers=(reader, replace(reader, pid=88)))
    found = [*log.checks(sick(log=both))]
    assert "process 88 (x)" in only(found, "log.reader").found
    assert "0 pages" not in only(found, "log.reader").found


# --- sharing --------------------------------------------------------------------------------------

SQLITE = ("/usr/lib/libsqlite3.so.0", "3.40.1")


@pytest.mark.parametrize(
    ("copies", "writes", "ours", "libraries", "check", "level"),
    [
        (1, True, True, (), "sharing.copies", "ok"),
        (2, True, True, (SQLITE,), "sharing.copies", "problem"),
        (1, True, True, (SQLITE,), "sharing.loaded", "note"),
        (1, True, False, (SQLITE,), "sharing.writer", "warning"),
        (1, False, False, (SQLITE,), "sharing.copies", "ok"),
        (1, True, False, (), "sharing.writer", "warning"),
    ],
)
def test_a_process_that_shares_the_spool(
    copies: int, writes: bool, ours: bool, libraries: Any, check: str, level: str
) -> None:
    one = Sharer(pid=9, command="app", copies=copies, writes=writes, ours=ours, libraries=libraries)
    found = [*sharing.checks(sick(sharers=(one,)))]
    assert levels(found)[check] == level
    worse = [each for each in found if each.level != "ok"]
    assert all("process 9 (app)" in each.found for each in worse)


def test_an_old_sqlite_that_writes_is_called_what_it_is() -> None:
    def told(version: str) -> str:
        one = Sharer(
            pid=9, command="app", copies=1, writes=True, ours=False, libraries=(("/l", version),)
        )
        return only(sharing.checks(sick(sharers=(one,))), "sharing.writer").found

    assert "3.40.1, which can corrupt" in told("3.40.1")
    assert "corrupt" not in told("3.51.3")


def test_processes_that_cannot_be_looked_at_are_numbered() -> None:
    found = only(sharing.checks(sick(hidden=(5, 6))), "sharing.hidden")
    assert found.level == "note"
    assert found.found.startswith("2 processes of other users")
    assert "(5, 6)" in found.found


# --- clock ----------------------------------------------------------------------------------------


def test_a_clock_that_goes_is_well() -> None:
    assert levels(clock.checks(CLOCK, True)) == {"clock.jump": "ok", "clock.sync": "ok"}


@pytest.mark.parametrize(("synchronised", "level"), [(None, "note"), (False, "note"), (True, "ok")])
def test_the_kernels_word_on_the_clock(synchronised: bool | None, level: str) -> None:
    assert levels(clock.checks(CLOCK, synchronised))["clock.sync"] == level


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"wall_ms": NOW + 3_600_000}, "warning", "1 hour ahead"),
        ({"wall_ms": NOW - 7_200_000}, "warning", "2 hours back"),
        ({"wall_ms": NOW + 30_000}, "ok", ""),
        ({"boot": "next", "monotonic_ms": 5, "wall_ms": NOW - 90_000}, "problem", "went back"),
        ({"boot": "next", "monotonic_ms": 5, "wall_ms": NOW + 90_000}, "ok", ""),
        ({"row_wall_ms": -1, "newest_ms": NOW + 86_400_000}, "warning", "1 day from now"),
        ({"row_wall_ms": -1, "newest_ms": None}, "ok", ""),
    ],
)
def test_a_clock_that_was_moved(changes: dict[str, Any], level: str, words: str) -> None:
    found = only(clock.checks(replace(CLOCK, **changes), True), "clock.jump")
    assert found.level == level
    assert words in found.found


def test_a_clock_of_another_century_is_a_problem() -> None:
    early = replace(CLOCK, wall_ms=0, row_wall_ms=-1, newest_ms=None)
    assert levels(clock.checks(early, True))["clock.time"] == "problem"


def test_jumps_of_a_day_are_told_and_older_ones_are_not() -> None:
    jumps = ((NOW - 1000, -3_600_000), (NOW - 5000, 60_000), (NOW - 200_000_000, 60_000))
    found = only(clock.checks(replace(CLOCK, jumps=jumps), True), "clock.jumps")
    assert (found.level, found.evidence["jumps"]) == ("warning", 2)
    assert "1 hour back" in found.found
    assert "clock.jumps" not in levels(clock.checks(replace(CLOCK, jumps=jumps[2:]), True))
