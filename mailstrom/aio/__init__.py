"""The client for applications with an event loop; the thin client beneath it knows none."""

from __future__ import annotations

from mailstrom.aio.api import AsyncMailstrom

__all__ = ["AsyncMailstrom"]
