"""An email policy under which header lines come back out as they went in.

The standard library's policies drop white space behind the colon and break lines at every character
that Unicode calls a line end. Here a header that nobody set anew is kept whole; what an application
sets is folded as ``email.policy.SMTPUTF8`` does it. Loaded with the first ``Mailstrom.message()``.
"""

from __future__ import annotations

from email.policy import EmailPolicy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from email.message import EmailMessage

    Base = EmailPolicy[EmailMessage]
else:
    Base = EmailPolicy  # takes no parameters at run time


class LosslessPolicy(Base):
    """Source lines verbatim, CRLF, 8-bit text as it is."""

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        """Name and value of a header; nothing but the last line end is taken away."""
        name, _, value = "".join(sourcelines).partition(":")
        return name, value.rstrip("\r\n")

    def header_fetch_parse(self, name: str, value: str) -> Any:
        """The header as an object."""
        if not hasattr(value, "name"):
            value = value.lstrip(" \t\r\n")
        return super().header_fetch_parse(name, value)

    def fold(self, name: str, value: str) -> str:
        """The header's lines as text."""
        if hasattr(value, "name"):
            return str(super().fold(name, value))
        return f"{name}:{value}{self.linesep}"

    def fold_binary(self, name: str, value: str) -> bytes:
        """The header's lines as octets."""
        if hasattr(value, "name"):
            return bytes(super().fold_binary(name, value))
        return self.fold(name, value).encode("utf-8", "surrogateescape")


LOSSLESS = LosslessPolicy(
    linesep="\r\n", cte_type="8bit", utf8=True, refold_source="none", max_line_length=78
)
