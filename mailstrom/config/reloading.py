"""What a reload may not lose: a file that was cut off must not change where mail goes.

HUP may come while somebody writes the file in place, or after a disk ran full. What is left can be
sound TOML, only shorter; taken over, it would send a relay's mail to the world, or in plaintext. So
a setting that decides where mail goes and how it is protected is taken back by writing another
value, never by leaving it out. Whoever wants it gone restarts the engine, which looks at nothing
but the file. Pure.
"""

from __future__ import annotations

from mailstrom.config.settings import Config
from mailstrom.errors import ConfigError

KEPT = (
    "store", "hostname", "delivery.mode", "delivery.port", "delivery.on_doubt", "relay.", "dns.",
    "tls.", "spool.retention.", "listener.role", "listener.tls_cert", "listener.tls_key",
    "listener.implicit_tls", "listener.allow_networks", "listener.proxy_networks",
)  # fmt: skip
"""Keys, and tables (with a dot) with all their keys."""

FREE = frozenset({"tls.ca_file", "dns.tls_hostname"})
"""Their loss sends nothing elsewhere or in plaintext, and they have no other value to be taken back
by: without the first mail waits, without the second the rules of ``checks`` speak up."""

KEPT_IN_STREAMS = (".require_tls", ".on_doubt")
"""Keys of any stream."""

INSTEAD = {
    "relay.": ("delivery.mode", "mx"),
    "dns.nameservers": ("dns.resolver", None),
    "dns.resolver": ("dns.nameservers", None),
}
"""What may go because another key is given: with that value, or with any. Both cannot stand."""


def require_kept(running: Config, wanted: Config) -> None:
    """Raise where a reload would lose what must not be lost.

    Args:
        running: the configuration in force.
        wanted: the one that was loaded now.

    Raises:
        ConfigError: names the keys, and says how to take them back.
    """
    lost = [
        key
        for key in sorted(running.sources)
        if key not in wanted.sources and _kept(key) and not _replaced(key, wanted)
    ]
    if lost:
        raise ConfigError(
            f"{wanted.origin or 'the configuration'}: no longer says {', '.join(lost)}, which the"
            " running engine was told: a file that was cut off looks like this; write the whole"
            " file beside it and rename it over, or write another value, or restart the engine"
        )


def _kept(key: str) -> bool:
    if key in FREE:
        return False
    if key.startswith("stream."):
        return key.endswith(KEPT_IN_STREAMS)
    return any(key == kept or (kept.endswith(".") and key.startswith(kept)) for kept in KEPT)


def _replaced(key: str, wanted: Config) -> bool:
    for mine, (other, value) in INSTEAD.items():
        if key == mine or (mine.endswith(".") and key.startswith(mine)):
            table, _, name = other.partition(".")
            given = getattr(getattr(wanted, table), name)
            return other in wanted.sources and value in (None, given)
    return False
