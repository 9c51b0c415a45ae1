"""Cases of injection: what an application may hand in, made by lot from a seed.

Contract. ``cases`` gives as many as asked, each a message and options that hold a payload at one
place, and what is intended whoever reads it: names of header fields, sender, recipients, parts. The
payload never adds to that. Places, payloads and kinds of message come round, so that a few hundred
cases have had each of them; how they meet, and where the payload stands, is drawn.

Must not know: our own parser or renderer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.charset import Charset
from email.header import Header
from email.message import EmailMessage, Message
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import Any

from tests.hostile.input_payloads import drawn, huge

CASE = "X-Case"
ADDRESS_FIELDS = ("From", "To", "Cc", "Bcc", "Reply-To", "Sender")
TEXT_FIELDS = ("Subject", "X-Note", "Comments", "List-Id", "List-Unsubscribe", "In-Reply-To",
               "References", "Message-ID", "Date", "Keywords", "Received", "Organization",
               "MIME-Version", "Resent-From", "DKIM-Signature",
               "Authentication-Results")  # fmt: skip
SLOW = 4_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One message that means no good.

    Args:
        number: in the run; ``X-Case`` holds it.
        place: where the payload stands, and in what kind of message.
        payload: the text itself.
        made: builds the message and the options of ``send``; what the ``email`` package refuses on
            its own raises ValueError or another error of its.
        names: header fields that the message is to have, lower-case, without those that are added;
            None: those that its octets have.
        sender: of the envelope; None: as the payload has it, see ``attacked``.
        recipients: of the envelope, without those in ``attacked``.
        attacked: an address argument that holds the payload itself.
        parts: of the MIME tree; 1: no multipart.
        decodes: whether encoded-words must not decode to line ends: octets that come finished are
            the caller's own.
    """

    number: int
    place: str
    payload: str
    made: Callable[[], tuple[Any, dict[str, Any]]]
    names: tuple[str, ...] | None
    sender: str | None = "a@sender.test"
    recipients: tuple[str, ...] = ()
    attacked: str | None = None
    parts: int = 1
    decodes: bool = True
    home: str = field(default="", kw_only=True)


BASE = ("from", "to", "subject", CASE.lower())


