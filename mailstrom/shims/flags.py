"""The command line of sendmail(1), as Postfix has it: flags stand before addresses, in clusters.

``-ti``, ``-fann@a.example``, ``-f ann@a.example`` and ``--`` are read as getopt reads them; behind
the first address nothing is a flag, so that an address never is one. What other sendmails do and
this one need not is ignored, what would do something else than the caller believes is refused.
Opens nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mailstrom.shims.sysexits import USAGE, Refusal

SEND, SMTP, LIST, FLUSH, NOTHING = "send", "smtp", "list", "flush", "nothing"

IGNORED = ("c", "m", "n", "v", "U", "x")
IGNORED_WITH_VALUE = ("A", "e", "h", "L", "O", "p", "X")
_VALUED = frozenset([*IGNORED_WITH_VALUE, "B", "C", "F", "N", "R", "V", "b", "f", "o", "r"])
_MODES = {"m": SEND, "s": SMTP, "p": LIST, "h": NOTHING, "H": NOTHING}
_REFUSED = {
    "bd": "the engine is started by mailstrom serve, or its service",
    "bl": "the engine is started by mailstrom serve, or its service",
    "bi": "there are no aliases to rebuild",
    "bv": "mailstrom why ADDRESS tells what is known of an address",
    "I": "there are no aliases to rebuild",
}
_USES = (
    "use: mailstrom-sendmail [-t] [-i] [-f SENDER] [-F NAME] [--] [RECIPIENT...] < MESSAGE;"
    " docs/howto/sendmail.md lists all",
    "use: mailstrom-mailq [-j]",
)
_NOTIFY = frozenset({"failure", "delay", "success"})
_BODIES = ("7BIT", "8BITMIME")


class Wanted(NamedTuple):
    """What a command line asks for.

    Args:
        mode: ``SEND``, ``SMTP``, ``LIST``, ``FLUSH`` or ``NOTHING``.
        recipients: address lists, as written.
        from_headers: -t: To, Cc and Bcc name recipients, too.
        sender: -f or -r as written; None: the user who runs this.
        name: -F: full name for a From that is added.
        dot_ends: a line with only a dot ends the message.
        gateway: -G: headers are not touched, Bcc removed.
        notify, ret, envid: -N, -R and -V (RFC 3461).
        config: -C: configuration file.
        flush: -qI and -qR: which message, which domain.
    """

    mode: str = SEND
    recipients: tuple[str, ...] = ()
    from_headers: bool = False
    sender: str | None = None
    name: str | None = None
    dot_ends: bool = True
    gateway: bool = False
    notify: str | None = None
    ret: str | None = None
    envid: str | None = None
    config: str | None = None
    flush: tuple[str, str] | None = None


def read(arguments: Sequence[str], mode: str = SEND) -> Wanted:
    """What the words behind the program's name ask for.

    Args:
        arguments: those words.
        mode: where no flag names one.

    Raises:
        Refusal: with ``USAGE``: a flag is unknown, lacks its value or is not for this program.
    """
    wanted = Wanted(mode=mode)
    place = 0
    while place < len(arguments):
        word = arguments[place]
        if word == "--":
            place += 1
            break
        if not word.startswith("-") or word == "-":
            break
        if word.startswith("--"):  # --help, most often
            raise Refusal(USAGE, f"{word[:40]!r} is unknown; {_USES[mode == LIST]}")
        place += 1
        at = 1
        while at < len(word):
            flag = word[at]
            at += 1
            if flag in "dq":  # their values are never words of their own
                wanted = _flushing(wanted, word[at:]) if flag == "q" else wanted
                break
            value = None
            if flag in _VALUED:
                value, at = word[at:], len(word)
                if not value:
                    if place == len(arguments):
                        raise Refusal(USAGE, f"flag -{flag} needs a value")
                    value = arguments[place]
                    place += 1
            wanted = _taken(wanted, flag, value)
    return wanted._replace(recipients=tuple(arguments[place:]))


def _taken(wanted: Wanted, flag: str, value: str | None) -> Wanted:
    if flag in _REFUSED:
        raise Refusal(USAGE, f"flag -{flag} is not for this program: {_REFUSED[flag]}")
    if flag in IGNORED or flag in IGNORED_WITH_VALUE:
        return wanted
    if value is None:
        match flag:
            case "t":
                return wanted._replace(from_headers=True)
            case "i":
                return wanted._replace(dot_ends=False)
            case "G":
                return wanted._replace(gateway=True)
        raise Refusal(USAGE, f"flag -{flag[:1]} is unknown; docs/howto/sendmail.md lists all")
    match flag:
        case "f" | "r":
            return wanted._replace(sender=value)
        case "F":
            return wanted._replace(name=value)
        case "C":
            return wanted._replace(config=value)
        case "o":
            return wanted._replace(dot_ends=False) if value == "i" else wanted
        case "b":
            return _mode(wanted, value)
        case "N":
            return wanted._replace(notify=_notify(value))
        case "R":
            if value.lower() not in ("full", "hdrs"):
                raise Refusal(USAGE, f"flag -R: {value[:40]!r} is neither full nor hdrs")
            return wanted._replace(ret=value.lower())
        case "V":
            if not (value.isascii() and value.isprintable() and len(value) <= 100):
                raise Refusal(USAGE, "flag -V: an envelope id is at most 100 printable characters")
            return wanted._replace(envid=value)
    if value.upper() not in _BODIES:  # -B; what the content holds is seen in it
        raise Refusal(USAGE, f"flag -B: {value[:40]!r} is neither 7BIT nor 8BITMIME")
    return wanted


def _mode(wanted: Wanted, value: str) -> Wanted:
    if f"b{value}" in _REFUSED:
        raise Refusal(USAGE, f"flag -b{value} is not for this program: {_REFUSED[f'b{value}']}")
    if value not in _MODES:
        raise Refusal(USAGE, f"flag -b{value[:40]} is unknown; docs/howto/sendmail.md lists all")
    return wanted._replace(mode=_MODES[value])


def _flushing(wanted: Wanted, value: str) -> Wanted:
    if value[:1].isdigit():  # an interval for a daemon, which this is not
        return wanted
    if not value:
        return wanted._replace(mode=FLUSH)
    if value[0] in "IR" and value[1:]:
        return wanted._replace(mode=FLUSH, flush=(value[0], value[1:]))
    raise Refusal(USAGE, f"flag -q{value[:40]} is unknown: -q, -qI ID (as one word) or -qR DOMAIN")


def _notify(value: str) -> str:
    words = [word.strip() for word in value.lower().split(",")]
    if words == ["never"] or (words and _NOTIFY.issuperset(words)):
        return ",".join(dict.fromkeys(words))
    raise Refusal(
        USAGE, f"flag -N: {value[:40]!r} is neither never nor some of failure, delay, success"
    )
