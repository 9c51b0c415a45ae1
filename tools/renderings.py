"""Messages that Python's own serialiser changes, and what Mailstrom sends for the same object.

``CASES`` is read by tools/gendocs, which writes docs/reference/renderings.md of it, and by the
tests. ``before`` is the standard library's rendering on the Python that runs; a version that has
mended a fault merely shows a sound rendering there. ``after`` is ours, or the rule that refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.headerregistry import Address
from email.message import EmailMessage, Message
from email.policy import Policy
from typing import Any

from mailstrom.message import compose

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One message and what may go wrong with it.

    Args:
        title: what is lost or forged.
        fault: one or two sentences on what the library does.
        field: the header that shows it.
        build: makes the message object.
        issue: number of the report against CPython, where there is one.
        keys: the recipients that are meant, where the fault is about them.
        text: what the header means, where the fault is about text.
        rule: the rule by which Mailstrom refuses, where it does.
    """

    title: str
    fault: str
    field: str
    build: Callable[[], Message[Any, Any]]
    issue: int | None = None
    keys: tuple[str, ...] | None = None
    text: str | None = None
    rule: str | None = None


def modern(**headers: object) -> EmailMessage:
    """A message as the library's own documentation makes it."""
    message = EmailMessage()
    for name, value in {"From": "ann@a.example", "To": "bob@b.example", **headers}.items():
        message[name.replace("_", "-")] = value
    message.set_content("Hello\n")
    return message


def older(policy: Policy[Any], **headers: str) -> Message[Any, Any]:
    """A message of the older class; its own policy checks nothing when a header is set."""
    message: Message[Any, Any] = Message(policy=policy)
    for name, value in {"From": "ann@a.example", "To": "bob@b.example", **headers}.items():
        message[name.replace("_", "-")] = value
    message.set_payload("Hello\n")
    return message


def to_the_same() -> EmailMessage:
    """A message to whoever another one went to: the encoded name holds commas and an address."""
    source = message_from_bytes(
        b"To: =?utf-8?q?Good=2C_boss=40bank=2Eexample=2C?= a name that is too long for one line"
        b" <ann@a.example>\r\n\r\n",
        policy=policy.default,
    )
    return modern(To=source["To"])


def read_back() -> Message[Any, Any]:
    """A message read from a file and sent on."""
    return message_from_bytes(
        b"From: ann@a.example\nTo: bob@b.example\nSubject: a\n \n b\n\nHello\n"
    )


def several() -> EmailMessage:
    """Two people, the first with commas and umlauts in a long name."""
    first = Address("Müller, Müller, @x O'Neil AAAAAAAAAAAA", addr_spec="a@x.example")
    return modern(To=[first, Address("von", addr_spec="b@x.example")])


LEFTOVERS = "Notes on the meeting of last March, and some of the übriggebliebene Reste"

