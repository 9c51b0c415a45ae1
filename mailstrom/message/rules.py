"""Every rule a message can break: its stable name, what it says, and what to do.

``InvalidMessage.rule`` is always one of these names; they stay the same under SemVer. One table, so
that the reference page, the strict reader and the tests agree. Holds words only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule.

    Args:
        sentence: what is wrong when it is named.
        remedy: what the caller does about it.
    """

    sentence: str
    remedy: str

    @property
    def advice(self) -> str:
        """The remedy within a longer sentence."""
        return f"{self.remedy[0].lower()}{self.remedy[1:]}"


_ROWS: tuple[tuple[str, str, str], ...] = (
    # -- the message as a whole
    ("message-type", "The message is none of EmailMessage, Message, bytes (the strict reader takes"
     " bytes alone).", "Pass one of them."),
    ("nul", "There is a NUL octet.", "Encode the part as base64."),
    ("line-endings", "Bytes mix CRLF, bare CR and bare LF (the strict reader wants CRLF).",
     "Use one line end throughout, and encode parts that hold others."),
    ("line-too-long", "A line is longer than 998 octets and cannot be folded.",
     "Put white space into the header, or encode the body."),
    ("blank-line-missing", "No blank line ends the headers.",
     "Write the headers, an empty line, then the body."),
    ("loop", "A message that came by SMTP has passed 100 servers, or this one six times.",
     "Look where its route leads back."),
    ("too-large", "The message is larger than the spool takes.", "Link to large files instead."),
    # -- header lines
    ("header-syntax", "A line is neither 'Name: value' nor a continuation of one.",
     "Write one field a line; indent continuations."),
    ("header-too-large", "The headers of a message that came by SMTP have more than a mebibyte.",
     "Send fewer."),
    ("header-name", "A header's name is not printable ASCII without spaces and colons.",
     "Rename the header."),
    ("header-type", "A header's value is no text.", "Set it to a str."),
    ("header-injection", "A value or name holds a line break or NUL, plain or encoded.",
     "Remove it; Mailstrom folds long headers itself."),
    ("header-control", "A header holds a control character or a foreign line separator.",
     "Remove it or encode it (RFC 2047)."),
    ("header-blank-fold", "A header is folded with a blank line, which some readers take for the"
     " end of the headers.", "Remove the line."),
    ("header-undecodable", "A header holds octets that are not UTF-8, or half of a surrogate pair.",
     "Decode it to text first."),
    ("header-not-ascii", "A header that has no encoding for it holds non-ASCII characters.",
     "Write it in ASCII."),
    ("duplicate-header", "A header that may stand once stands twice.",
     "Keep one; several addresses go into one header."),
    ("from-missing", "There is no From header.", "Set one (RFC 5322 section 3.6)."),
    ("from-duplicate", "There is more than one From header.",
     "Keep one; several authors go into one header."),
    ("date-missing", "There is no Date header (strict reader only; when sending, one is added).",
     "Set one (RFC 5322 section 3.6)."),
    ("date-syntax", "A date is not one of RFC 5322 section 3.3 (1900 or later), or never was.",
     "Set the header to an aware datetime, or leave it out."),
    ("date-naive", "A Message of the older class holds a datetime without a time zone (EmailMessage"
     " makes text of one that says -0000, which is UTC, and is sent).", "Use datetime.now(UTC)."),
    ("message-id", "A Message-ID is not <left@right> in printable ASCII.",
     "Leave it out (Mailstrom makes one) or write <unique@domain>."),
    ("phrase", "Keywords are not words separated by commas.", "Quote what is not plain words."),
    ("comment", "A comment does not close, or nests too deep.", "Balance the parentheses."),
    ("received", "A Received header is not words, then ; and a date.",
     "Leave trace headers to the servers."),
    ("parameter", "Parameters cannot be read with certainty, or one stands twice.",
     'Write value; name=token; name="quoted".'),
    ("parameter-too-long", "A parameter (a file name, a boundary) is longer than 65,536 octets.",
     "Shorten it."),
    ("resent-incomplete", "A block of Resent- headers lacks Resent-Date or Resent-From.",
     "Give each block both (RFC 5322 section 3.6.6)."),
    # -- envelope
    ("no-sender", "No sender was given, and From (Resent-From) names none.",
     "Set From, or pass sender=."),
    ("sender-ambiguous", "From has several authors or a group and there is no Sender, or Sender"
     " itself is not one address.",
     "Set Sender to the one who sends (RFC 5322 section 3.6.2, RFC 6854)."),
    ("no-recipients", "There is no recipient.", "Set To, Cc or Bcc, or pass recipients=."),
    ("recipients-type", "recipients= is no list.", "Pass ['a@example.com']."),
    # -- addresses
    ("address-type", "An address is no text.", "Pass 'local@domain'."),
    ("address-empty", "An address is empty.", "Write local@domain."),
    ("address-control", "An address holds a control character or line break.", "Remove it."),
    ("address-no-at", "An address has no @.", "Write local@domain."),
    ("address-space", "An address holds a space outside quotes.", "Remove it."),
    ("address-angle", "A bare address holds < or >.", "Pass local@domain alone."),
    ("address-syntax", "An address list reads more than one way, or not at all.",
     "Write 'Name <local@domain>' entries separated by commas, odd names in quotes."),
    ("display-name-too-long", "The name of a mailbox or group is longer than 65,536 octets, or is"
     " written in more than 262,144 characters.", "Shorten it."),
    ("address-group", "A group does not end, or holds a group.", "Write 'Name: a@b, c@d;'."),
    ("address-route", "An address has a source route, which is obsolete.",
     "Remove what stands before the colon."),
    ("local-empty", "There is nothing before the @.", "Write local@domain."),
    ("local-too-long", "The local part is longer than 64 octets.", "Check the address."),
    ("local-dot", "The local part begins or ends with a dot, or has two in a row.",
     "Check the address, or quote the local part."),
    ("local-character", "The local part has a character that needs quotes.",
     "Quote the local part."),
    ("local-quoting", "A quoted local part is malformed.",
     'Escape " and \\ with \\, close the quotes before the @.'),
    ("local-encoded-word", "An address holds an encoded-word, which RFC 2047 section 5 forbids.",
     "Write it decoded."),
    ("domain-empty", "There is nothing behind the @.", "Write local@domain."),
    ("domain-too-long", "The domain is longer than 255 octets.", "Check the address."),
    ("domain-label-empty", "The domain has an empty label.", "Check the dots."),
    ("domain-label-too-long", "A label of the domain is longer than 63 octets.",
     "Check the address."),
    ("domain-label-hyphen", "A label begins or ends with a hyphen.", "Check the address."),
    ("domain-character", "A label holds something else than letters, digits and hyphens.",
     "Write a DNS host name."),
    ("domain-idna", "IDNA 2008 does not allow the domain.", "Check the spelling, or pass xn--."),
    ("domain-literal", "An address literal is malformed.",
     "Write [192.0.2.1] or [IPv6:2001:db8::1]."),
    # -- MIME
    ("payload-type", "A part's payload is neither text nor octets.", "Use set_content()."),
    ("body-charset", "A part holds text that its charset cannot express, or octets that are no text"
     " in it (UTF-16 and UTF-32, which set_content() spoils).",
     "Use set_content(text), or set_payload(text, 'utf-8')."),
    ("transfer-encoding", "A part's transfer encoding does not fit its octets.",
     "Leave the encoding to Mailstrom."),
    ("multipart-payload", "A multipart holds something else than parts.", "Attach messages."),
    ("multipart-empty", "A multipart has no parts.", "Attach at least one."),
    ("message-payload", "A message/ part does not hold one message, or a block of a delivery status"
     " has a body.", "Attach one a part; put text into a part of its own."),
    ("mime-too-deep", "MIME parts nest deeper than 50.", "Attach the message as one file."),
    ("mime-too-many-parts", "There are more than 10,000 parts.", "Attach an archive."),
    ("nested-smtputf8", "A nested message has an address that needs SMTPUTF8.",
     "Pass the finished message as bytes."),
    ("signed-part-would-change", "A part under a signature would have to be rewritten.",
     "Encode it before signing, or pass the finished message as bytes."),
    # -- options of send()
    ("option", "An option of send() has the wrong type or is out of range.", "See the sentence."),
    ("option-control", "An option holds a control character.", "Remove it."),
    ("unfit", "The spool cannot hold a value.", "See the sentence."),
    ("constraint", "The spool's own checks refuse the message.", "See the sentence."),
)  # fmt: skip

RULES: dict[str, Rule] = {
    name: Rule(sentence=sentence, remedy=remedy) for name, sentence, remedy in _ROWS
}
