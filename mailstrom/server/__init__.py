"""An SMTP server: for programs that take mail, and the shell that Mailstrom's own servers stand on.

``SMTPServer`` is the one for programs; ``listen`` binds. Names load on first use: a supervisor that
only binds sockets loads neither an event loop nor a mail parser.
"""

from __future__ import annotations

TYPE_CHECKING = False

if TYPE_CHECKING:
    from mailstrom.server.mail import Client as Client
    from mailstrom.server.mail import Mail as Mail
    from mailstrom.server.mail import Refuse as Refuse
    from mailstrom.server.server import AlreadyStarted as AlreadyStarted
    from mailstrom.server.server import SMTPServer as SMTPServer
    from mailstrom.server.server import WrongCertificate as WrongCertificate
    from mailstrom.server.sockets import CannotListen as CannotListen
    from mailstrom.server.sockets import listen as listen
    from mailstrom.smtp.reply import Reply as Reply
    from mailstrom.smtp.server_events import Credentials as Credentials
else:
    _HOME = dict.fromkeys(("Client", "Mail", "Refuse"), "mailstrom.server.mail")
    _HOME |= dict.fromkeys(
        ("AlreadyStarted", "SMTPServer", "WrongCertificate"), "mailstrom.server.server"
    )
    _HOME |= dict.fromkeys(("CannotListen", "listen"), "mailstrom.server.sockets")
    _HOME |= {"Credentials": "mailstrom.smtp.server_events", "Reply": "mailstrom.smtp.reply"}
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
