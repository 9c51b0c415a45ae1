"""The configuration: TOML files and three environment variables into one frozen ``Config``.

``load()`` is the entrance; engine children get the effective configuration through ``to_json()``
and ``from_json()`` and never look for files themselves. Attributes mirror the TOML keys; durations
are float seconds, file names absolute. Knows no spool, no socket and no log.
"""

from __future__ import annotations

from mailstrom.config.checks import warnings
from mailstrom.config.derived import (
    ehlo_name,
    nameserver_name,
    nameservers,
    relay_hosts,
    relay_password,
    report_author,
    stage_timeouts,
    worker_count,
)
from mailstrom.config.listening import Bind, binds, networks, server_context
from mailstrom.config.listing import Setting, describe, restart_needed, with_start_kept
from mailstrom.config.loading import from_json, from_tables, load, to_json
from mailstrom.config.places import default_store
from mailstrom.config.reloading import require_kept
from mailstrom.config.settings import (
    Config,
    Delivery,
    Dns,
    Listener,
    Log,
    Relay,
    Reports,
    Retention,
    Retry,
    Sites,
    Spool,
    StageTimeouts,
    Stream,
    Supervisor,
    Tls,
)

__all__ = [
    "Bind",
    "Config",
    "Delivery",
    "Dns",
    "Listener",
    "Log",
    "Relay",
    "Reports",
    "Retention",
    "Retry",
    "Setting",
    "Sites",
    "Spool",
    "StageTimeouts",
    "Stream",
    "Supervisor",
    "Tls",
    "binds",
    "default_store",
    "describe",
    "ehlo_name",
    "from_json",
    "from_tables",
    "load",
    "nameserver_name",
    "nameservers",
    "networks",
    "relay_hosts",
    "relay_password",
    "report_author",
    "require_kept",
    "restart_needed",
    "server_context",
    "stage_timeouts",
    "to_json",
    "warnings",
    "with_start_kept",
    "worker_count",
]
