"""The configuration: is it found and usable, and is anything in it unwise?

Pure but for the modes of the files it names.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator, Sequence

from mailstrom.config import Config, warnings
from mailstrom.doctor.finding import Finding, note, ok, problem, warning


def checks(config: Config | None, errors: Sequence[str]) -> Iterator[Finding]:
    """All about the configuration.

    Args:
        config: None where it cannot be used.
        errors: why not, a sentence each.
    """
    for sentence in errors:
        yield problem(
            "configuration.file",
            sentence,
            "Mend that; 'mailstrom config check' says whether it is usable. The engine would not"
            " start with it.",
        )
    if config is None:
        return
    if config.origin is None:
        yield note(
            "configuration.file",
            "no configuration file: the defaults hold",
            "For a service write /etc/mailstrom/mailstrom.toml; 'mailstrom config show' lists what"
            " can be set.",
        )
    else:
        yield ok("configuration.file", f"{config.origin} is usable", file=config.origin)
        yield from _modes(config.origin)
    exposed = False
    for sentence in warnings(config):
        text, _, remedy = sentence.rpartition(": ")
        if sentence.startswith("[relay]"):
            file = config.relay.password_file
            exposed = True
            yield warning("configuration.secret", text, f"{remedy}.", file=file)
        else:
            yield warning("configuration.listener", text, f"{remedy}.")
    if config.relay.password_file is not None and not exposed:
        yield ok("configuration.secret", "the password file is kept from others")


def _modes(file: str) -> Iterator[Finding]:
    try:
        mode = os.stat(file).st_mode
    except OSError:
        return
    if mode & stat.S_IWOTH:
        yield warning(
            "configuration.modes",
            f"every user of this machine may change {file} (mode {stat.S_IMODE(mode):04o}), and"
            " send the mail elsewhere",
            f"chmod o-w {shlex.quote(file)}",
        )
