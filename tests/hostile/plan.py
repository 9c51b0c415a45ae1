"""The groups of the hostile world, in their order; each is a module of this folder."""

from __future__ import annotations

GROUPS = (
    "servers",
    "replies",
    "tls",
    "honest",
    "dns",
    "input",
    "fuzz",
    "listener",
    "limits",
    "neighbours",
)
