"""docs/reference/client.md, from the classes: methods by concern, values, words, errors, parser.

Contract. ``client_reference`` gives the page's lines. Whatever is public has its place on the page:
a method that no concern names is an error here, so that none is forgotten. Each concern begins with
an example that the tests run by itself.
"""

# Past 400 lines: half of it are the examples.

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType

from pieces import NOTE, cells, classes, prose, signature

import mailstrom
from mailstrom import causes, errors, message, types
from mailstrom.client import api
from mailstrom.client.asking import Suppressions

VIEW_OF = {types.MessageStatus: "messages", types.RecipientStatus: "recipients"}
INNER_VALUES = (types.Host, types.Route, types.RouteResult)
"""Of the engine, not of the client."""

# What a page of methods says besides their docstrings: heading, sentence, names in reading order,
# and an example that the tests run.
CONCERNS: tuple[tuple[str, str, str, str], ...] = (
    (
        "Sending",
        "A message is accepted durably or refused with an error; nothing here waits for the"
        " network. More: [send](../howto/send.md), [schedule](../howto/schedule.md).",
        "send send_many",
        """
        from email.message import EmailMessage

        from mailstrom import InvalidMessage, Mailstrom

        message = EmailMessage()
        message["From"] = "Shop <shop@example.org>"
        message["To"] = "alice@example.com"
        message["Subject"] = "Your order"
        message.set_content("It is on its way.\\n")

        with Mailstrom("memory:") as ms:
            first = ms.send(message, idempotency_key="order-4711", tags=["order"])
            assert ms.send(message, idempotency_key="order-4711") == first

            ids = ms.send_many((message for _ in range(1000)), stream="news", priority="low")
            assert len(set(ids)) == 1000

            try:
                ms.send(message, recipients=["not an address"])
            except InvalidMessage as error:
                print(error.rule, error.value)
        """,
    ),
    (
        "Asking",
        "What became of it. Everything here can also be asked in SQL, see"
        " [views](schema.md) and [reports](../howto/report-with-sql.md).",
        "status statuses wait why find recent message raw events follow stats suppressions query",
        """
        from mailstrom import Mailstrom, Status

        mail = b"From: shop@example.org\\r\\n\\r\\nHi\\r\\n"
        two = ["alice@example.com", "bob@example.net"]
        with Mailstrom("memory:") as ms:
            id = ms.send(mail, recipients=two, tags=["greeting"])
            status = ms.status(id)
            assert status.status is Status.QUEUED and not status.completed
            assert set(status.recipients) == {"alice@example.com", "bob@example.net"}

            [reason] = ms.why("bob@example.net")
            assert reason.cause == "no_worker"
            assert reason.detail == "due, and no engine runs on this spool"

            [found] = ms.find(tag="greeting", domain="example.net", limit=10)
            assert found.id == id
            assert ms.stats().waiting["queued"] == 2
            assert [event.type for event in ms.events()] == ["message.accepted"]

            [row] = ms.query("SELECT count(*) AS waiting FROM recipients WHERE status = 'queued'")
            assert row.waiting == 2
        """,
    ),
    (
        "Changing",
        "Of recipients that wait, or failed. One that is on the wire is never touched: its truth"
        " is yet to come. Each method says how many recipients changed.",
        "cancel hold release retry resolve change_all",
        """
        from mailstrom import Mailstrom, Status

        mail = b"From: shop@example.org\\r\\n\\r\\nHi\\r\\n"
        two = ["alice@example.com", "bob@example.net"]
        with Mailstrom("memory:") as ms:
            id = ms.send(mail, recipients=two, tags=["greeting"])
            assert ms.hold(id) == 2
            assert ms.release(id, recipient="alice@example.com") == 1
            assert ms.cancel(id, recipient="bob@example.net") == 1
            assert ms.status(id).recipients["bob@example.net"].status is Status.CANCELLED

            assert ms.change_all("cancel", tag="greeting", dry_run=True) == 1
            assert ms.change_all("cancel", tag="greeting") == 1
        """,
    ),
    (
        "Running",
        "The engine in a thread of this process; see [embed](../howto/embed.md). Who has a"
        " supervisor (`mailstrom serve`) needs none of this.",
        "start stop worker_status",
        """
        from mailstrom import Mailstrom
        from mailstrom.testing.smtp import SMTPServer

        with SMTPServer().in_thread() as server, Mailstrom("memory:") as ms:
            relay = {"hosts": [f"127.0.0.1:{server.port}"], "tls": "none"}
            ms.start(config={"delivery": {"mode": "relay"}, "relay": relay})
            id = ms.send(b"From: a@example.org\\r\\nTo: b@example.com\\r\\n\\r\\nHi\\r\\n")
            assert ms.wait(id, timeout=60).succeeded
            assert ms.worker_status().ok
            assert ms.stop()
        """,
    ),
    (
        "The spool",
        "Made, looked through, copied, closed.",
        "create check pinned orphans backup adopt close",
        """
        from mailstrom import Mailstrom

        with Mailstrom("spool.db") as ms:
            ms.send(b"From: a@example.org\\r\\nTo: b@example.com\\r\\n\\r\\nHi\\r\\n")
            assert ms.check() == []
            ms.backup("copy.db")

        with Mailstrom("copy.db") as copy:
            assert copy.stats().copied
            assert copy.adopt()    # from now on an engine delivers from it
        """,
    ),
)
PARSER_EXAMPLE = """
    from mailstrom import InvalidMessage
    from mailstrom.message import parse

    DATA = (
        b"Date: Sat, 21 Nov 2026 10:00:00 +0100\\r\\n"
        b"From: Alice <alice@example.org>\\r\\n"
        b"To: Friends: bob@example.net, carol@example.com;\\r\\n"
        b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\\r\\n"
        b"\\r\\n"
        b"Hello\\r\\n"
    )
    parsed = parse(DATA)
    assert parsed.subject == "Gr\\u00fc\\u00dfe"
    assert parsed.date.tzinfo is not None
    assert parsed.render() == DATA

    try:
        parse(DATA.replace(b"alice@", b"alice"))
    except InvalidMessage as error:
        print(error.header, error.rule, error.position, error)
"""
ASYNC_EXAMPLE = """
    import asyncio

    from mailstrom import AsyncMailstrom

    MAIL = b"From: shop@example.org\\r\\nTo: alice@example.com\\r\\n\\r\\nHi\\r\\n"


    async def main() -> None:
        async with AsyncMailstrom("memory:") as ms:
            ids = await asyncio.gather(*(ms.send(MAIL) for _ in range(100)))
            assert (await ms.status(ids[0])).sender == "shop@example.org"
            async for event in ms.follow(after=0):
                assert event.type == "message.accepted"
                break


    asyncio.run(main())
"""


