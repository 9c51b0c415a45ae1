"""The words of the ``events`` view and of the log, bare: what a client may ask for.

Why apart from ``mailstrom.events``, which has the same words with their levels and sentences: that
module loads the log, and a client that only asks for events of a type must not. A test holds the
two equal.
"""

from __future__ import annotations

EVENT_WORDS = (
    "message.accepted",
    "message.cancelled",
    "message.held",
    "message.released",
    "message.reported",
    "message.unreported",
    "recipient.routed",
    "recipient.deferred",
    "recipient.delivered",
    "recipient.failed",
    "recipient.held",
    "claim.lapsed",
    "session.opened",
    "session.closed",
    "mx.resolved",
    "site.suspended",
    "site.resumed",
    "submission.accepted",
    "submission.refused",
    "client.refused",
    "worker.started",
    "worker.ready",
    "worker.stopped",
    "worker.lost",
    "worker.restarting",
    "watchdog.killed",
    "supervisor.ready",
    "supervisor.draining",
    "supervisor.stopped",
    "config.reloaded",
    "config.warned",
    "config.rejected",
    "store.checkpointed",
    "store.copied",
    "store.poisoned",
    "store.pinned",
    "store.unpinned",
    "log.dropped",
    "engine.failed",
)
