"""Every command: what it asks of the client, what it prints, how it ends."""

from __future__ import annotations

import csv
import io
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest

from mailstrom import Mailstrom, errors
from mailstrom.cli.app import COMMANDS, root
from mailstrom.cli.exits import MEANINGS, Exit, exit_of
from mailstrom.cli.sql import command as sql_command
from mailstrom.types import Status

MAIL = b"From: a@x.test\nTo: b@y.test\nSubject: hi\n\nbody\n"


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# -- exit codes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidMessage("x"), 65),
        (errors.InvalidAddress("x"), 65),
        (errors.IdempotencyConflict("x"), 65),
        (errors.MessageNotFound("x"), 1),
        (errors.ConfigError("x"), 78),
        (errors.OutcomeUnknown("x", key="k"), 75),
        (errors.SpoolBusy("x"), 75),
        (errors.SpoolFull("x"), 75),
        (errors.SpoolReadOnly("x"), 73),
        (errors.SpoolCorrupt("x"), 1),
        (errors.NotASpool("x"), 78),
        (errors.SchemaMismatch("x"), 78),
        (errors.SpoolError("x"), 73),
    ],
)
def test_each_error_ends_with_its_code_and_one_sentence(
    run: Any, fake: Any, error: Exception, code: int
) -> None:
    fake.FakeClient.error = error
    done = run("send", stdin=MAIL)
    assert (done.code, done.out, done.err) == (code, "", "mailstrom: x\n")


def test_every_error_class_of_ours_has_a_code() -> None:
    ours = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)]
    for cls in ours:
        assert exit_of(cls.__new__(cls)) is not None
    assert exit_of(ValueError("bug")) is None


def test_every_exit_code_is_documented() -> None:
    assert set(MEANINGS) == set(Exit)
    assert sorted(MEANINGS) == [0, 1, 64, 65, 73, 74, 75, 78]


@pytest.mark.parametrize("group", [(), ("queue",), ("report",), ("store",), ("config",)])
def test_a_group_without_a_command_shows_its_help(run: Any, group: tuple[str, ...]) -> None:
    done = run(*group)
    assert f"{done.out}{done.err}".strip() == run(*group, "--help").out.strip()


def test_a_bug_shows_its_traceback(run: Any, fake: Any) -> None:
    fake.FakeClient.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        run("send", stdin=MAIL)


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("status",),
        ("send", "--at", "tomorrow"),
        ("send", "--wait=0"),
        ("send", "--wait=soon"),
        ("send", "--priority", "top"),
        ("send", "/no/such/file"),
        ("send", "-"),  # standard input is empty
        ("queue", "cancel"),
        ("queue", "hold", "--yes"),
        ("queue", "release", "--dry-run"),
        ("show",),
        ("resolve", "x"),
        ("report", "nonsense"),
        ("report", "domains", "--format", "xml"),
        ("tail", "--type", "nonsense"),
        ("tail", "-n", "1", "--since", "1h"),
        ("store", "backup"),
        ("store", "purge", "--older-than", "old"),
        ("destinations", "show"),
        ("queue", "retry", "--yes"),
        ("queue", "list", "--status", "partial"),
        ("queue", "list", "--limit", "-1"),
        ("send", "--stream", "a b"),
        ("send", "--metadata", "customer"),
        ("send", "--metadata", "a=1", "--metadata", "a=2"),
        ("send", "--on-doubt", "ask"),
        ("send", "--expires", "never"),
        ("send", "--wait", "20"),
        ("sql", "select 1; select 2"),
        ("sql", ""),
        ("sql", "--json", "--csv", "select 1"),
        ("demo", "-n", "0"),
        ("serve", "--workers", "0"),
        ("serve", "extra"),
        ("queue", "list", "--limit", "9" * 20),
        ("queue", "list", "--tag", "\udcff"),
        ("queue", "cancel", "--yes", "--stream", "\udcff"),
        ("report", "domains", "--limit", "9" * 20),
        ("report", "latency", "--limit", "9" * 20),
        ("report", "latency", "--stream", "\udcff"),
        ("destinations", "show", "\udcff"),
        ("sql", "select '\udcff'"),
    ],
)
def test_a_wrong_command_line_exits_64_and_touches_nothing(
    run: Any, fake: Any, arguments: tuple[str, ...]
) -> None:
    done = run(*arguments)
    assert done.code == 64
    assert "Error" in done.err
    assert fake.FakeClient.calls == []


def test_version(run: Any) -> None:
    from mailstrom import __version__

    assert run("version").out == run("--version").out == f"mailstrom {__version__}\n"
    assert json_lines(run("version", "--json").out) == [{"version": __version__}]


def test_help_names_every_command(run: Any) -> None:
    done = run("--help")
    assert done.code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in done.out
        assert run(name, "--help").code == 0
    _, _, codes = done.out.partition("Exit codes: ")
    assert [int(code) for code in re.findall(r"(?<!\w)\d+", codes)] == sorted(MEANINGS)


