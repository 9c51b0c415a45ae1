"""Pieces of Markdown that the generated pages are made of: rows, docstrings, signatures.

Contract. Text in, lines out; nothing is read or written. Docstrings have the house's form: a
sentence, paragraphs, and the sections Args, Returns, Raises, Attributes.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from types import ModuleType

NOTE = "<!-- made by tools/gendocs from the code; change it there -->"


def cells(*texts: str) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def prose(thing: object) -> Iterator[str]:
    """A docstring as Markdown: ``x`` becomes `x`, Args and the like become lists."""
    text = (inspect.getdoc(thing) or "").replace("``", "`")
    text = re.sub(r":func:`([^`]+)`", r"`\1()`", text)
    for block in text.split("\n\n"):
        heading, _, rest = block.partition("\n")
        if heading not in ("Args:", "Returns:", "Raises:", "Attributes:"):
            yield from (*block.splitlines(), "")
            continue
        yield from (f"**{heading[:-1]}**", "")
        entry = ""
        for line in textwrap.dedent(rest).splitlines():
            named = re.match(r"([A-Za-z_][A-Za-z_, ]*): ?(.*)", line)
            if named and heading != "Returns:":
                if entry:
                    yield entry
                names = ", ".join(f"`{name.strip()}`" for name in named[1].split(","))
                entry = f"- {names}: {named[2]}"
            else:
                entry = f"{entry} {line.strip()}".strip() if entry else line.strip()
        yield from (entry, "")


def signature(name: str, function: Callable[..., object]) -> str:
    """``name(arguments) -> type`` on as many lines as it needs."""
    found = inspect.signature(function)
    parameters = [p for p in found.parameters.values() if p.name not in ("self", "cls")]
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(found.replace(parameters=parameters)))
    if len(name + text) <= 92:
        return name + text
    inner, _, result = text[1:].rpartition(") -> ")
    pieces = re.sub(r", (?=(?:\*\*?)?\w+:|[*/],|[*/]$)", ",\n    ", inner)
    return f"{name}(\n    {pieces},\n) -> {result}"


def classes(module: ModuleType) -> Iterator[type]:
    """The public classes that a module defines, in its order."""
    for name, thing in vars(module).items():
        if isinstance(thing, type) and thing.__module__ == module.__name__ and name[0] != "_":
            yield thing
