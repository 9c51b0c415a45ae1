"""The clients, in the order of the table; each is a module of this folder."""

from __future__ import annotations

CLIENTS = (
    "python",
    "curl",
    "swaks",
    "msmtp",
    "nodemailer",
    "postfix",
    "exim",
    "openssl",
    "source",
)