# -- send ----------------------------------------------------------------------------------------


def test_send_prints_the_id_alone(run: Any, fake: Any, tmp_path: Path) -> None:
    file = tmp_path / "mail.eml"
    file.write_bytes(MAIL)
    done = run("send", str(file))
    assert (done.code, done.out, done.err) == (0, "id-1\n", "")
    _, content, options = next(call for call in fake.FakeClient.calls if call[0] == "send")
    assert content == MAIL
    assert options["sender"] is None
    assert options["recipients"] is None
    assert options["send_at"] is None
    assert fake.FakeClient.calls[-1] == ("close",)


def test_send_passes_every_option(run: Any, fake: Any) -> None:
    done = run(
        *("send", "--store", "s.db", "--config", "c.toml", "-f", "", "--to", "a@b.test"),
        *("--to", "c@d.test", "--at", "2030-01-31T08:00:00+02:00", "--tag", "x", "--tag", "y"),
        *("--key", "k", "--stream", "bulk", "--priority", "low", "--require-tls", "-"),
        *("--expires", "2030-02-01T08:00:00Z", "--metadata", "a=1=2", "--metadata", "b="),
        *("--on-doubt", "hold", "--notify", "failure,delay"),
        stdin=MAIL,
    )
    assert done.code == 0
    assert fake.FakeClient.calls[0] == ("open", "s.db", "c.toml")
    assert fake.FakeClient.calls[1] == (
        "send",
        MAIL,
        {
            "sender": "",
            "recipients": ["a@b.test", "c@d.test"],
            "send_at": datetime(2030, 1, 31, 6, tzinfo=UTC),
            "tags": ("x", "y"),
            "idempotency_key": "k",
            "stream": "bulk",
            "priority": "low",
            "require_tls": True,
            "expires_at": datetime(2030, 2, 1, 8, tzinfo=UTC),
            "metadata": {"a": "1=2", "b": ""},
            "on_doubt": "hold",
            "notify": ["failure", "delay"],
        },
    )


def test_send_notify_takes_words_that_there_are(run: Any, fake: Any) -> None:
    assert run("send", "--notify", "never", stdin=MAIL).code == 0
    assert fake.FakeClient.calls[1][2]["notify"] == "never"
    calls = list(fake.FakeClient.calls)
    for wrong in ("", "always", "never,failure", "failure,"):
        done = run("send", "--notify", wrong, stdin=MAIL)
        assert (done.code, "failure, success" in done.err) == (64, True), done.err
    assert fake.FakeClient.calls == calls


def test_send_at_takes_a_delay(run: Any, fake: Any) -> None:
    before = datetime.now(UTC)
    run("send", "--at", "30m", stdin=MAIL)
    send_at = fake.FakeClient.calls[1][2]["send_at"]
    slack = timedelta(milliseconds=1)  # the spool's clock counts whole milliseconds
    assert before - slack <= send_at - timedelta(minutes=30) <= datetime.now(UTC) + slack


@pytest.mark.parametrize(
    ("option", "limit"),
    [("--wait", None), ("--wait=2.5", 2.5), ("--wait=2m", 120.0)],
)
def test_send_waits_until_final(
    run: Any, fake: Any, option: str, limit: float | None, tmp_path: Path
) -> None:
    file = tmp_path / "mail.eml"
    file.write_bytes(MAIL)
    delivered = fake.recipient("b@y.test", Status.DELIVERED)
    fake.FakeClient.messages = {"id-1": fake.message("id-1", delivered)}
    done = run("send", option, str(file))
    assert (done.code, done.out) == (0, "id-1\n")
    assert ("wait", "id-1", limit) in fake.FakeClient.calls


def test_a_number_behind_wait_is_told_how_to_be_a_limit(run: Any, fake: Any) -> None:
    assert "write --wait=20" in run("send", "--wait", "20", stdin=MAIL).err
    assert fake.FakeClient.calls == []


def test_send_wait_exits_1_and_says_which_recipient_failed(run: Any, fake: Any) -> None:
    delivered = fake.recipient("a@x.test", Status.DELIVERED)
    fake.FakeClient.messages = {"id-1": fake.message("id-1", delivered, fake.REFUSED)}
    done = run("send", "--wait", stdin=MAIL)
    assert (done.code, done.out) == (1, "id-1\n")
    assert done.err == "mailstrom: b@x.test: failed (bounced) 550 5.1.1 no such \\x1b[2Juser\n"


def test_send_wait_exits_75_when_time_runs_out_and_the_id_is_known(run: Any, fake: Any) -> None:
    fake.FakeClient.messages = {"id-1": fake.message("id-1", fake.recipient("b@y.test"))}
    done = run("send", "--wait=1", stdin=MAIL)
    assert (done.code, done.out) == (75, "id-1\n")
    assert "accepted but not final" in done.err


