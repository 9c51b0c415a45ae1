"""docs/reference/renderings.md and docs/reference/message-rules.md.

Contract. Each function gives a page's lines. What Python writes is shown with the version that
wrote it: where the page shows a case of another version, that text stays, since each version has
its own faults. Remove the page to take all of them anew.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from pathlib import Path

from pieces import NOTE, cells
from renderings import CASES, after, before, shown

from mailstrom.errors import InvalidMessage
from mailstrom.message import RULES

RENDERINGS = Path(__file__).resolve().parent.parent / "docs" / "reference" / "renderings.md"
_SHOWN = re.compile(
    r"^## (?P<title>[^\n]+)\n.*?^Python (?P<version>\S+) writes:\n\n```text\n(?P<text>.*?)\n```",
    re.MULTILINE | re.DOTALL,
)


def renderings() -> Iterator[str]:
    """docs/reference/renderings.md."""
    yield from ("# What Python writes and what Mailstrom sends", "", NOTE, "")
    yield (
        "`EmailMessage.as_bytes` of the standard library changes some messages while it writes"
        " them. Mailstrom writes headers itself. For each case: the header as Python writes it"
        " (`policy.SMTP`; the version is named, others may differ), and what Mailstrom makes of"
        " the same object. Refusals name their [rule](message-rules.md)."
    )
    running = platform.python_version()
    known: dict[str, str] = {}
    if RENDERINGS.is_file():
        for match in _SHOWN.finditer(RENDERINGS.read_text(encoding="utf-8")):
            if match["version"] != running:
                known[match["title"]] = match["version"] + "\n" + match["text"]
    for case in CASES:
        written = shown(before(case), case.field) or before(case).decode("utf-8", "replace")
        version, _, text = known.get(case.title, f"{running}\n{written}").partition("\n")
        fault = case.fault
        if case.issue is not None:
            link = f"https://github.com/python/cpython/issues/{case.issue}"
            fault += f" Reported as [{case.issue}]({link})."
        yield from ("", f"## {case.title}", "", fault, "")
        yield from (f"Python {version} writes:", "", "```text", text, "```", "")
        try:
            ours = shown(after(case), case.field)
        except InvalidMessage as error:
            yield from (f"Mailstrom refuses, rule `{error.rule}`:", "", "```text", str(error))
            yield "```"
        else:
            if ours:
                yield from ("Mailstrom sends:", "", "```text", ours, "```")
            else:
                yield "Mailstrom does not send the header."


def message_rules() -> Iterator[str]:
    """docs/reference/message-rules.md."""
    yield from ("# Rules of messages", "", NOTE, "")
    yield (
        "Whatever is wrong with a message is an `InvalidMessage` (inside an address: an"
        " `InvalidAddress`) and nothing was written. `.rule` is one of these names, which stay the"
        " same under SemVer; `.header` is the header or argument at fault, `.value` what it held,"
        " `.position` the octet, where the message came as bytes. `mailstrom.message.parse`"
        " applies the strict ones. The table itself is `mailstrom.message.RULES`."
    )
    yield from ("", cells("rule", "what is wrong", "what to do"), cells("---", "---", "---"))
    for name, rule in RULES.items():
        yield cells(f"`{name}`", rule.sentence, rule.remedy)
