"""The parity page: every public item of the Rust ancestors has a row, and what it names exists.

``ITEMS`` is the ancestors' list; a row's first cell is the item, its second what serves it here.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailstrom import Mailstrom
from mailstrom.config import schema
from mailstrom.config.settings import Config, Table
from tests.docs.blocks import CHECKOUT
from tests.unit.test_docs import wrong_words

PAGE = CHECKOUT / "docs" / "reference" / "rust-parity.md"
_CODE = re.compile(r"`([^`]+)`")


def variants(name: str, words: str, mark: str = "::") -> list[str]:
    return [f"{name}{mark}{word}" for word in words.split()]


ITEMS = [
    *variants("Mailstrom", "new start die worker_status send_email query_status query_recent"),
    *("MessageStatus", *variants("MessageStatus", "message_id recipient_status", ".")),
    *variants("MessageStatus", "succeeded completed", "."),
    *("RecipientStatus", *variants("RecipientStatus", "recipient result", ".")),
    *("PreparedEmail", *variants("PreparedEmail", "to from message_id message", ".")),
    "InternalMessageStatus",
    *variants("InternalMessageStatus", "message_id recipients attempts_remaining", "."),
    "InternalRecipientStatus",
    *variants(
        "InternalRecipientStatus",
        "email_addr smtp_email_addr domain mx_servers current_mx result",
        ".",
    ),
    *("DeliveryResult", "DeliveryResult.completed"),
    *variants("DeliveryResult", "Queued Deferred Delivered Failed"),
    "WorkerStatus",
    *variants(
        "WorkerStatus",
        "Ok Terminated ChannelDisconnected LockPoisoned StorageWriteFailed StorageReadFailed"
        " ResolverCreationFailed Unknown from_u8",
    ),
    "Error",
    *variants(
        "Error", "Send EmailParser General Storage DnsUnavailable Lock Io LettreEmailAddress"
    ),
    "Config",
    *variants(
        "Config",
        "helo_name smtp_timeout_secs base_resend_delay_secs require_tls delivery",
        ".",
    ),
    *("DeliveryConfig", "DeliveryConfig::Relay", "DeliveryConfig::Remote"),
    *("RelayConfig", *variants("RelayConfig", "domain_name port use_tls auth", ".")),
    *("SmtpAuth", *variants("SmtpAuth", "mechanism username password", ".")),
    *("RemoteDeliveryConfig", "RemoteDeliveryConfig.resolver_setup"),
    "ResolverSetup",
    *variants("ResolverSetup", "SystemConf Google Cloudflare Quad9 Specific"),
    *variants("ResolverSetup::Specific", "socket protocol tls_dns_name", "."),
    "MailstromStorage",
    *variants(
        "MailstromStorage",
        "store update_status retrieve retrieve_status retrieve_all_incomplete retrieve_all_recent",
        ".",
    ),
    *("MailstromStorageError", "MemoryStorage::new"),
    "recipients from To, Cc, Bcc",
    "Bcc header removed",
    "Message-ID kept or made",
    "envelope sender = From",
    "MX by preference",
    "domain itself when there is no MX",
    "one transaction per server",
    "next server on deferral",
    "TLS >= 1.2",
    "opportunistic TLS unless required",
    "SMTPUTF8 when the server has it",
    "per-command timeout",
    "growing retry delay",
    "at most 3 passes and 5 attempts",
    "too many attempts",
    "deferred on connection trouble",
    "deferred on transient 4xx",
    "deferred on DNS failure",
    "failed on 5xx",
    "looks for incomplete mail every 90 s",
    "README advice on being accepted",
    *("Email::new", "Email::parse"),
    *variants("Email", "stream as_bytes as_string as_sendable_email", "."),
    "Display",
    *variants(
        "Email",
        "date from sender reply_to to cc bcc message_id in_reply_to references subject body"
        " comments keywords optional_fields",
        ".",
    ),
    *("trace: return-path, received", "resent blocks"),
    *("strict RFC 5322", "7-bit only", "ParseError"),
    *("gap: RFC 6854", "gap: transfer encodings and Unicode", "gap: MIME"),
    *("gap: dates from date-time objects", "gap: lines over 998"),
    "SmtpServer::new",
    *(
        f"SmtpServer::new {argument}"
        for argument in ("host", "port", "domain", "timeout", "buffer_size", "certs_path, key_path")
    ),
    *("SmtpServer::start", "SmtpServer::stop", "SmtpServer<Closed>", "SmtpServer<Listening>"),
    *("mail_rx", "Mail", *variants("Mail", "domain from to data", ".")),
    *("ServerError", *variants("ServerError", "Network Task Send Recv Bind Shutdown Running")),
    "ProcessingError",
    *variants(
        "ProcessingError",
        "IO NoMail ConnectionClosed SendResponse NoCertificate AlreadyEncrypted SocketRead",
    ),
    "HELO, EHLO, STARTTLS, MAIL, RCPT, DATA, QUIT",
    "states Initial, Ehlo, StartTls, MailFrom, Data, Invalid",
    "greeting 220 with the domain",
    "502 when TLS is not available",
    "per-read timeout closes",
    "fault: content lower-cased",
    "fault: one read is one command",
    "fault: no pipelining",
    "fault: one mail per connection",
    "fault: end of data by the buffer's end",
    "fault: dots not unstuffed",
    "fault: bytes after STARTTLS kept",
    "fault: errors close without a reply",
    "fault: no size limit",
]


def rows() -> Iterator[tuple[str, str, str]]:
    """(item, here, differences) of every row."""
    for line in PAGE.read_text("utf-8").splitlines():
        if line.startswith("|") and not line.startswith(("| ---", "| Rust")):
            item, here, *rest = (cell.strip() for cell in line.strip("|").split(" |"))
            yield item.strip("`"), here, " ".join(rest)


def test_every_item_of_the_ancestors_has_exactly_one_row() -> None:
    found = [item for item, _, _ in rows()]
    assert sorted(set(found)) == sorted(found)
    assert [item for item in ITEMS if item not in found] == []
    assert [item for item in found if item not in ITEMS] == []


def test_every_row_names_something_that_serves_it() -> None:
    bare = [item for item, here, _ in rows() if not _CODE.search(here) and "](" not in here]
    assert bare == []


# --- what is named exists -----------------------------------------------------------------------


def settings(cls: type[Table] = Config, table: str = "") -> Iterator[str]:
    """``key`` and ``[table] key`` of every setting."""
    for key in schema.keys(cls):
        name = f"{table}.{key.name}" if table else key.name
        inner = key.table if key.table is not None else schema.streams(key)
        if inner is not None:
            yield from settings(inner, name)
        else:
            yield f"[{table}] {key.name}" if table else key.name


def columns(folder: Path) -> set[str]:
    """``view.column`` of every public view."""
    with Mailstrom(folder / "spool.db") as ms:
        return {
            f"{row.view}.{row.name}"
            for row in ms.query(
                "SELECT s.name AS view, c.name AS name"
                "  FROM sqlite_schema s, pragma_table_info(s.name) c WHERE s.type = 'view'"
            )
        }


def python(name: str) -> bool:
    """Whether a dotted name leads to something: a module, then attributes."""
    words = name.split(".")
    for cut in range(len(words), 0, -1):
        try:
            thing: object = importlib.import_module(".".join(words[:cut]))
        except ModuleNotFoundError:
            continue
        for word in words[cut:]:
            if word not in getattr(thing, "__annotations__", {}) and not hasattr(thing, word):
                return False
            thing = getattr(thing, word, None)
        return True
    return False


def exists(name: str, known: set[str]) -> bool:
    if name in known:
        return True
    if name.startswith("mailstrom "):
        return wrong_words(name.split()[1:]) == []
    return name.startswith(("mailstrom.", "mailstrom_workers.", "email.")) and python(name)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Settings and columns."""
    return set(settings()) | columns(tmp_path_factory.mktemp("views"))


def test_everything_that_serves_an_item_exists(known: set[str]) -> None:
    named = {name: item for item, here, _ in rows() for name in _CODE.findall(here)}
    assert {name: item for name, item in named.items() if not exists(name, known)} == {}


def test_full_names_in_the_notes_exist_too(known: set[str]) -> None:
    names = {
        name
        for _, _, note in rows()
        for name in _CODE.findall(note)
        if re.match(r"mailstrom[ .]|\[", name)
    }
    assert sorted(name for name in names if not exists(name, known)) == []


def test_what_does_not_exist_would_be_found(known: set[str]) -> None:
    for name in (
        "mailstrom.Mailstrom.teleport",
        "mailstrom.nowhere.Thing",
        "mailstrom.types.Status.LOST",
        "mailstrom burn",
        "[delivery] teleport",
        "recipients.colour",
        "os.path",
    ):
        assert not exists(name, known), name
    for name in ("mailstrom.types.MessageStatus.id", "mailstrom serve", "hostname"):
        assert exists(name, known), name