def test_send_json_is_one_status_object(run: Any, fake: Any) -> None:
    fake.FakeClient.messages = {"id-1": fake.message("id-1", fake.recipient("b@y.test"))}
    expected = fake.FakeClient.messages["id-1"].to_dict()
    assert json_lines(run("send", "--json", stdin=MAIL).out) == [expected]
    timed_out = run("send", "--json", "--wait=1", stdin=MAIL)
    assert (timed_out.code, json_lines(timed_out.out)) == (75, [expected])


# -- status --------------------------------------------------------------------------------------


def test_status_shows_each_recipient_without_control_characters(run: Any, fake: Any) -> None:
    deferred = fake.recipient(
        "a@x.test", Status.DEFERRED, attempts=2, next_attempt_at=fake.NOW, in_doubt=True
    )
    fake.FakeClient.messages = {
        "id-1": fake.message("id-1", deferred, fake.REFUSED, subject="a\x1b[31m\nb", tags=("t",))
    }
    done = run("status", "id-1")
    assert done.code == 0
    assert "\x1b" not in done.out
    assert "subject:     a\\x1b[31m\\x0ab\n" in done.out
    (line,) = (line for line in done.out.splitlines() if line.startswith("a@x.test"))
    assert line.split() == [
        "a@x.test",
        "deferred",
        "(in",
        "doubt)",
        "2",
        "2030-01-31T08:00:00.000Z",
    ]
    (line,) = (line for line in done.out.splitlines() if line.startswith("b@x.test"))
    assert "550 5.1.1 no such" in line


def test_status_json_is_to_dict(run: Any, fake: Any) -> None:
    fake.FakeClient.messages = {"id-1": fake.message("id-1", fake.REFUSED)}
    done = run("status", "id-1", "--json")
    assert json_lines(done.out) == [fake.FakeClient.messages["id-1"].to_dict()]
    assert done.out.isascii()
    assert "\x1b" not in done.out


def test_status_of_an_unknown_id_exits_1(run: Any, fake: Any) -> None:
    assert run("status", "nope") == (1, "", "mailstrom: no message nope\n")


# -- sql -----------------------------------------------------------------------------------------


def queries(fake: Any) -> list[tuple[str, list[Any]]]:
    return [call[1:] for call in fake.FakeClient.calls if call[0] == "query"]


def test_sql_as_table_json_and_csv(run: Any, fake: Any) -> None:
    fake.FakeClient.rows = fake.named_rows("a b c", (1, None, 'x,"\x07'), (2, b"\x00\xff", "y"))
    assert run("sql", "select 1").out == "a  b        c\n1           x,\"\\x07\n2  x'00ff'  y\n"
    assert json_lines(run("sql", "select 1", "--json").out) == [
        {"a": 1, "b": None, "c": 'x,"\x07'},
        {"a": 2, "b": "00ff", "c": "y"},
    ]
    table = list(csv.reader(io.StringIO(run("sql", "select 1", "--csv").out, newline="")))
    assert table == [["a", "b", "c"], ["1", "", 'x,"\x07'], ["2", "00ff", "y"]]


@pytest.mark.parametrize(
    "query",
    [
        "select 1;",
        "select 1 ; -- done\n ;",
        "select ';', \";\", [;], `;`",
        "select 'it''s; so'",
        "/* a; b */ select 1",
        "select 1 -- ; select 2",
    ],
)
def test_a_semicolon_that_begins_no_second_statement_is_none(
    run: Any, fake: Any, query: str
) -> None:
    assert run("sql", query).code == 0
    assert queries(fake) == [(query, [])]


@pytest.mark.parametrize("query", ["select 1;select 2", "select ';'; x", "select 1; /* ; */ y"])
def test_a_second_statement_is_refused(run: Any, fake: Any, query: str) -> None:
    done = run("sql", query)
    assert (done.code, done.out) == (64, "")
    assert "one statement at a time" in done.err
    assert queries(fake) == []


def test_csv_lines_end_as_text_lines_do(run: Any, fake: Any) -> None:
    fake.FakeClient.rows = fake.named_rows("a b", (1, "x"), (2, "y"))
    assert run("sql", "select 1", "--csv").out == "a,b\n1,x\n2,y\n"


def test_sql_reads_the_query_from_standard_input(run: Any, fake: Any) -> None:
    done = run("sql", "-", stdin=b"select 2")
    assert queries(fake) == [("select 2", [])]
    assert (done.code, done.out, done.err) == (0, "", "no rows\n")


