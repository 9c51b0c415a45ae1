"""The table of rules is whole: each name the code can raise is there, and each there is raised."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import mailstrom
from mailstrom.message import RULES

PACKAGE = Path(mailstrom.__file__).parent
RAISING = {"refusal", "_refusal", "_refuse", "InvalidMessage", "InvalidAddress"}
# Arguments of refusals that look like rules and are names of arguments or encodings.
NO_RULES = {"utf-8", "us-ascii", "unknown-8bit"}


def constants(*rooms: str) -> Iterator[tuple[str, bool]]:
    """String constants of the rooms, and whether they stand in a call that makes an error."""
    for room in rooms:
        found = PACKAGE / room
        for file in sorted(found.rglob("*.py")) if found.is_dir() else [found]:
            if file.name == "rules.py":
                continue
            tree = ast.parse(file.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value, False
                if not isinstance(node, ast.Call):
                    continue
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                arguments = [*node.args, *(word.value for word in node.keywords)]
                if name in RAISING:
                    for argument in arguments:
                        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                            yield argument.value, True


def test_every_rule_that_is_raised_has_its_sentence() -> None:
    looks = re.compile(r"[a-z]+(?:-[a-z0-9]+)+")
    raised = {
        text
        for text, raising in constants("message", "client", "storage", "options.py")
        if raising and looks.fullmatch(text)
    }
    assert raised - NO_RULES <= RULES.keys()
    assert len(raised) > 20


def test_every_rule_of_the_table_is_raised_somewhere() -> None:
    known = {text for text, _ in constants("message", "client", "storage", "options.py")}
    # Made of the field's name where the strict reader misses it.
    known |= {"date-missing"}
    assert RULES.keys() <= known


def test_rules_are_sentences() -> None:
    for rule in RULES.values():
        assert rule.sentence.endswith(".")
        assert rule.remedy.endswith(".")
