"""What the pages say is true: links, SQL, Python, commands, settings, tests named.

Fences say what a block is: ``sql`` runs against a fresh spool, ``python`` compiles, ``toml`` is a
configuration that loads, ``sh`` names commands and options that exist. What is marked ``run`` is
executed by ``tests/docs``.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest
import trustme
from rich.console import Console

from mailstrom import Mailstrom
from mailstrom.cli.app import root
from mailstrom.clock import boot_id, wall_ms
from mailstrom.config import load
from mailstrom.demo.display import Snapshot, draw
from mailstrom.demo.photograph import WIDTH
from mailstrom.storage import open_worker_store
from mailstrom.types import RESERVED, Reason
from tests.docs.blocks import ALL, CHECKOUT, PAGES, Block, name_of, of_kind, prose

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)", re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"(?:mailstrom|workers|tests|tools|docs|\.ci)/[\w./-]*[\w/]")


def anchors(page: Path) -> set[str]:
    """Fragments of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    bare = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in bare}


# --- links and names ----------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_resolves(page: Path) -> None:
    broken = []
    for match in _LINK.finditer(prose(page)):
        target = match[1] or match[2]
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        file = page if not path else (page.parent / path).resolve()
        if not file.exists() or (fragment and fragment not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_every_page_is_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    waiting = [CHECKOUT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        for match in _LINK.finditer(prose(page)):
            target = (match[1] or match[2]).partition("#")[0]
            if target and not re.match(r"[a-z]+:", target):
                waiting.append((page.parent / target).resolve())
    assert sorted(map(name_of, set(PAGES) - seen)) == []


def defined_tests() -> set[str]:
    return {
        node.name
        for file in (CHECKOUT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_test_that_a_page_names_exists() -> None:
    named = {
        code
        for page in PAGES
        for code in _CODE.findall(prose(page))
        if re.fullmatch(r"test_\w+", code)
    }
    assert sorted(named - defined_tests()) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_of_the_checkout_that_a_page_names_exists(page: Path) -> None:
    named = {code for code in _CODE.findall(prose(page)) if _PATH.fullmatch(code)}
    assert [path for path in sorted(named) if not (CHECKOUT / path).exists()] == []


@pytest.mark.parametrize("picture", sorted((CHECKOUT / "docs").rglob("*.svg")), ids=name_of)
def test_pictures_are_whole_and_fetch_nothing(picture: Path) -> None:
    tree = ElementTree.fromstring(picture.read_text("utf-8"))
    tags = {element.tag.rpartition("}")[2] for element in tree.iter()}
    assert tags.isdisjoint({"script", "image", "foreignObject", "use"})
    assert not re.search(r"href|url\((?!#)|@import", picture.read_text("utf-8"))
    assert {"title", "desc"} <= tags


def test_the_picture_of_the_demonstration_is_of_the_display_of_today() -> None:
    tree = ElementTree.parse(CHECKOUT / "docs" / "images" / "demo.svg").getroot()
    shown = " ".join(
        " ".join((element.text or "").split())
        for element in tree.iter()
        if element.tag.endswith("}text")
    )
    console = Console(file=io.StringIO(), width=WIDTH)
    empty = Snapshot(elapsed_s=0, messages=0, accepted=0, counts={}, per_s=0, connections=0)
    with console.capture() as capture:
        console.print(draw(empty))
    table = capture.get().splitlines()[2:]
    words = {word for line in table for word in re.split(r"\s{2,}", line.strip()) if word.isascii()}
    assert len(words) > 10
    assert sorted(word for word in words if not word.isnumeric() and word not in shown) == []
    assert re.search(r"demo: \d+ accepted, .* 0 lost, 0 unmarked duplicates", shown)


def test_reserved_reasons_are_those_that_nothing_gives_and_are_told_as_such() -> None:
    sources = [*(CHECKOUT / "mailstrom").rglob("*.py"), *(CHECKOUT / "workers").rglob("*.py")]
    text = "\n".join(one.read_text("utf-8") for one in sources if one.name != "types.py")
    given = {name.lower() for name in re.findall(r"\bReason\.([A-Z_]+)\b", text)}
    for file in (CHECKOUT / "mailstrom").rglob("*.sql"):
        given |= set(re.findall(r"'([a-z_]+)'", file.read_text("utf-8")))
    assert sorted(set(Reason) - given) == sorted(RESERVED)
    reference = CHECKOUT / "docs" / "reference"
    for word in RESERVED:
        assert f"`{word}` (reserved)" in (reference / "schema.md").read_text("utf-8")
        assert f"{word} (reserved)" in (reference / "cli.md").read_text("utf-8")


def test_the_readme_says_what_a_stranger_needs() -> None:
    text = (CHECKOUT / "README.md").read_text("utf-8")
    for words in (
        "tools/demo",
        "tools/test",
        "pip install .",
        "mailstrom serve",
        "MIT",
        "Rust crate",
    ):
        assert words in text
    for tool in ("tools/demo", "tools/test"):
        assert os.access(CHECKOUT / tool, os.X_OK)


def test_the_overview_shows_the_arrows_that_are_kept() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))
    [layers] = [
        contract["layers"]
        for contract in project["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    ]
    [shown] = [
        block.text.splitlines()
        for block in ALL
        if block.page == "docs/design/overview.md" and block.kind == "text"
    ]
    assert shown == layers


def test_generated_lists_know_what_is_logged_and_what_is_kept() -> None:
    text = (CHECKOUT / "docs/reference/events.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `([a-z.]+)` \| (\S+ \| \S+) \|", text, re.MULTILINE))
    assert rows["message.accepted"] == "- | yes"
    assert rows["recipient.failed"] == rows["claim.lapsed"] == "yes | yes"
    assert rows["supervisor.ready"] == "yes | -"
    assert rows["message.held"] == rows["message.released"] == "- | yes"
    assert rows["store.copied"] == rows["log.dropped"] == "yes | -"
    assert rows["recipient.routed"] == "- | -"


# --- examples -----------------------------------------------------------------------------------


@pytest.mark.parametrize("block", of_kind("sql"))
def test_every_sql_example_runs_against_a_fresh_spool(block: Block, tmp_path: Path) -> None:
    with Mailstrom(tmp_path / "spool.db") as ms:
        ms.send(b"From: a@example.org\r\n\r\nHello\r\n", recipients=["b@example.com"], tags=["t"])
        for statement in filter(str.strip, block.text.split(";\n")):
            ms.query(statement)


@pytest.mark.parametrize("block", of_kind("python"))
def test_every_python_example_compiles(block: Block) -> None:
    compile(block.text, f"{block.page}:{block.line}", "exec")


def monitoring(words: str) -> str:
    [question] = [b.text for b in ALL if b.page == "docs/howto/monitor.md" and words in b.text]
    return question.rstrip().removesuffix(";")


@pytest.mark.parametrize(("silent_s", "alive"), [(5, 1), (3600, 0)])
def test_a_worker_whose_heartbeat_stopped_is_not_called_alive(
    silent_s: int, alive: int, tmp_path: Path
) -> None:
    store = str(tmp_path / "spool.db")
    heard_ms = wall_ms() - silent_s * 1000
    with Mailstrom(store) as ms, contextlib.closing(open_worker_store(store)) as engine:
        worker = engine.register(
            kind="delivery",
            pid=1,
            host="here",
            boot=boot_id(),
            lock="lock",
            restarts=0,
            now_ms=heard_ms,
        )
        engine.beat(worker.seq, state="ready", sessions=0, now_ms=heard_ms)
        assert ms.query(monitoring("AS alive")) == [(alive,)]
        command = monitoring("grep -q '^alive'")
        sql = command.partition('--csv "')[2].partition('" | grep')[0]
        assert ms.query(sql) == [("alive",)] * alive


def test_mail_that_waits_beyond_its_time_is_counted(tmp_path: Path) -> None:
    question = monitoring("AS late_s")
    assert "('queued', 'deferred')" in question
    with Mailstrom(tmp_path / "spool.db") as ms:
        assert ms.query(question) == [(None, 0)]
        mail = b"From: a@example.org\r\n\r\nHello\r\n"
        ms.send(mail, recipients=["b@example.com"], send_at=timedelta(days=1))
        assert ms.query(question) == [(None, 0)]
        ms.send(mail, recipients=["b@example.com"])
        # the question counts in whole seconds, so what is due this very second may come the next
        soon = question.replace("strftime('%s', 'now')", "(strftime('%s', 'now') + 60)")
        [(late_s, due)] = ms.query(soon)
        assert (due, late_s >= 0) == (1, True)


def test_the_readmes_python_runs_as_one_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    parts = [b.text for b in ALL if b.page == "README.md" and b.kind == "python"]
    parts = [text for text in parts if ".start(" not in text]  # that would deliver
    assert len(parts) >= 2
    exec(compile("\n".join(parts), "README.md", "exec"), {})
    assert "alice@example.com queued None None" in capsys.readouterr().out


@pytest.mark.parametrize("block", of_kind("toml"))
def test_every_configuration_example_loads(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "mailstrom.toml"
    file.write_text(block.text, "utf-8")
    for name in re.findall(r'^password_file = "([\w.]+)"', block.text, re.MULTILINE):
        (tmp_path / name).write_text("secret\n")
    if "tls_cert = " in block.text:
        issued = trustme.CA().issue_cert("mail.example.org")
        issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
        issued.private_key_pem.write_to_path(tmp_path / "key.pem")
        (tmp_path / "users").write_text("")
    assert load(str(file)).origin == str(file)


def command_lines() -> Iterator[tuple[str, str]]:
    """(where, command line) of every ``sh`` block and of inline code that starts one."""
    for block in ALL:
        if block.kind == "sh":
            text = re.sub(r"<<'END'.*?^END$", "", block.text, flags=re.MULTILINE | re.DOTALL)
            for line in text.replace("\\\n", " ").splitlines():
                for piece in re.split(r"&&|\||\$\(", line):
                    yield f"{block.page}:{block.line}", piece.strip()
    for page in PAGES:
        for code in _CODE.findall(prose(page)):
            yield name_of(page), code


def wrong_words(words: list[str]) -> list[str]:
    """What of ``mailstrom ...`` is no command or option of the command line."""
    command: click.Command = root
    context = click.Context(root)
    for place, word in enumerate(words):
        word = word.strip("[]")
        if word.startswith((">", "&", "<", "...")):
            break
        if word.startswith("-") and len(word) > 1:
            known = {name for option in command.get_params(context) for name in option.opts}
            if word.partition("=")[0] not in known:
                return words[place:]
        elif isinstance(command, click.Group):
            inner = command.get_command(context, word)
            if inner is None:
                return words[place:]
            command = inner
    return []


def test_every_command_and_option_that_a_page_names_exists() -> None:
    wrong = []
    for where, line in command_lines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue  # a quotation over several lines, or prose with an apostrophe
        if "mailstrom" in words[:5] and not re.match(r"(pip|install|import|useradd|kill)", line):
            start = words.index("mailstrom")
            before = words[:start]
            if (not before or before[-1] == "--") and wrong_words(words[start + 1 :]):
                wrong.append((where, line))
        if words[:3] == ["python", "-P", "-m"] and importlib.util.find_spec(words[3]) is None:
            wrong.append((where, line))
        if words and words[0].startswith("tools/") and not (CHECKOUT / words[0]).is_file():
            wrong.append((where, line))
    assert wrong == []


def test_an_unknown_command_or_option_would_be_found() -> None:
    assert wrong_words(["queue", "list", "--domain", "x"]) == []
    assert wrong_words(["queue", "burn"]) == ["burn"]
    assert wrong_words(["queue", "list", "--colour"]) == ["--colour"]