class Maker:
    """Makes cases.

    Args:
        seed: what repeats them.
        domain: whose mail reaches the recording host.
    """

    def __init__(self, seed: int, domain: str) -> None:
        self.lot = random.Random(seed)
        self.domain = domain
        self.number = 0
        self.huge = 0

    def cases(self, count: int, huge: int) -> Iterator[Case]:
        """So many; of them ``huge`` with a payload of 1 MB."""
        ways = (
            *((self._text, name) for name in TEXT_FIELDS),
            *((self._name_of, name) for name in ADDRESS_FIELDS),
            *((self._address_of, name) for name in ADDRESS_FIELDS),
            (self._field_name, ""), (self._filename, ""), (self._part_type, ""),
            (self._boundary, ""), (self._charset, ""), (self._type, ""), (self._body, ""),
            (self._preamble, ""), (self._attached, ""), (self._foreign, ""), (self._octets, ""),
            *((self._option, name) for name in (
                "sender", "recipients", "tags", "metadata", "metadata key", "idempotency_key",
                "stream",
            )),
        )  # fmt: skip
        self.huge = huge
        while self.number < count:
            make, what = ways[self.number % len(ways)]
            self.number += 1
            yield make(what, self.payload())

    def payload(self) -> str:
        """One text that means no good."""
        if self.huge and self.number % 41 == 40:
            self.huge -= 1
            return huge(self.lot)
        return drawn(self.lot, self.number)

    # Kinds of message

    def _kinds(self) -> str:
        return self.lot.choice(("modern", "by hand", "legacy", "header object", "registry"))

    def _put(self, kind: str, name: str, value: str) -> Callable[[], Message[Any, Any]]:
        number, to = self.number, self._to()
        if len(value) > SLOW:  # the package's own parser would take hours
            kind = {"modern": "by hand", "registry": "by hand"}.get(kind, kind)

        def made() -> Message[Any, Any]:
            message: Message[Any, Any] = (
                Message() if kind in ("legacy", "header object") else EmailMessage()
            )
            given = {"From": "a@sender.test", "To": to, "Subject": "s", CASE: str(number)}
            for key, plain in given.items():
                if key != name:
                    message[key] = plain
            if kind == "by hand":
                message._headers.append((name, value))  # type: ignore[attr-defined]
            elif kind == "header object":
                message[name] = Header(value, self._charset_of(value))
            elif kind == "registry" and name == "Subject":
                message[name] = message.policy.header_factory(name, value)  # type: ignore[attr-defined]
            else:
                message[name] = value
            message.set_payload("Good morning.\n")
            return message

        return made

    @staticmethod
    def _charset_of(value: str) -> Charset | str | None:
        return None if value.isascii() else "utf-8"

    def _to(self) -> str:
        return f"c{self.number}@{self.domain}"

    def _case(self, place: str, payload: str, made: Callable[[], Any], **more: Any) -> Case:
        to = self._to()
        more.setdefault("recipients", (to,))
        more.setdefault("names", BASE)
        options = more.pop("options", {})
        return Case(
            number=self.number, place=place, payload=payload, home=self.domain,
            made=lambda: (made(), options), **more,
        )  # fmt: skip

    # Places

    def _text(self, name: str, payload: str) -> Case:
        kind = self._kinds()
        value = payload
        if name == "Message-ID" and self.lot.random() < 0.5:
            value = f"<a{payload}@b.test>"
        elif name == "Date" and self.lot.random() < 0.5:
            value = "Thu, 01 Jan 2026 00:00:00 +0000" + payload
        elif self.lot.random() < 0.3:
            value = f"{payload}: harmless"
        names = BASE if name.lower() in BASE else (*BASE, name.lower())
        # of what was sent again, others are sender and recipients
        options = {"sender": "a@sender.test", "recipients": [self._to()]}
        return self._case(
            f"{name}, {kind}", payload, self._put(kind, name, value), names=names,
            options=options if name.startswith("Resent") or self.lot.random() < 0.2 else {},
        )  # fmt: skip

    def _quoted(self, payload: str) -> str:
        return '"' + payload.replace("\\", "\\\\").replace('"', '\\"') + '"'

    def _name_of(self, name: str, payload: str) -> Case:
        """The payload as a display name, quoted or as a registry's object."""
        kind = self._kinds()
        address = "a@sender.test" if name in ("From", "Sender", "Reply-To") else self._to()
        value = f"{self._quoted(payload)} <{address}>"
        return self._addressed(name, kind, payload, value, "name in")

    def _address_of(self, name: str, payload: str) -> Case:
        """The payload behind, before or within an address."""
        kind = self._kinds()
        local = "a@sender.test" if name in ("From", "Sender", "Reply-To") else self._to()
        # What stands behind a comma is another address, which is what an application wrote.
        payload = payload.replace(",", "")
        value = self.lot.choice(
            (
                f"{local}{payload}",
                f"{payload}{local}",
                f"<{local}{payload}>",
                f"n <{local}>{payload}",
            )
        )
        return self._addressed(name, kind, payload, value, "address in", vague=True)

    def _addressed(
        self, name: str, kind: str, payload: str, value: str, where: str, *, vague: bool = False
    ) -> Case:
        key = name.lower()
        names = BASE if key in BASE else BASE if key == "bcc" else (*BASE, key)
        options: dict[str, Any] = {}
        if vague:  # a payload within an address is another address, if it is one at all
            options = {"sender": "a@sender.test", "recipients": [self._to()]}
        return self._case(
            f"{where} {name}, {kind}", payload, self._put(kind, name, value), names=names,
            options=options,
        )  # fmt: skip

    def _field_name(self, _: str, payload: str) -> Case:
        name = self.lot.choice((payload, f"X-Note{payload}", f"X{payload}Y", f"{payload}: X-Note"))
        made = self._put("by hand", name, "v")
        return self._case("name of a field", payload, made, names=(*BASE, name.lower()))

    def _mixed(
        self, change: Callable[[Message[Any, Any], Message[Any, Any]], None]
    ) -> Callable[[], Any]:
        number, to = self.number, self._to()

        def made() -> Message[Any, Any]:
            whole: Message[Any, Any] = MIMEMultipart()
            whole["From"], whole["To"], whole["Subject"] = "a@sender.test", to, "s"
            whole[CASE] = str(number)
            part = MIMEText("one\n")
            whole.attach(part)
            whole.attach(MIMEText("two\n"))
            change(whole, part)
            return whole

        return made

    def _multi(self, place: str, payload: str, change: Callable[[Any, Any], None]) -> Case:
        names = (*BASE, "content-type", "mime-version")
        return self._case(place, payload, self._mixed(change), names=names, parts=3)

    def _filename(self, _: str, payload: str) -> Case:
        way = self.lot.choice(("param", "tuple", "text", "encoded"))

        def change(_whole: Any, part: Any) -> None:
            if way == "param":
                part.add_header("Content-Disposition", "attachment", filename=payload)
            elif way == "tuple":
                part.add_header(
                    "Content-Disposition", "attachment", filename=("utf-8", "", payload)
                )
            elif way == "text":
                part["Content-Disposition"] = f"attachment; filename={self._quoted(payload)}"
            else:
                escaped = payload.encode("utf-8", "surrogatepass").hex(" ").replace(" ", "%")
                part["Content-Disposition"] = f"attachment; filename*=utf-8''%{escaped}"

        return self._multi(f"file name, {way}", payload, change)

    def _part_type(self, _: str, payload: str) -> Case:
        way = self.lot.choice(("value", "parameter", "id", "description"))

        def change(_whole: Any, part: Any) -> None:
            if way == "value":
                part.replace_header("Content-Type", f"text/{payload}")
            elif way == "parameter":
                part.set_param("name", payload)
            elif way == "id":
                part["Content-ID"] = f"<a{payload}@b.test>"
            else:
                part["Content-Description"] = payload

        return self._multi(f"a part's own {way}", payload, change)

    def _boundary(self, _: str, payload: str) -> Case:
        way = self.lot.choice(("set", "text"))

        def change(whole: Any, _part: Any) -> None:
            if way == "set":
                whole.set_boundary(payload)
            else:
                whole.replace_header(
                    "Content-Type", f"multipart/mixed; boundary={self._quoted(payload)}"
                )

        return self._multi(f"boundary, {way}", payload, change)

    def _charset(self, _: str, payload: str) -> Case:
        def change(_whole: Any, part: Any) -> None:
            part.set_param("charset", payload)

        return self._multi("charset of a part", payload, change)

    def _type(self, _: str, payload: str) -> Case:
        value = self.lot.choice(
            (payload, f"text/plain; x={self._quoted(payload)}", f"text/plain{payload}",
             f"text/plain; {payload}=1", f"multipart/mixed; boundary={self._quoted(payload)}")
        )  # fmt: skip
        made = self._put("by hand", "Content-Type", value)
        return self._case(
            "Content-Type of the whole",
            payload,
            made,
            names=(*BASE, "content-type", "mime-version"),
        )

    def _body(self, _: str, payload: str) -> Case:
        number, to = self.number, self._to()

        def made() -> Message[Any, Any]:
            message = EmailMessage()
            message["From"], message["To"], message["Subject"] = "a@sender.test", to, "s"
            message[CASE] = str(number)
            message.set_payload(f"one\r\n{payload}\r\n.\r\nMAIL FROM:<a@b>\r\n{payload}")
            return message

        return self._case("body", payload, made)

    def _preamble(self, _: str, payload: str) -> Case:
        def change(whole: Any, _part: Any) -> None:
            whole.preamble = payload
            whole.epilogue = payload

        return self._multi("preamble and epilogue", payload, change)

    def _attached(self, _: str, payload: str) -> Case:
        """A message within the message, whose header holds the payload."""
        number, to = self.number, self._to()

        def made() -> Message[Any, Any]:
            inner: Message[Any, Any] = Message()
            inner["Subject"] = payload
            inner.set_payload("inner\n")
            whole: Message[Any, Any] = MIMEMultipart()
            whole["From"], whole["To"], whole["Subject"] = "a@sender.test", to, "s"
            whole[CASE] = str(number)
            part: Message[Any, Any] = Message()
            part["Content-Type"] = "message/rfc822"
            part.attach(inner)
            whole.attach(part)
            return whole

        names = (*BASE, "content-type", "mime-version")
        return self._case("header of an attached message", payload, made, names=names, parts=3)

    def _foreign(self, _: str, payload: str) -> Case:
        """A value that is no text, and says something else each time it is asked."""
        number, to = self.number, self._to()

        class Fickle(str):
            asked = 0

            def __str__(self) -> str:
                type(self).asked += 1
                return payload if self.asked > 1 else "harmless"

        class Other:
            def __str__(self) -> str:
                return payload

        value = Fickle("harmless") if self.lot.random() < 0.5 else Other()

        def made() -> Message[Any, Any]:
            message: Message[Any, Any] = Message()
            message["From"], message["To"], message[CASE] = "a@sender.test", to, str(number)
            message._headers.append(("Subject", value))  # type: ignore[attr-defined]
            message.set_payload("x\n")
            return message

        return self._case("an object for a value", payload, made)

    def _octets(self, _: str, payload: str) -> Case:
        """A finished message: what it says is what is intended, but for Bcc."""
        name = self.lot.choice(("Subject", "X-Note", "Comments", "To"))
        head = {"From": "a@sender.test", "To": self._to(), "Subject": "s", name: payload}
        lines = "".join(f"{key}: {value}\r\n" for key, value in head.items())
        octets = f"{CASE}: {self.number}\r\n{lines}\r\n.\r\nx\r\n".encode("utf-8", "surrogatepass")
        if self.lot.random() < 0.5:
            octets = octets.replace(b"\r\n", b"\n")
        return self._case(
            f"{name} in octets", payload, lambda: octets, names=None, decodes=False,
            options={"sender": "a@sender.test", "recipients": [self._to()]},
        )  # fmt: skip

    def _option(self, name: str, payload: str) -> Case:
        made = self._put("modern", "Subject", "s")
        to = self._to()
        given: dict[str, Any] = {
            "sender": {"sender": self.lot.choice((f"a@sender.test{payload}",
                f"{payload}@sender.test",
                f"a@{payload}", f"n <a@sender.test{payload}>", f'"{payload}"@sender.test'))},
            "recipients": {"recipients": [to, self.lot.choice((f"d{payload}@{self.domain}",
                f"d@{self.domain}{payload}", f'"{payload}"@{self.domain}'))]},
            "tags": {"tags": [f"t{payload}"]},
            "metadata": {"metadata": {"k": payload}},
            "metadata key": {"metadata": {f"k{payload}": 1}},
            "idempotency_key": {"idempotency_key": f"k{self.number}{payload}"},
            "stream": {"stream": payload},
        }[name]  # fmt: skip
        more: dict[str, Any] = {}
        if name == "sender":
            more = {"sender": None, "attacked": given["sender"]}
        elif name == "recipients":
            more = {"attacked": given["recipients"][1]}
        return self._case(f"{name}=", payload, made, options=given, **more)
