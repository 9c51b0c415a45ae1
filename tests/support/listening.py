"""An engine that listens: its port, its certificate and users, who talks to it.

For scenarios of the listener; knows what a user of it configures, and no more.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trustme

from mailstrom.passwords import hash_password
from tests.support.engine import Engine, Tables
from tests.support.talk import Talk

HASH = hash_password("secret")


class Listening:
    """An engine that listens, and its port."""

    def __init__(self, engine: Engine, port: int) -> None:
        self.engine = engine
        self.port = port
        self._talks: list[Talk] = []

    def talk(self, **how: Any) -> Talk:
        talk = Talk(self.port, **how)
        self._talks.append(talk)
        return talk

    def hang_up(self) -> None:
        for talk in self._talks:
            talk.close()

    def reload(self, settings: Tables) -> None:
        before = len(self.engine.log("config.reloaded"))
        self.engine.configure(settings)
        self.engine.signal(signal.SIGHUP)
        self.engine.wait_log("config.reloaded", count=before + 1)


MakeListening = Callable[..., Listening]


def certify(folder: Path) -> None:
    """A certificate, its key and a file of users."""
    issued = trustme.CA().issue_cert("mx.test", "127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "users").write_text(f"joe:{HASH}\n")


def stored(engine: Engine) -> list[str]:
    """What came by SMTP; reports about it are messages, too."""
    return [row.id for row in engine.rows("SELECT id FROM messages WHERE origin = 'smtp'")]
