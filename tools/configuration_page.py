"""docs/reference/configuration.md, from the settings: every table, key, type, default and sentence.

Contract. ``configuration`` gives the page's lines; what a key means is told by
``mailstrom.config.settings`` alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import msgspec
from pieces import NOTE, cells

from mailstrom.config import schema
from mailstrom.config.loading import ENVIRONMENT
from mailstrom.config.settings import Config, Table

COMPUTED = {
    "store": "`/var/lib/mailstrom/spool.db` as root, else `$XDG_STATE_HOME/mailstrom/spool.db`"
    " (`~/.local/state` where that is unset)",
    "hostname": "this machine's fully qualified name, else `localhost`",
}

EXAMPLE = """\
```toml
store = "/var/lib/mailstrom/spool.db"
hostname = "mail.example.org"

[delivery]
workers = 2

[sites]
connections = 10

[stream.receipts]
priority = "high"
require_tls = true

[stream.news]
priority = "low"
max_age = "1d"
max_size = "1MB"
```"""


def key_rows(keys: tuple[schema.Key, ...]) -> Iterator[str]:
    """The table of one TOML table's own keys."""
    yield cells("key", "takes", "default", "what it does")
    yield cells("---", "---", "---", "---")
    for key in keys:
        if key.table is not None or schema.streams(key) is not None:
            continue
        if key.default is msgspec.NODEFAULT:
            default = COMPUTED[key.name]
        else:
            text = schema.toml(key.default, key.unit)
            default = f"`{text}`" if text else "not set"
        sentence = f"{key.sentence} *Read at the start only.*" if key.restart else key.sentence
        yield cells(f"`{key.name}`", schema.accepts(key.hint, key.unit), default, sentence)


def tables(cls: type[Table], name: str) -> Iterator[str]:
    """A heading, sentence and key table for ``cls``, then for each table inside it."""
    if name:
        yield from (f"## `[{name}]`", "", inspect.getdoc(cls) or "", "")
    keys = schema.keys(cls)
    if any(key.table is None and schema.streams(key) is None for key in keys):
        yield from key_rows(keys)
        yield ""
    for key in keys:
        inner, named = key.table, f"{name}.{key.name}" if name else key.name
        if inner is None and (inner := schema.streams(key)) is not None:
            named += ".NAME"
        if inner is not None:
            yield from tables(inner, named)


def configuration() -> Iterator[str]:
    """docs/reference/configuration.md."""
    yield from ("# Configuration", "", NOTE, "")
    yield (
        "One TOML file: `--config`, else `MAILSTROM_CONFIG`, else `/etc/mailstrom/mailstrom.toml`,"
        " else `$XDG_CONFIG_HOME/mailstrom/mailstrom.toml` (`~/.config` where that variable is"
        " unset). The first that is there is the only one read. Without any file the defaults hold."
        " Errors (exit 78): a file that is named and missing; `/etc/mailstrom` closed to this user"
        " where nothing else names a file or a spool. Relative paths start at the file"
        " that names them. Unknown keys are errors. `mailstrom config show` prints every setting in"
        " force and where it came from, `mailstrom config check FILE` checks a file."
    )
    yield ""
    yield (
        "HUP makes a running engine read the file again. What it then starts anew (connections,"
        " claims, look-ups, retries) follows the new settings; what runs is not cut off. Keys"
        " marked *read at the start only* need a restart: when they changed, `config.reloaded`"
        " names them in `restart_needed`. A file that is unusable, looks cut off or names another"
        " `store` changes nothing (`config.rejected`), see"
        " [deploy](../howto/deploy.md#configuration)."
    )
    yield ""
    yield (
        'Durations are text with a unit: `"500ms"`, `"30s"`, `"5m"`, `"4h"`, `"5d"`. Sizes are'
        ' bytes, or text with a unit: `"500kB"`, `"10MB"`, `"25MiB"`. '
        "These variables override the file: "
        + ", ".join(
            f"`{variable}` (`{table}.{key}`)" if table else f"`{variable}` (`{key}`)"
            for variable, (table, key) in ENVIRONMENT.items()
        )
        + "."
    )
    yield from ("", "A file with most of what a small site sets:", "", *EXAMPLE.splitlines())
    yield from ("", "## Top level", "")
    yield from tables(Config, "")
