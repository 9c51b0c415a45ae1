"""``mailstrom doctor``: what is printed, what scripts get, how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mailstrom import Mailstrom, __version__
from mailstrom.doctor import examination
from mailstrom.doctor.examination import Examination
from mailstrom.doctor.finding import Finding, note, ok, ordered, problem, warning
from tests.support.engine import environment
from tests.unit.cli.test_process import on_terminal

ESCAPE = "\x1b[2J\u202e"
LONG = "word " * 60


def examined(*findings: Finding, **changes: Any) -> Examination:
    values: dict[str, Any] = {
        "at_ms": 1_900_000_000_000,
        "seconds": 1.234,
        "store": "/s/spool.db",
        "file": None,
        "network": True,
    }
    return Examination(findings=tuple(ordered(findings)), **{**values, **changes})


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the next examination find this; what it was asked is kept."""
    asked: list[tuple[Any, ...]] = []

    def find(*findings: Finding, **changes: Any) -> list[tuple[Any, ...]]:
        def answer(*arguments: Any, **options: Any) -> Examination:
            asked.append((*arguments, options))
            return examined(*findings, **changes)

        monkeypatch.setattr(examination, "examined", answer)
        return asked

    return find


WELL = ok("spool.found", "found", bytes=4096)


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ((WELL,), 0),
        ((WELL, note("clock.sync", "x")), 0),
        ((WELL, warning("spool.modes", "x", "y")), 1),
        ((WELL, problem("queue.moving", "x", "y")), 1),
        ((problem("spool.found", "x", "y"),), 1),
        ((problem("spool.busy", "x", "y"), warning("spool.modes", "x", "y")), 75),
        ((problem("spool.kind", "x", "y"),), 78),
        ((problem("spool.schema", "x", "y"),), 78),
        ((problem("configuration.file", "x", "y"), problem("spool.busy", "x", "y")), 78),
        ((warning("configuration.secret", "x", "y"),), 1),
    ],
)
def test_the_exit_code_is_for_monitoring(
    run: Any, found: Any, findings: tuple[Finding, ...], code: int
) -> None:
    found(*findings)
    for form in ((), ("--json",)):
        done = run("doctor", *form)
        assert (done.code, done.err) == (code, "")
        assert done.out


def test_people_read_the_worst_first_with_what_to_do(run: Any, found: Any) -> None:
    found(
        WELL,
        note("queue.sites", "one rests"),
        problem("outgoing.port", "it is closed", "Open it: 'nc -v x 25'."),
        warning("spool.modes", "anybody may read", "chmod 600 /s/spool.db"),
    )
    assert (
        run("doctor").out
        == f"""\
mailstrom {__version__} looked at /s/spool.db (no configuration file).

PROBLEM  outgoing.port
         It is closed.
         > Open it: 'nc -v x 25'.

WARNING  spool.modes
         Anybody may read.
         > chmod 600 /s/spool.db

NOTE     queue.sites
         One rests.

OK       spool.found  found

Not well: 1 problem, 1 warning, 1 note, 1 check ok (1.2 s).
"""
    )


def test_a_sentence_begins_large_and_a_name_stays_as_it_is(run: Any, found: Any) -> None:
    found(warning("outgoing.port", "mx1.x.test [192.0.2.1]:25 can be reached", "x"),
          warning("spool.kind", "memory:x: only this process sees it", "x"),
          warning("spool.modes", "every user may read it", "x"))  # fmt: skip
    out = run("doctor").out
    for words in ("         mx1.x.test [", "         memory:x: only", "         Every user may"):
        assert words in out


def test_foreign_words_move_no_cursor_and_lines_fit(run: Any, found: Any) -> None:
    path = "/a/" + "long" * 40
    found(
        ok("dns.servers", LONG),
        problem("queue.sites", f"said {ESCAPE} {LONG}", f"see {path} {ESCAPE}{LONG}"),
        store=f"/s{ESCAPE}",
        file=f"/f{ESCAPE}",
    )
    out = run("doctor").out
    assert ESCAPE[0] not in out
    assert ESCAPE[-1] not in out
    assert "\\x1b" in out
    assert path in out  # never broken: it may be copied
    assert [line for line in out.splitlines() if len(line) > 100 and path not in line] == []
    record = run("doctor", "--json").out
    assert record.isascii()
    assert ESCAPE in json.loads(record)["findings"][0]["found"]


def test_scripts_get_one_object(run: Any, found: Any) -> None:
    found(WELL, problem("outgoing.port", "closed", "open it", host="mx", port=25, error=None))
    done = run("doctor", "--json")
    assert done.out.count("\n") == 1
    record = json.loads(done.out)
    assert record == {
        "version": __version__,
        "at": "2030-03-17T17:46:40.000Z",
        "seconds": 1.234,
        "store": "/s/spool.db",
        "configuration": None,
        "network": True,
        "level": "problem",
        "summary": {"problem": 1, "warning": 0, "note": 0, "ok": 1},
        "findings": [
            {
                "check": "outgoing.port",
                "level": "problem",
                "found": "closed",
                "advice": "open it",
                "evidence": {"host": "mx", "port": 25, "error": None},
            },
            {
                "check": "spool.found",
                "level": "ok",
                "found": "found",
                "advice": "",
                "evidence": {"bytes": 4096},
            },
        ],
    }


def test_what_is_asked_of_the_examination(run: Any, found: Any, tmp_path: Path) -> None:
    asked = found(WELL)
    store = str(tmp_path / "s.db")
    run("doctor", "--store", store, "--no-network", "--probe", "Bücher.example")
    store_name, config, errors, options = asked[0]
    assert (store_name, config.store, errors) == (store, store, ())
    assert options == {"with_network": False, "probe": "xn--bcher-kva.example"}


