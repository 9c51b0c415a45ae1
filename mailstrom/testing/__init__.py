"""A mail server and a DNS server for tests and the demo: real sockets, real bytes, on loopback.

``Sink`` keeps what it gets; ``SMTPServer`` plays a ``Script`` of ``Rule``. Nothing of the engine
imports this package. Users may: it is how an application tests its mail without a mail server.
Names load on first use, and pytest is never needed.
"""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from mailstrom.testing.script import Act as Act
    from mailstrom.testing.script import Per as Per
    from mailstrom.testing.script import Rule as Rule
    from mailstrom.testing.script import Script as Script
    from mailstrom.testing.sink import Sink as Sink
    from mailstrom.testing.smtp import SMTPServer as SMTPServer
else:
    _HOME = dict.fromkeys(("Act", "Per", "Rule", "Script"), "mailstrom.testing.script")
    _HOME |= {"Sink": "mailstrom.testing.sink", "SMTPServer": "mailstrom.testing.smtp"}
    __all__ = sorted(_HOME)

    def __getattr__(name):
        home = _HOME.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        value = globals()[name] = getattr(importlib.import_module(home), name)
        return value

    def __dir__():
        return sorted({*globals(), *_HOME})