def methods(cls: type) -> dict[str, Callable[..., object]]:
    """The public methods and properties of a class, its bases' included, by name."""
    found: dict[str, Callable[..., object]] = {}
    for base in reversed(cls.__mro__[:-1]):
        for name, thing in vars(base).items():
            function = thing.__func__ if isinstance(thing, classmethod) else thing
            function = function.fget if isinstance(function, property) else function
            if name[0] != "_" and isinstance(function, FunctionType):
                found[name] = function
    return found


def entry(name: str, function: Callable[..., object], level: str = "###") -> Iterator[str]:
    """Heading, signature and docstring of one method or property."""
    text = signature(name, function)
    if isinstance(inspect.getattr_static(api.Mailstrom, name, None), property):
        text = text.replace("() ->", ":")
    yield from (f"{level} `{name}`", "", "```text", text, "```", "", *prose(function))


def example(text: str) -> Iterator[str]:
    """A block that the tests run."""
    yield from ("```python run", *textwrap.dedent(text).strip().splitlines(), "```", "")


def constructor(cls: type) -> Iterator[str]:
    """How an object is made."""
    text = signature(cls.__name__, cls.__init__).rpartition(" ->")[0]  # type: ignore[misc]
    yield from ("```text", text, "```", "")


def client_reference() -> Iterator[str]:
    """docs/reference/client.md."""
    public = methods(api.Mailstrom)
    placed = {name for _, _, names, _ in CONCERNS for name in names.split()}
    if placed != public.keys():
        raise SystemExit(f"tools/gendocs: CONCERNS lacks or invents {placed ^ public.keys()}")
    yield from ("# Python", "", NOTE, "")
    yield (
        "Everything on this page is imported from `mailstrom`, unless a section says otherwise:"
        " `from mailstrom import Mailstrom, Status`."
    )
    yield ""
    for title, _, names, _ in CONCERNS:
        listed = ", ".join(f"[`{name}`](#{name})" for name in names.split())
        yield f"- [{title}](#{title.lower().replace(' ', '-')}): {listed}"
    yield "- [AsyncMailstrom](#asyncmailstrom), [values](#values), [words](#words),"
    yield from ("  [errors](#errors), [parsing](#parsing)", "")
    yield from ("## Mailstrom", "", *constructor(api.Mailstrom), *prose(api.Mailstrom))
    yield from list(prose(api))[2:]  # what holds for all methods, without the headline
    for title, words, names, code in CONCERNS:
        yield from (f"## {title}", "", words, "", *example(code))
        for name in names.split():
            yield from entry(name, public[name])
            if name == "suppressions":
                for inner, function in methods(Suppressions).items():
                    yield from entry(f"suppressions.{inner}", function, "####")
        if title == "Sending":
            yield from send_options()
    yield from async_reference(public)
    yield from value_reference()
    yield from error_reference()
    yield from parser_reference()


def send_options() -> Iterator[str]:
    """The options of one message among many."""
    yield from ("### `SendOptions`", "", *prose(api.SendOptions))
    yield (
        "A dict with these keys, all optional and as in [`send`](#send); for `send_many`, where a"
        " message has options of its own. An unknown key is a `TypeError` that names it; nothing of"
        " its chunk is stored."
    )
    yield from ("", "```python", "from mailstrom.client.api import SendOptions", "```", "")
    yield from (cells("key", "type"), cells("---", "---"))
    for key, hint in api.SendOptions.__annotations__.items():
        kind = getattr(hint, "__forward_arg__", str(hint))
        yield cells(f"`{key}`", f"`{kind}`")
    yield ""