@pytest.mark.parametrize("probe", ["[127.0.0.1]", "127.0.0.1", "a b", "x\r\ny", ""])
def test_a_probe_is_a_domain(run: Any, found: Any, probe: str) -> None:
    found(WELL)
    done = run("doctor", "--probe", probe)
    assert (done.code, done.out) == ((64, "") if probe else (0, done.out))


def test_without_a_configuration_that_can_be_used(run: Any, tmp_path: Path) -> None:
    file, store = tmp_path / "m.toml", tmp_path / "s.db"
    file.write_text('storre = "s.db"\nhostname = "not a name"\n')
    Mailstrom(store).close()
    done = run("doctor", "--config", str(file), "--store", str(store), "--json")
    assert done.code == 78
    record = json.loads(done.out)
    checks = {(one["check"], one["level"]) for one in record["findings"]}
    assert ("configuration.file", "problem") in checks
    assert ("spool.found", "ok") in checks
    assert record["network"] is False
    file.write_text("no toml at all")
    record = json.loads(run("doctor", "--config", str(file), "--json").out)
    assert ("spool.found", "note") in {(f["check"], f["level"]) for f in record["findings"]}
    missing = run("doctor", "--config", str(tmp_path / "none.toml"), "--no-network")
    assert missing.code == 78
    assert "no such configuration file" in " ".join(missing.out.split())
    assert "an unusable configuration" in missing.out


def test_a_spool_that_is_not_there_is_not_made(run: Any, tmp_path: Path) -> None:
    store = tmp_path / "none" / "s.db"
    done = run("doctor", "--no-network", "--store", str(store))
    assert done.code == 1
    assert f"There is no spool at {store}." in " ".join(done.out.split())
    assert not store.parent.exists()
    done = run("doctor", "--no-network", "--store", "memory:x")
    assert done.code == 78


def test_a_file_that_is_no_spool_is_not_touched(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "letter.txt"
    file.write_text("Dear Sir or Madam\n")
    done = run("doctor", "--no-network", "--store", str(file))
    assert done.code == 78
    assert "PROBLEM  spool.kind" in done.out
    assert file.read_text() == "Dear Sir or Madam\n"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["letter.txt"]


# Another user: the process gives its rights away once everything is loaded (its interpreter may lie
# where that user cannot read it).
_AS_NOBODY = """
import os, sys
from mailstrom.cli import main
from mailstrom.doctor import examination
apart, examination.apart = examination.apart, lambda ask, seconds: ask()  # loaded here
main(["doctor", "--no-network", "--json", "--store", sys.argv[1]])
examination.apart = apart
os.seteuid(65534)
print("--", flush=True)
sys.exit(main(["doctor", "--no-network", "--json", "--store", sys.argv[1]]))
"""


def as_another(store: Path) -> tuple[int, dict[str, tuple[str, str]]]:
    """Exit code and findings as a user who owns nothing; as who is no root, without the modes."""
    program = _AS_NOBODY if os.geteuid() == 0 else _AS_NOBODY.replace("os.seteuid(65534)", "")
    if os.geteuid() != 0:
        for file in store.parent.iterdir():
            file.chmod(0)
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, str(store)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.stderr == ""
    record = json.loads(done.stdout.partition("--\n")[2])
    return done.returncode, {
        one["check"]: (one["level"], one["found"] + one["advice"]) for one in record["findings"]
    }


def test_another_users_spool(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    store = folder / "s.db"
    Mailstrom(store).close()
    for parent in (folder, *list(folder.parents)[:-2]):  # it may be entered, and read not
        parent.chmod(parent.stat().st_mode | 0o011)
    code, told = as_another(store)
    assert code == 1
    level, words = told["spool.readable"]
    assert level == "problem"
    assert "sudo mailstrom doctor" in words
    assert "engine.running" not in told
    if os.geteuid() == 0:
        folder.chmod(0o700)
        code, told = as_another(store)
        assert (code, told["spool.readable"][0]) == (1, "problem")


def test_the_whole_network_half_is_bounded_and_its_silence_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mailstrom.config import from_tables

    config = from_tables({"store": str(tmp_path / "s.db"), "hostname": "a.test"})
    package = tmp_path / "stalled_half"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "deaf.py").write_text("import time\ntime.sleep(600)\n")
    (package / "broken.py").write_text("import sys\nsys.exit('no such luck')\n")
    (package / "wrong.py").write_text("print('hello')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setattr(examination, "PATIENCE_S", 2.0)
    for name, words in (
        ("stalled_half.deaf", "no answer within 2 s"),
        ("stalled_half.broken", "ended with 1: no such luck"),
        ("stalled_half.wrong", "cannot be read"),
        ("not_there.at_all", "'not_there' is not installed"),
    ):
        monkeypatch.setattr(examination, "_WORKER", name)
        told = examination.examined(None, config).findings
        [silent] = [one for one in told if one.check == "outgoing.looked"]
        assert silent.level == "problem"
        assert words in silent.found


def test_on_a_terminal_it_fits_and_nothing_to_copy_is_broken(tmp_path: Path) -> None:
    store = tmp_path / "a-folder-with-a-long-name" / "spool.db"
    store.parent.mkdir()
    Mailstrom(store).close()
    store.chmod(0o644)
    lines = on_terminal(["doctor", "--no-network", "--store", str(store)], 80)
    assert [line for line in lines if len(line) > 80 and str(store) not in line] == []
    assert "WARNING  spool.modes" in lines
    assert any(str(store) in line for line in lines[1:])
