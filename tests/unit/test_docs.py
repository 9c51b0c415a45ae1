"""What the pages say is true: links, SQL, Python, commands, settings, tests named.

Fences say what a block is: ``sql`` runs against a fresh spool, ``python`` compiles, ``toml`` is a
configuration that loads, ``sh`` names commands and options that exist. ``python run`` and ``sh
run`` are executed; a page's ``sh run`` blocks together, in order, as a reader would.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest

from mailstrom import Mailstrom
from mailstrom.cli.app import root
from mailstrom.config import load

CHECKOUT = Path(__file__).resolve().parents[2]
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
PATIENCE_S = 100

_FENCE = re.compile(r"^(`{3,})([^\n]*)\n(.*?)^\1[ ]*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)", re.MULTILINE)
_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"(?:mailstrom|workers|tests|tools|docs|\.ci)/[\w./-]*[\w/]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block.

    Args:
        kind: the first word behind the fence.
        run: whether the second word is ``run``.
    """

    page: str
    line: int
    kind: str
    run: bool
    text: str


def name_of(page: Path) -> str:
    return page.relative_to(CHECKOUT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for match in _FENCE.finditer(text):
        kind, _, rest = match[2].strip().partition(" ")
        line = text.count("\n", 0, match.start()) + 1
        yield Block(page=name_of(page), line=line, kind=kind, run=rest == "run", text=match[3])


ALL = [block for page in PAGES for block in blocks(page)]


def of_kind(*kinds: str, run: bool = False) -> list[object]:
    return [
        pytest.param(block, id=f"{block.page}:{block.line}")
        for block in ALL
        if block.kind in kinds and (block.run or not run)
    ]


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text("utf-8"))


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
        for file in (CHECKOUT / "tests").rglob("test_*.py")
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


@pytest.mark.parametrize("block", of_kind("toml"))
def test_every_configuration_example_loads(block: Block, tmp_path: Path) -> None:
    file = tmp_path / "mailstrom.toml"
    file.write_text(block.text, "utf-8")
    (tmp_path / "relay.password").write_text("secret\n")
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


# --- examples that run --------------------------------------------------------------------------


def environment(folder: Path) -> dict[str, str]:
    """A reader's shell: the tested Mailstrom first on PATH, nothing configured."""
    shims = folder / "bin"
    shims.mkdir()
    for name, command in (("python", ""), ("mailstrom", " -P -m mailstrom")):
        shim = shims / name
        shim.write_text(f'#!/bin/sh\nexec "{sys.executable}"{command} "$@"\n')
        shim.chmod(0o755)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MAILSTROM_", "PYTHON", "XDG_"))
    }
    if "PYTHONPATH" in os.environ:  # run from a checkout: the reader stands elsewhere
        paths = os.environ["PYTHONPATH"].split(os.pathsep)
        kept["PYTHONPATH"] = os.pathsep.join(os.path.abspath(path) for path in paths)
    return kept | {"PATH": f"{shims}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder)}


def run(command: list[str], folder: Path) -> str:
    """Output of a command, whose whole process group ends with it."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            pytest.fail(f"still running after {PATIENCE_S} s:\n{output}")
    assert process.returncode == 0, output
    return output


@pytest.mark.parametrize("block", of_kind("python", run=True))
def test_examples_marked_run_do(block: Block, tmp_path: Path) -> None:
    run([sys.executable, "-P", "-W", "error", "-c", block.text], tmp_path)


def free_port(host: str, kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def test_the_quickstart_works_word_by_word(tmp_path: Path) -> None:
    page = "docs/quickstart.md"
    parts = [block.text for block in ALL if block.page == page and block.run]
    assert len(parts) >= 5
    script = "set -eu\n" + "".join(parts)
    # other tests may be using the page's ports now
    script = script.replace(":5300", f":{free_port('127.0.0.1', socket.SOCK_DGRAM)}")
    script = script.replace("2525", str(free_port("127.0.0.2", socket.SOCK_STREAM)))
    output = run(["bash", "-c", script], tmp_path)
    promised = next(b.text for b in ALL if b.page == page and b.kind == "text")
    for line in (*promised.splitlines()[1:], "cancelled 1 recipient"):
        assert line in output.splitlines(), output
    assert output.splitlines()[-1] == "ok"
    assert "recipient.delivered" in (tmp_path / "engine.log").read_text()


def test_the_generated_pages_agree_with_the_code(tmp_path: Path) -> None:
    run([sys.executable, "-P", str(CHECKOUT / "tools" / "gendocs"), "--check"], tmp_path)