def async_reference(plain: Mapping[str, object]) -> Iterator[str]:
    """The awaitable client: how it is made, and what its methods say beyond the plain ones."""
    awaitable = mailstrom.AsyncMailstrom
    yield from ("## AsyncMailstrom", "", *constructor(awaitable), *prose(awaitable))
    yield from list(prose(inspect.getmodule(awaitable)))[2:]
    yield from example(ASYNC_EXAMPLE)
    own = methods(awaitable)
    missing = plain.keys() - own.keys() - {"path"}
    if missing:
        raise SystemExit(f"tools/client_page.py: AsyncMailstrom lacks {missing}")
    yield from ("All methods are those above. Where more is to be known:", "")
    for name, function in own.items():
        text = inspect.getdoc(function) or ""
        if name not in plain or "\n\n" in text:
            words = " ".join(text.replace("``", "`").split())
            yield f"- `{name}`: {words}"
    yield ""


def origin(cls: type) -> Iterator[str]:
    """Where a class is imported from, if not from ``mailstrom`` itself."""
    if not (hasattr(mailstrom, cls.__name__) or cls.__name__ in message.__all__):
        yield from (f"From `{cls.__module__}`.", "")


def value_reference() -> Iterator[str]:
    """Result types and the words in them."""
    yield from (
        "## Values",
        "",
        "Frozen dataclasses; the words in them are those of the views.",
        "",
    )
    every = [*classes(types), *classes(causes)]
    found = [cls for cls in every if dataclasses.is_dataclass(cls)]
    for cls in sorted(found, key=lambda cls: cls is not types.MessageStatus):
        if cls not in INNER_VALUES:
            yield from members(cls)
    yield from ("## Words", "", 'Each is a `str`: `status == "queued"` is true, too.', "")
    for words in every:
        if issubclass(words, enum.StrEnum) and words not in INNER_VALUES:
            listed = ", ".join(f"`{word}`" for word in words)
            yield from (f"### `{words.__name__}`", "", *prose(words), listed, "", *origin(words))


def members(cls: type) -> Iterator[str]:
    """A dataclass: what its docstring says, and a row for each field, property and method."""
    told = [line for line in prose(cls) if line != "**Args**"]
    meant = dict(
        re.fullmatch(r"- `(\w+)`: (.*)", line).groups() for line in told if line[:3] == "- `"
    )
    yield from (f"### `{cls.__name__}`", "", *(line for line in told if line[:3] != "- `"))
    yield from origin(cls)
    if cls in VIEW_OF:
        yield from (f"As the columns of [`{VIEW_OF[cls]}`](schema.md#{VIEW_OF[cls]}).", "")
    yield from (cells("name", "type", "meaning"), cells("---", "---", "---"))
    for field in dataclasses.fields(cls):
        yield cells(f"`{field.name}`", f"`{field.type}`", sentence(meant.get(field.name, "")))
    for name, thing in vars(cls).items():
        if name[0] == "_" or not isinstance(thing, FunctionType | property):
            continue
        function = thing.fget if isinstance(thing, property) else thing
        first = (inspect.getdoc(thing) or "").partition("\n\n")[0].replace("``", "`")
        kind = str(function.__annotations__["return"])
        shown = f"`{name}`" if isinstance(thing, property) else f"`{signature(name, function)}`"
        shown = shown.partition(" ->")[0].rstrip("`") + "`"
        yield cells(shown, f"`{kind}`", " ".join(first.split()))
    yield ""


def sentence(text: str) -> str:
    """With a capital letter in front."""
    return text[:1].upper() + text[1:]


def error_reference() -> Iterator[str]:
    """The tree of errors."""
    yield from ("## Errors", "", "All are under `MailstromError`; each says what is wrong, where,")
    yield from ("and what to do.", "", cells("error", "is a", "when"), cells("---", "---", "---"))
    detailed = []
    for error in classes(errors):
        first, _, rest = (inspect.getdoc(error) or "").replace("``", "`").partition("\n\n")
        bases = ", ".join(f"`{base.__name__}`" for base in error.__bases__)
        yield cells(f"`{error.__name__}`", bases, " ".join(first.split()))
        if rest:
            detailed.append(error)
    yield ""
    for error in detailed:
        yield from (f"### `{error.__name__}`", "", *prose(error))


def parser_reference() -> Iterator[str]:
    """The strict parser."""
    yield from ("## Parsing", "", "From `mailstrom.message`: a strict reader for messages that")
    yield from (
        "must be right, and the refusal by [rule](message-rules.md) where they are not.",
        "",
    )
    yield from example(PARSER_EXAMPLE)
    yield from entry("parse", message.parse)
    for cls in (message.Parsed, message.Resent, message.Received, message.ParsedField):
        yield from members(cls)
    yield from (
        "`Entries` is a tuple of `Mailbox` and `Group`, `Value` the union of what fields mean.",
        "",
    )
    for cls in (message.Mailbox, message.Group, message.Address):
        yield from members(cls)