@pytest.mark.parametrize(
    ("query", "why"),
    [
        (b"select '\xff'", "not UTF-8 at byte 8"),
        (b"\0" * 100_000, "holds NUL"),
        (b"", "is empty"),
    ],
    ids=["bytes", "NUL", "empty"],
)
def test_standard_input_that_holds_no_query_exits_64(
    run: Any, fake: Any, query: bytes, why: str
) -> None:
    done = run("sql", "-", stdin=query)
    assert (done.code, done.out) == (64, "")
    assert f"the query {why}" in done.err or f"the query is {why}" in done.err
    assert fake.FakeClient.calls == []


# -- store, config, version ----------------------------------------------------------------------


def test_store_init_creates_where_told_or_where_the_configuration_says(
    run: Any, fake: Any, tmp_path: Path
) -> None:
    assert run("store", "init", "here.db").out == "here.db\n"
    file = tmp_path / "c.toml"
    file.write_text('store = "there.db"')
    assert run("store", "init", "--config", str(file)).out == f"{tmp_path / 'there.db'}\n"
    created = [call[1] for call in fake.FakeClient.calls if call[0] == "create"]
    assert created == ["here.db", str(tmp_path / "there.db")]


def test_store_check_exits_1_on_findings(run: Any, fake: Any) -> None:
    assert run("store", "check")[:2] == (0, "ok\n")
    assert json_lines(run("store", "check", "--json").out) == [
        {"ok": True, "findings": [], "notes": []}
    ]
    fake.FakeClient.findings = ["row 3 missing"]
    assert run("store", "check")[:2] == (1, "row 3 missing\n")
    assert json_lines(run("store", "check", "--json").out) == [
        {"ok": False, "findings": ["row 3 missing"], "notes": []}
    ]


def test_store_check_notes_what_the_dead_left_and_exits_0(run: Any, fake: Any) -> None:
    fake.FakeClient.notes = ["worker 12 is gone"]
    assert run("store", "check")[:2] == (0, "ok\nnote: worker 12 is gone\n")
    assert json_lines(run("store", "check", "--json").out) == [
        {"ok": True, "findings": [], "notes": ["worker 12 is gone"]}
    ]


def test_config_show_and_check(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('store = "there.db"\n[delivery]\nport = 2525\n')
    rows = {row["key"]: row for row in json_lines(run("config", "show", str(file), "--json").out)}
    assert rows["delivery.port"] == {"key": "delivery.port", "value": 2525, "origin": str(file)}
    assert rows["retry.max_age"] == {"key": "retry.max_age", "value": "5d", "origin": "default"}
    assert rows["relay.hosts"]["value"] == []
    assert rows["relay.username"]["value"] is None
    assert rows["tls.verify"]["value"] is False
    assert rows["delivery.on_doubt"]["value"] == "retry"
    assert run("config", "check", str(file))[:2] == (0, f"{file}: ok\n")
    (answer,) = json_lines(run("config", "check", str(file), "--json").out)
    assert answer == {"ok": True, "file": str(file), "errors": [], "warnings": []}
    file.write_text("prot = 1")
    done = run("config", "check", str(file), "--json")
    (answer,) = json_lines(done.out)
    assert (done.code, answer["ok"], len(answer["errors"])) == (78, False, 1)
    done = run("config", "check", str(file))
    assert (done.code, done.out) == (78, "")
    assert str(file) in done.err


def test_config_check_warns_and_still_says_ok(run: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret\n")
    secret.chmod(0o644)
    file = tmp_path / "c.toml"
    file.write_text(
        '[delivery]\nmode = "relay"\n[relay]\nhosts = ["mail.example.org"]\ntls = "required"\n'
        'username = "u"\npassword_file = "secret"\n'
    )
    done = run("config", "check", str(file))
    assert (done.code, done.out) == (0, f"{file}: ok\n")
    assert done.err.startswith("mailstrom: warning: [relay] password_file")
    (answer,) = json_lines(run("config", "check", str(file), "--json").out)
    assert len(answer["warnings"]) == 1


def test_a_list_of_commands_tells_each_in_a_whole_sentence() -> None:
    cut = []
    for name in COMMANDS:
        group = root.get_command(click.Context(root), name)
        for one in group.commands.values() if isinstance(group, click.Group) else ():
            room = 80 - 6 - max(map(len, group.commands))
            if one.get_short_help_str(room).endswith("..."):
                cut.append(f"{name} {one.name}")
    assert cut == []


def test_the_help_of_sql_names_every_view() -> None:
    words = set(re.findall(r"\w+", sql_command.help or ""))
    with Mailstrom("memory:") as ms:
        views = {row.view for row in ms.query("SELECT DISTINCT view FROM schema_info")}
    assert sorted(views - words) == []


def test_serve_with_a_missing_configuration_exits_78(run: Any, tmp_path: Path) -> None:
    done = run("serve", "--config", str(tmp_path / "none.toml"))
    assert done.code == 78
    assert "no such configuration file" in done.err
