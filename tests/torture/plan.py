"""The parts of the torture, in their order; each is a module of this folder."""

from __future__ import annotations

PARTS = (
    "named_kills",
    "random_kills",
    "power",
    "errors",
    "full_disk",
    "damage",
    "contention",
    "clocks",
    "simulation",
    "machine",
)
