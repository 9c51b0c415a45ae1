"""The targets of the fuzz, each ``one(data: bytes) -> None`` with a judge of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tests.hostile.fuzz_client import client
from tests.hostile.fuzz_headers import addresses, headers
from tests.hostile.fuzz_messages import messages, mime
from tests.hostile.fuzz_proxy import proxy
from tests.hostile.fuzz_replies import framing, replies
from tests.hostile.fuzz_reports import reports
from tests.hostile.fuzz_rest import configuration, dns, printing
from tests.hostile.fuzz_server import server
from tests.hostile.fuzz_submission import submission

Target = Callable[[bytes], None]

TARGETS: Mapping[str, Target] = {
    "replies": replies,
    "client": client,
    "server": server,
    "framing": framing,
    "proxy": proxy,
    "headers": headers,
    "addresses": addresses,
    "messages": messages,
    "mime": mime,
    "reports": reports,
    "submission": submission,
    "dns": dns,
    "configuration": configuration,
    "printing": printing,
}
TITLES = {
    "replies": "replies of a server",
    "client": "a whole dialogue with a server",
    "server": "a whole dialogue with a client",
    "framing": "dots and ends of content",
    "proxy": "headers of a proxy",
    "headers": "headers that are made",
    "addresses": "addresses that are read",
    "messages": "messages as octets, and their hash",
    "mime": "multiparts",
    "reports": "delivery reports",
    "submission": "mail that is handed in",
    "dns": "DNS answers",
    "configuration": "configuration files",
    "printing": "text for logs and terminals",
}
CORPUS = Path(__file__).resolve().parent.parent / "data" / "corpus"


def corpus(target: str) -> list[Path]:
    """Seeds and findings of a target, kept for ever."""
    return sorted((CORPUS / target).glob("*"))
