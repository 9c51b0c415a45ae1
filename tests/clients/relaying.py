"""What mail servers that are clients have in common: mail is handed to them by smtplib.

Contract. A server that hands on is asked by recipient's domain, which tells it whether and how to
use TLS and to log in; it has accepted a message before it tries. What becomes of it is read in its
log.
"""

from __future__ import annotations

import smtplib

from tests.clients.cases import Case

WAIT_S = 60.0


def handed(address: str, port: int, case: Case, contents: list[bytes]) -> list[str]:
    """Hand messages to a server; the texts with which it took them.

    Raises:
        smtplib.SMTPException: it did not.
    """
    texts = []
    with smtplib.SMTP(address, port, "application.test", timeout=WAIT_S) as session:
        session.ehlo()
        for content in contents:
            _good(session, *session.mail(case.sender, _options(case)))
            for recipient in case.addresses:
                _good(session, *session.rcpt(recipient, _each(case)))
            code, text = session.data(content)
            _good(session, code, text)
            texts.append(text.decode(errors="replace"))
    return texts


def _good(session: smtplib.SMTP, code: int, text: bytes) -> None:
    if code // 100 != 2:
        session.close()
        raise smtplib.SMTPResponseException(code, text)


def _options(case: Case) -> list[str]:
    options = ["BODY=8BITMIME"] if case.asks & {"8BITMIME", "SMTPUTF8"} else []
    if "SMTPUTF8" in case.asks:
        options.append("SMTPUTF8")
    if "DSN" in case.asks:
        options += ["RET=HDRS", "ENVID=b+2B1"]
    return options


def _each(case: Case) -> list[str]:
    if "DSN" not in case.asks:
        return []
    return ["NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;bob@clients.test"]