CASES: tuple[Case, ...] = (
    Case(
        title="An encoded name becomes recipients",
        fault="Refolding takes the encoding off a name and leaves its commas bare: one person"
        " becomes three, one of them chosen by whoever wrote the name.",
        field="To",
        build=to_the_same,
        issue=121284,
        keys=("ann@a.example",),
    ),
    Case(
        title="A recipient is lost",
        fault="The comma between two people is encoded together with the first one's name, so that"
        " readers see one address.",
        field="To",
        build=several,
        issue=100884,
        keys=("a@x.example", "b@x.example"),
    ),
    Case(
        title="A long quoted name becomes recipients",
        fault="Folding drops the quotes of a name with commas; each piece reads as an address.",
        field="To",
        build=lambda: modern(
            To=Address(("long name, with comma " * 5).strip(), "victim", "good.example")
        ),
        issue=80222,
        keys=("victim@good.example",),
    ),
    Case(
        title="An address is encoded",
        fault="A non-ASCII local part is written as an encoded-word, which RFC 2047 section 5"
        " forbids: what the address is depends on the reader.",
        field="To",
        build=lambda: modern(To=Address("Jörg", "jörg", "b.example")),
        issue=122476,
        keys=("jörg@b.example",),
    ),
    Case(
        title="A domain is encoded",
        fault="A domain outside ASCII is written as an encoded-word, too; no server has that name.",
        field="To",
        build=lambda: modern(To=Address("Ann", "ann", "bücher.example")),
        keys=("ann@xn--bcher-kva.example",),
    ),
    Case(
        title="An encoded-word inside an address is decoded",
        fault="What is read as evil@x.y at b.example is written with two @.",
        field="To",
        build=lambda: modern(To="=?utf-8?q?evil=40x.y?=@b.example"),
        issue=122476,
        rule="address-syntax",
    ),
    Case(
        title="Readers disagree who is meant",
        fault="The library reads the first address, others the one in angle brackets.",
        field="To",
        build=lambda: modern(To="a@evil.example <b@good.example>"),
        rule="address-syntax",
    ),
    Case(
        title="A subject makes a Bcc header",
        fault="A message of the older class keeps a line break in a value, and the newer policy"
        " writes it.",
        field="Subject",
        build=lambda: older(policy.compat32, Subject="a\nBcc: x@evil.example"),
        rule="header-injection",
    ),
    Case(
        title="A subject makes a body",
        fault="The same with two line breaks ends the headers.",
        field="Subject",
        build=lambda: older(policy.compat32, Subject="a\n\nNot your body"),
        rule="header-injection",
    ),
    Case(
        title="A blank continuation ends the headers",
        fault="A continuation of white space alone is written as it was read; many readers take it"
        " for the end of the headers.",
        field="Subject",
        build=read_back,
        issue=132105,
        rule="header-injection",
    ),
    Case(
        title="White space alone on a line",
        fault="A long run of spaces is folded next to nothing else, or encoded.",
        field="Subject",
        build=lambda: modern(Subject="x " * 45 + " " * 90 + "y"),
        issue=132105,
        text="x " * 45 + " " * 90 + "y",
    ),
    Case(
        title="An empty encoded-word",
        fault="A word that does not fit a line leaves an encoded-word without text, which RFC 2047"
        " does not allow.",
        field="Subject",
        build=lambda: older(policy.SMTP, Subject=LEFTOVERS),
        issue=136052,
        text=LEFTOVERS,
    ),
    Case(
        title="A space is lost or added",
        fault="A space between two encoded-words counts for nothing (RFC 2047 section 6.2); the one"
        " of the text is written there, and readers join the words.",
        field="Subject",
        build=lambda: modern(Subject="Über 😀 " * 12 + "x"),
        text="Über 😀 " * 12 + "x",
    ),
    Case(
        title="Message-IDs are encoded",
        fault="Identifiers too long for a line are written as encoded-words; threads break.",
        field="References",
        build=lambda: modern(References=f"<{'a' * 80}@m.example> <{'b' * 80}@m.example>"),
        issue=85725,
        text=f"<{'a' * 80}@m.example> <{'b' * 80}@m.example>",
    ),
    Case(
        title="The unsubscribe link is encoded",
        fault="A URL too long for a line is written as encoded-words; the button does not work.",
        field="List-Unsubscribe",
        build=lambda: modern(List_Unsubscribe=f"<https://example.com/{'u' * 80}>"),
        issue=85725,
        text=f"<https://example.com/{'u' * 80}>",
    ),
    Case(
        title="Blind copies are sent",
        fault="as_bytes writes Bcc like any other header.",
        field="Bcc",
        build=lambda: modern(Bcc="secret@x.example"),
        keys=("bob@b.example", "secret@x.example"),
    ),
    Case(
        title="A date is emptied",
        fault="A date that cannot be read becomes an empty header.",
        field="Date",
        build=lambda: modern(Date="yesterday"),
        rule="date-syntax",
    ),
)


def before(case: Case) -> bytes:
    """The standard library's rendering on this Python, or the error it raises."""
    try:
        return case.build().as_bytes(policy=policy.SMTP)
    except Exception as error:  # the page shows whatever it is
        return f"{type(error).__name__}: {error}".encode()


def after(case: Case) -> bytes:
    """What Mailstrom sends.

    Raises:
        InvalidMessage: it refuses.
    """
    return compose(case.build(), now=NOW, id_domain_fallback="a.example").content


def shown(content: bytes, field: str) -> str:
    """The lines of a header and, should a value break out, all that follows it."""
    head, _, rest = content.partition(b"\r\n\r\n")
    name = field.lower().encode() + b":"
    lines: list[bytes] = []
    for line in head.split(b"\r\n"):
        if lines and not line.startswith((b" ", b"\t")):
            if line.lower().startswith(b"bcc:"):
                lines.append(line)
            break
        if lines or line.lower().startswith(name):
            lines.append(line)
    if rest.startswith(b"Not your body"):
        lines += [b"", rest.partition(b"\r\n")[0]]
    return "\n".join(line.decode("utf-8").rstrip() for line in lines)
